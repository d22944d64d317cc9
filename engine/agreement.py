"""Whether two ways to run one explained network agree: what is compared, and how far apart it may be."""

from __future__ import annotations

import torch
from torch import Tensor

Answers = tuple[Tensor, Tensor, Tensor]
"""Softmax scores (N, K), the explained classes (N, T), and their heat (N, T, h, w)."""

SCORE_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""How far softmax scores may be from eager float32's on the probe, by precision."""
HEAT_TOLERANCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 1.5e-1}
"""How far heat may be from eager float32's on the probe, as a mean over the grid."""

ROUNDING_STEPS = 16
"""How many steps of float32 a class score before the softmax may be off, as a share of the largest one."""


def disagreement(truth: Answers, told: Answers, scores_allowed: float, heat_allowed: float) -> str:
    """Return by how much answers to a probe are too far from the true ones, or "" where they agree."""
    scores = float((told[0].float().cpu() - truth[0]).abs().max())
    # Heat is compared only for classes both explained: half precision may rank two near-equal classes otherwise.
    same = told[1].cpu() == truth[1]
    apart = (told[2].float().cpu() - truth[2]).abs().mean((2, 3))[same]
    heat = float(apart.max()) if apart.numel() else 0.0
    if scores <= scores_allowed and heat <= heat_allowed:
        return ""
    return f"scores by {scores:.3g} (allowed {scores_allowed:g}), heat by {heat:.3g} (allowed {heat_allowed:g})"


def rounding_of(every: Tensor, classes: Tensor) -> float:
    """Return how far apart the heat of two right answers may be, at the worst: 0 to 1.

    Where all cells say nearly the same, as in untrained or very sure networks, min-max normalising shows rounding
    itself.

    Args:
        every: (N, h * w, K) class scores of the masked maps, before the softmax.
        classes: (N, T) the explained classes.
    """
    matrix = torch.softmax(every.float(), dim=2).gather(2, classes[:, None, :].expand(-1, every.shape[1], -1))
    low, high = matrix.aminmax(dim=1)
    off = ROUNDING_STEPS * torch.finfo(torch.float32).eps * (1.0 + float(every.abs().max())) * high
    return float((off / (high - low)).nan_to_num(1.0, posinf=1.0).clamp_max(1.0).max())


def probe_images(count: int, size: tuple[int, int]) -> Tensor:
    """Return smooth pictures, (count, 3, H, W), normalised: the same numbers on every machine and in every version."""
    rows = torch.linspace(-1.0, 1.0, size[0])[:, None]
    columns = torch.linspace(-1.0, 1.0, size[1])[None, :]
    pictures = []
    for k in range(count):
        for channel in range(3):
            wave = torch.sin(5.0 * rows + 3.0 * columns * (k + 1) + channel) + torch.cos(17.0 * columns * rows - k)
            spot = torch.exp(-12.0 * ((rows - 0.4 + 0.2 * k) ** 2 + (columns + 0.3 - 0.1 * channel) ** 2))
            pictures.append(0.7 * wave + 2.5 * (channel - 0.8) * spot + 0.3 * torch.sin(61.0 * (rows - columns)))
    return torch.stack(pictures).view(count, 3, *size)

"""Whether two ways to run one explained network agree: what is compared, and how far apart it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

ModelOutputs = tuple[Tensor, Tensor, Tensor]
"""Softmax scores (N, K), the explained classes (N, T), and their heat (N, T, h, w)."""

SCORE_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""How far softmax scores may be from eager float32's on the probe, by precision."""
HEAT_TOLERANCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 1.5e-1}
"""How far heat may be from eager float32's on the probe, as a mean over the grid."""

ROUNDING_STEPS = 16
"""How many steps of float32 a class score before the softmax may be off, as a share of the largest one."""


def output_mismatch(truth: ModelOutputs, told: ModelOutputs, scores_allowed: float, heat_allowed: float) -> str:
    """Return by how much answers to a probe are too far from the true ones, or "" where they agree."""
    scores = float((told[0].float().cpu() - truth[0]).abs().max())
    # Heat is compared only for classes both explained: half precision may rank two near-equal classes otherwise.
    same = told[1].cpu() == truth[1]
    apart = (told[2].float().cpu() - truth[2]).abs().mean((2, 3))[same]
    heat = float(apart.max()) if apart.numel() else 0.0
    if scores <= scores_allowed and heat <= heat_allowed:
        return ""
    return f"scores by {scores:.3g} (allowed {scores_allowed:g}), heat by {heat:.3g} (allowed {heat_allowed:g})"


def rounding_error_bound(every: Tensor, classes: Tensor) -> float:
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


@dataclass(frozen=True, slots=True)
class Similarity:
    """How alike two ways to run a network are on some pictures: 1 is the same, for each."""

    cosine: float
    """The least cosine of a picture's softmax scores, and of its heat."""
    top: float
    """The share of pictures whose first explained class is the same."""
    rank_correlation: float
    """The mean rank correlation (Spearman) of heat maps of the same class; 1 where there is none."""

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.5f}, same first class {self.top:.0%}, heat "
            f"rank correlation {self.rank_correlation:.4f}"
        )


MIN_SIMILARITY: Final = {
    "fp32": Similarity(0.9999, 0.99, 0.999), "fp16": Similarity(0.999, 0.99, 0.99), "bf16": Similarity(0.99, 0.75, 0.9),
}  # fmt: skip
"""How alike eager float32 a backend that compiles for half precision must be, by precision."""

SIMILARITY_SLACK: Final = 2.0
"""How many times further from it than eager in the same precision it may be, where that itself is not so like."""


def similarity(truth: ModelOutputs, told: ModelOutputs) -> Similarity:
    """Compare answers to the same pictures."""
    scores, heat = told[0].float().cpu(), told[2].float().cpu()
    same = told[1].cpu() == truth[1].cpu()
    right, wrong = truth[2].float().cpu()[same].flatten(1), heat[same].flatten(1)
    cosines = [_cosines(truth[0].float().cpu(), scores), _cosines(right, wrong)]
    ranks = rank_correlation(right, wrong)
    return Similarity(
        min(float(part.min()) for part in cosines if part.numel()),
        float(same[:, 0].float().mean()),
        float(ranks.mean()) if ranks.numel() else 1.0,
    )


def similarity_shortfall(told: Similarity, precision: str, eager: Similarity | None = None) -> str:
    """Return what is not alike enough, or "".

    ``eager``: how like eager in the same precision is; what it loses itself nobody can be asked to keep, so a value
    below the tolerance counts only where it is more than ``SIMILARITY_SLACK`` times as far off as eager's.
    """
    short = []
    measures = (("cosine", "cosine"), ("top", "same first class"), ("rank_correlation", "heat rank correlation"))
    for name, words in measures:
        value, asked = getattr(told, name), getattr(MIN_SIMILARITY[precision], name)
        reachable = 1.0 if eager is None else 1.0 - SIMILARITY_SLACK * (1.0 - getattr(eager, name))
        if not value >= min(asked, reachable):
            short.append(f"{words} {value:.5f} (at least {asked:g} is asked for)")
    return ", ".join(short)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Spearman's correlation of each pair of maps (N, cells); two flat ones are alike, one flat one is not."""
    if not len(one):
        return torch.empty(0, dtype=torch.float64)
    flat, other_flat = one.amax(1) == one.amin(1), other.amax(1) == other.amin(1)
    first, second = (part.argsort(dim=1, stable=True).argsort(dim=1).double() for part in (one, other))
    middle = (one.shape[1] - 1) / 2
    related = torch.nn.functional.cosine_similarity(first - middle, second - middle, dim=1)
    return torch.where(flat | other_flat, (flat & other_flat).double(), related)


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of each pair of rows; all zero is like all zero."""
    empty = (one == 0).all(1) & (other == 0).all(1)
    return torch.where(empty, 1.0, torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1))

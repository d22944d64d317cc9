"""Compares two implementations of one explained network: measures and tolerances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from engine.evaluation import metrics

ModelOutputs = tuple[Tensor, Tensor, Tensor]
"""Softmax scores (N, K), the explained classes (N, T), and their heat maps (N, T, h, w)."""

SCORE_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Maximum difference of softmax scores from eager float32 on the probe, by precision."""
HEAT_TOLERANCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 1.5e-1}
"""Maximum difference of heat maps from eager float32 on the probe (mean over the grid), by precision."""

ROUNDING_STEPS = 16
"""Maximum rounding error of a logit, in float32 steps of the largest logit."""


def output_mismatch(reference: ModelOutputs, outputs: ModelOutputs, scores_allowed: float, heat_allowed: float) -> str:
    """Compare outputs with a reference.

    Args:
        reference: eager float32 outputs, on the CPU.
        outputs: the outputs to check.
        scores_allowed: maximum difference of a softmax score.
        heat_allowed: maximum mean difference of a heat map.

    Returns:
        The differences if they are too large, else "".
    """
    scores = float((outputs[0].float().cpu() - reference[0]).abs().max())
    # Heat maps are compared only if both explain the same class: half precision may swap two near-equal classes.
    same = outputs[1].cpu() == reference[1]
    differences = (outputs[2].float().cpu() - reference[2]).abs().mean((2, 3))[same]
    heat = float(differences.max()) if differences.numel() else 0.0
    if scores <= scores_allowed and heat <= heat_allowed:
        return ""
    return f"scores by {scores:.3g} (allowed {scores_allowed:g}), heat by {heat:.3g} (allowed {heat_allowed:g})"


def rounding_error_bound(cell_logits: Tensor, classes: Tensor) -> float:
    """Return the maximum difference between two heat maps that float32 rounding can cause: 0 to 1.

    If all cells have nearly the same score, as in untrained or very confident networks, min-max normalisation
    amplifies the rounding error by 1 / (max - min).

    Args:
        cell_logits: logits of the masked maps, (N, h * w, K).
        classes: the explained classes, (N, T).
    """
    indices = classes[:, None, :].expand(-1, cell_logits.shape[1], -1)
    matrix = torch.softmax(cell_logits.float(), dim=2).gather(2, indices)
    low, high = matrix.aminmax(dim=1)
    error = ROUNDING_STEPS * torch.finfo(torch.float32).eps * (1.0 + float(cell_logits.abs().max())) * high
    return float((error / (high - low)).nan_to_num(1.0, posinf=1.0).clamp_max(1.0).max())


def probe_images(count: int, size: tuple[int, int]) -> Tensor:
    """Return smooth normalised images (count, 3, H, W), without random numbers: equal on all machines."""
    rows = torch.linspace(-1.0, 1.0, size[0])[:, None]
    columns = torch.linspace(-1.0, 1.0, size[1])[None, :]
    channels = []
    for k in range(count):
        for channel in range(3):
            wave = torch.sin(5.0 * rows + 3.0 * columns * (k + 1) + channel) + torch.cos(17.0 * columns * rows - k)
            spot = torch.exp(-12.0 * ((rows - 0.4 + 0.2 * k) ** 2 + (columns + 0.3 - 0.1 * channel) ** 2))
            channels.append(0.7 * wave + 2.5 * (channel - 0.8) * spot + 0.3 * torch.sin(61.0 * (rows - columns)))
    return torch.stack(channels).view(count, 3, *size)


@dataclass(frozen=True, slots=True)
class Similarity:
    """Similarity of the outputs of two implementations on some images; 1: equal."""

    cosine: float
    """Minimum cosine similarity of an image's softmax scores or heat maps."""
    top: float
    """Fraction of images with the same first explained class."""
    rank_correlation: float
    """Mean rank correlation (Spearman) of heat maps of the same class; 1 if there are none."""

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.5f}, same first class {self.top:.0%}, heat "
            f"rank correlation {self.rank_correlation:.4f}"
        )


MIN_SIMILARITY: Final = {
    "fp32": Similarity(0.9999, 0.99, 0.999), "fp16": Similarity(0.999, 0.99, 0.99), "bf16": Similarity(0.99, 0.75, 0.9),
}  # fmt: skip
"""Minimum similarity to eager float32 of a backend that compiles for half precision, by precision."""

SIMILARITY_SLACK: Final = 2.0
"""Maximum ratio between a backend's and eager PyTorch's difference from float32, in equal precision."""


def similarity(reference: ModelOutputs, outputs: ModelOutputs) -> Similarity:
    """Return the similarity of outputs for the same images."""
    scores, heat = outputs[0].float().cpu(), outputs[2].float().cpu()
    same = outputs[1].cpu() == reference[1].cpu()
    expected, actual = reference[2].float().cpu()[same].flatten(1), heat[same].flatten(1)
    cosines = [_cosines(reference[0].float().cpu(), scores), _cosines(expected, actual)]
    ranks = rank_correlation(expected, actual)
    return Similarity(
        min(float(part.min()) for part in cosines if part.numel()),
        float(same[:, 0].float().mean()),
        float(ranks.mean()) if ranks.numel() else 1.0,
    )


def similarity_shortfall(measured: Similarity, precision: str, eager: Similarity | None = None) -> str:
    """Return the measures that are too small, as text; "" if none is.

    Args:
        measured: the similarity of a backend to eager float32.
        precision: the backend's precision.
        eager: the similarity of eager PyTorch in that precision to eager float32. A value below ``MIN_SIMILARITY`` is
            accepted if its distance from 1 is at most ``SIMILARITY_SLACK`` times eager's.
    """
    shortfalls = []
    for name, description in (
        ("cosine", "cosine"),
        ("top", "same first class"),
        ("rank_correlation", "heat rank correlation"),
    ):
        value, minimum = getattr(measured, name), getattr(MIN_SIMILARITY[precision], name)
        reachable = 1.0 if eager is None else 1.0 - SIMILARITY_SLACK * (1.0 - getattr(eager, name))
        if not value >= min(minimum, reachable):
            shortfalls.append(f"{description} {value:.5f} (minimum {minimum:g})")
    return ", ".join(shortfalls)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps (N, cells): float64 (N,).

    The correlation of two flat maps is 1; of a flat map and another map, 0.
    """
    pairs = zip(first.numpy(), second.numpy(), strict=True)
    return torch.tensor(
        [1.0 if not np.ptp(a) and not np.ptp(b) else metrics.rank_correlation(a, b) for a, b in pairs],
        dtype=torch.float64,
    )


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine similarity of each pair of rows; 1 for two all-zero rows."""
    both_zero = (first == 0).all(1) & (second == 0).all(1)
    return torch.where(both_zero, 1.0, torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=1))

"""The heat of a box: one number for each region of the input, smoothed and in its normal form for display. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from engine.detectors.regions import Mode

SMOOTHING_STRIDES: Final = 1.0
"""Deviation of the Gaussian that smooths the map of a one-stage box, in strides of its level."""

FLAT_LOG_RANGE: Final = 1e-5
"""Mode ``keep``: log-scores that differ by no more are flat: all heat is zero."""


class NormalisedHeat(NamedTuple):
    """Heat for display."""

    heat: Tensor
    """(rows, columns) float32 in [0, 1]; all zero where the map is flat."""
    against: Tensor | None
    """Mode ``drop``: the same for evidence against the box; None for ``keep``."""
    scale: float
    """Meaning of a heat of 1: the range of the map's log-scores, or a difference of the score."""
    lowest_score: float | None
    """Mode ``drop``: the lowest score without one region, not smoothed; None for ``keep``."""


@dataclass(frozen=True, eq=False)
class BoxHeat:
    """The heat of one box."""

    values: Tensor
    """(rows, columns) float32. ``keep``: the log-score with this region only. ``drop``: the plain score less the score
    without this region."""
    rectangle: tuple[float, float, float, float]
    """The rectangle that the grid covers: left, top, right, bottom in pixels of the network's input."""
    plain_score: float
    """The score of the box, 0 to 1."""
    mode: Mode
    cut: str
    """The masked features: ``complete``, ``level`` or ``region``."""
    sigma: float = 0.0
    """Deviation in cells of the Gaussian that smooths the map; 0 = the map has the values as they are."""

    def evidence(self) -> Tensor:
        """Return the map of the box: what the values say about places, smoothed by ``sigma``.

        Mode ``keep``: values below the median count as the median. Regions that cannot reach the box have one common
        log-score, that of an empty image; without this limit, regions beside the object that lower it further would
        count as less important than regions that do not matter at all.
        """
        if self.sigma <= 0.0:
            return self.values
        values = self.values.clamp(min=float(self.values.median())) if self.mode == "keep" else self.values
        return smoothed(values, self.sigma)

    def normalised(self) -> NormalisedHeat:
        """Return the map in [0, 1]: min-max for ``keep``, divided by the largest difference for ``drop``."""
        values, zeros = self.evidence(), torch.zeros_like(self.values)
        if self.mode == "keep":
            low, high = float(values.min()), float(values.max())
            if not high - low > FLAT_LOG_RANGE:
                return NormalisedHeat(zeros, None, 0.0, None)
            return NormalisedHeat((values - low) / (high - low), None, high - low, None)
        lowest = self.plain_score - float(self.values.max())
        scale = float(values.abs().max())
        if not scale > 0.0:
            return NormalisedHeat(zeros, zeros, 0.0, lowest)
        return NormalisedHeat(values.clamp(min=0.0) / scale, (-values).clamp(min=0.0) / scale, scale, lowest)


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """Return for each cell the mean of all cells, weighted by a Gaussian of their distance.

    Args:
        values: (rows, columns) float32.
        sigma: deviation of the Gaussian in cells; 0 returns ``values``.
    """
    if sigma <= 0.0:
        return values
    rows, columns = (_weights(size, sigma).to(values) for size in values.shape)
    return rows @ values @ columns.T


def _weights(size: int, sigma: float) -> Tensor:
    """Return the weight of each cell for each cell of an axis, (size, size); rows sum to 1."""
    places = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)

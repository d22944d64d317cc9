"""The heat map of a box: one value per region of the input, and its smoothed, normalised form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from engine.detectors.regions import Mode

SMOOTHING_STRIDES: Final = 1.0
"""Standard deviation of the Gaussian that smooths the map of a one-stage box, in strides of its level."""

FLAT_LOG_RANGE: Final = 1e-5
"""Mode ``keep``: a map whose log-scores differ by at most this value is flat, and its heat is zero."""


class NormalisedHeat(NamedTuple):
    """Normalised heat for display."""

    heat: Tensor
    """The normalised map, (rows, columns) float32 in [0, 1]; all zero if the map is flat."""
    against: Tensor | None
    """Mode ``drop``: evidence against the box, in the same form; None for ``keep``."""
    scale: float
    """Meaning of a heat of 1: the range of the map's log-scores, or a difference of the score."""
    lowest_score: float | None
    """Mode ``drop``: the lowest score with one region removed, before smoothing; None for ``keep``."""


@dataclass(frozen=True, eq=False)
class BoxHeat:
    """The heat map of one box, before smoothing and normalisation."""

    values: Tensor
    """Value of each region, (rows, columns) float32. ``keep``: the log-score with this region only. ``drop``: the plain
    score minus the score without this region."""
    rectangle: tuple[float, float, float, float]
    """The rectangle that the grid covers: left, top, right, bottom in pixels of the network's input."""
    plain_score: float
    """The score of the box, 0 to 1."""
    mode: Mode
    cut: str
    """The masked features: ``complete``, ``level`` or ``region``."""
    sigma: float = 0.0
    """Standard deviation, in cells, of the Gaussian that smooths the map; 0: no smoothing."""

    def evidence(self) -> Tensor:
        """Return the evidence for the box, (rows, columns): ``values`` smoothed by ``sigma``.

        Mode ``keep``: the log-score above the median of the map, 0 below it. Regions that cannot affect the box all
        have the log-score of an empty image; without this limit, regions that lower the score even further would count
        as less important than regions without any influence. The median is subtracted before the map is smoothed:
        small differences between regions far from the box would be lost in the rounding of values around -20. A map
        without smoothing is returned as it is: only its differences have a meaning.

        Mode ``drop``: positive values only; negative values are those of ``counter_evidence``. Smoothed together,
        evidence for the box and evidence against it in neighbouring regions would hide each other.
        """
        if self.mode == "drop":
            return smoothed(self.values.clamp(min=0.0), self.sigma)
        if self.sigma <= 0.0:
            return self.values
        return smoothed((self.values - self.values.median()).clamp(min=0.0), self.sigma)

    def counter_evidence(self) -> Tensor:
        """Return the evidence against the box, (rows, columns), mode ``drop``: the negative values, smoothed alone."""
        return smoothed((-self.values).clamp(min=0.0), self.sigma)

    def normalised(self) -> NormalisedHeat:
        """Return the map in [0, 1]: min-max for ``keep``, divided by the largest difference for ``drop``."""
        evidence, zeros = self.evidence(), torch.zeros_like(self.values)
        if self.mode == "keep":
            low, high = float(evidence.min()), float(evidence.max())
            if not high - low > FLAT_LOG_RANGE:
                return NormalisedHeat(zeros, None, 0.0, None)
            return NormalisedHeat((evidence - low) / (high - low), None, high - low, None)
        lowest = self.plain_score - float(self.values.max())
        against = self.counter_evidence()
        scale = max(float(evidence.max()), float(against.max()))
        if not scale > 0.0:
            return NormalisedHeat(zeros, zeros, 0.0, lowest)
        return NormalisedHeat(evidence / scale, against / scale, scale, lowest)


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """Smooth a map: each cell becomes the mean of all cells, weighted by a Gaussian of their distance.

    Args:
        values: (rows, columns) float32.
        sigma: standard deviation of the Gaussian in cells; 0: ``values`` are returned unchanged.
    """
    if sigma <= 0.0:
        return values
    rows, columns = (_weights(size, sigma).to(values) for size in values.shape)
    return rows @ values @ columns.T


def _weights(size: int, sigma: float) -> Tensor:
    """Return the smoothing matrix of one axis, (size, size); each row sums to 1."""
    places = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)

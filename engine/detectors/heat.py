"""The heat of a box: one number for each region of the input, and its normal form for display. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from engine.detectors.regions import Mode

FLAT_LOG_RANGE: Final = 1e-5
"""Mode ``keep``: log-scores that differ by no more are flat: all heat is zero."""


class NormalisedHeat(NamedTuple):
    """Heat for display."""

    heat: Tensor
    """(rows, columns) float32 in [0, 1]; all zero where the map is flat."""
    against: Tensor | None
    """Mode ``drop``: the same for evidence against the box; None for ``keep``."""
    scale: float
    """Meaning of a heat of 1: the range of the log-scores, or a difference of the score."""
    lowest_score: float | None
    """Mode ``drop``: the lowest score without one region; None for ``keep``."""


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

    def normalised(self) -> NormalisedHeat:
        """Return the heat in [0, 1]: min-max for ``keep``, divided by the largest difference for ``drop``."""
        values, zeros = self.values, torch.zeros_like(self.values)
        if self.mode == "keep":
            low, high = float(values.min()), float(values.max())
            if not high - low > FLAT_LOG_RANGE:
                return NormalisedHeat(zeros, None, 0.0, None)
            return NormalisedHeat((values - low) / (high - low), None, high - low, None)
        lowest = self.plain_score - float(values.max())
        scale = float(values.abs().max())
        if not scale > 0.0:
            return NormalisedHeat(zeros, zeros, 0.0, lowest)
        return NormalisedHeat(values.clamp(min=0.0) / scale, (-values).clamp(min=0.0) / scale, scale, lowest)

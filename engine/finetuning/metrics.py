"""Statistics of classified images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson_interval(fraction: float, count: int, deviations: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 % by default.

    E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, 1927.

    Args:
        fraction: the observed proportion, 0 to 1.
        count: number of independent observations, above 0.
        deviations: quantile of the normal distribution.
    """
    square = deviations**2
    centre = (fraction + square / (2 * count)) / (1 + square / count)
    half_width = (
        deviations / (1 + square / count) * math.sqrt(fraction * (1 - fraction) / count + square / (4 * count**2))
    )
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def confusion(targets: Sequence[int], predictions: Sequence[int], count: int) -> list[list[int]]:
    """Return the counts by true class (row) and predicted class (column) for ``count`` classes."""
    table = np.zeros((count, count), int)
    np.add.at(table, (np.asarray(targets, int), np.asarray(predictions, int)), 1)
    return [[int(cell) for cell in row] for row in table]

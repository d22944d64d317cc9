"""Table of precision and recall per class at an adjustable threshold.

This module computes the table at the first threshold; the script ``templates/thresholds.js`` updates it for others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FIRST_THRESHOLD: Final = 0.5

GOOD_NAMES: Final = ("ok", "good", "normal", "pass", "clean", "free", "intact", "nodefect", "defectfree", "io", "gut")
"""Usual names of the class of good parts."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of correctly flagged (``hits``), missed and wrongly flagged images of a class."""

    hits: int
    escapes: int
    """Number of images of the class that were not flagged."""
    false_alarms: int
    """Number of images of other classes that were flagged."""

    @property
    def recall(self) -> float | None:
        """Fraction of the class's images that were flagged; None if the class has no images."""
        return self.hits / total if (total := self.hits + self.escapes) else None


def count_flagged(truth: npt.ArrayLike, flagged: npt.ArrayLike) -> Counts:
    """Return the hits, escapes and false alarms of a class.

    Args:
        truth: True for each image of the class, bool (N,).
        flagged: True for each flagged image, bool (N,).
    """
    true, predicted = np.asarray(truth, bool), np.asarray(flagged, bool)
    return Counts(int((true & predicted).sum()), int((true & ~predicted).sum()), int((~true & predicted).sum()))


def count_named(confusion: Sequence[Sequence[int]], label: int) -> Counts:
    """Return the counts of a class if each image is flagged as its top-scoring class.

    Args:
        confusion: confusion matrix, number of images by true class (row) and predicted class (column).
        label: index of the class.
    """
    table = np.asarray(confusion, int)
    hits = int(table[label, label])
    return Counts(hits, int(table[label].sum()) - hits, int(table[:, label].sum()) - hits)


def good_class(labels: Sequence[str]) -> int | None:
    """Return the index of the class named in ``GOOD_NAMES``; None if no class or several classes match."""
    plain = [
        label.casefold().removeprefix("mt_").replace("_", "").replace(" ", "").replace("-", "") for label in labels
    ]
    indices = [index for index, name in enumerate(plain) if name in GOOD_NAMES]
    return indices[0] if len(indices) == 1 else None


def cells_of(counts: Counts) -> tuple[str, ...]:
    """Return precision, recall, escapes and false alarms as texts for table cells."""
    precision = _fraction(counts.hits, counts.hits + counts.false_alarms)
    recall = _fraction(counts.hits, counts.hits + counts.escapes)
    return precision, recall, str(counts.escapes), str(counts.false_alarms)


def _fraction(part: int, whole: int) -> str:
    """Return a fraction in per cent, with the same rounding as in the script; "-" for 0/0."""
    return f"{math.floor(1000 * part / whole + 0.5) / 10:.1f}%" if whole else "-"


@dataclass(frozen=True, slots=True)
class ThresholdTable:
    """Contents of the table at the first threshold, and the data for the script."""

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Name and cells of each class."""
    good: int | None
    """Index of the class of good parts; None if there is none."""
    rejected: tuple[str, ...]
    """Cells of the row of rejected parts."""
    data: str
    """Labels, true classes and scores as JSON."""
    level: float = FIRST_THRESHOLD


def threshold_table(labels: Sequence[str], truth: Sequence[int], scores: Sequence[Sequence[float]]) -> ThresholdTable:
    """Return the contents of the table at ``FIRST_THRESHOLD``.

    Args:
        labels: class names.
        truth: index of each image's true class.
        scores: scores of each image for all classes, in [0, 1], (images, classes).
    """
    true, score = np.asarray(truth), np.asarray(scores)
    counts = [count_flagged(true == k, score[:, k] >= FIRST_THRESHOLD) for k in range(len(labels))]
    good = good_class(labels)
    rejected = count_flagged(true != good, score[:, good] < FIRST_THRESHOLD) if good is not None else Counts(0, 0, 0)
    data = json.dumps({"labels": list(labels), "truth": list(truth), "scores": [list(row) for row in scores]})
    rows = tuple((label, cells_of(count)) for label, count in zip(labels, counts, strict=True))
    return ThresholdTable(rows, good, cells_of(rejected), data)

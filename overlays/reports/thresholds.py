"""Table of precision and recall per class at an adjustable threshold.

The script ``templates/thresholds.js`` computes from the same scores what this module computes for one threshold.
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
"""Usual names of a class of good parts."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of images of a class that are flagged, missed, or wrongly flagged."""

    hits: int
    escapes: int
    """Number of images of the class that are not flagged."""
    false_alarms: int
    """Number of images of other classes that are flagged."""

    @property
    def recall(self) -> float | None:
        """Fraction of the class that is flagged; None if there are no images of it."""
        return self.hits / total if (total := self.hits + self.escapes) else None


def count_flagged(truth: npt.ArrayLike, flagged: npt.ArrayLike) -> Counts:
    """Return the counts of images.

    Args:
        truth: whether each image is of the class, bool (N,).
        flagged: whether each image is flagged, bool (N,).
    """
    true, predicted = np.asarray(truth, bool), np.asarray(flagged, bool)
    return Counts(int((true & predicted).sum()), int((true & ~predicted).sum()), int((~true & predicted).sum()))


def count_named(confusion: Sequence[Sequence[int]], label: int) -> Counts:
    """Return the counts of a class if each image is flagged as the class of its highest score.

    Args:
        confusion: confusion matrix: number of images by true class (row) and predicted class (column).
        label: index of the class.
    """
    table = np.asarray(confusion, int)
    hits = int(table[label, label])
    return Counts(hits, int(table[label].sum()) - hits, int(table[:, label].sum()) - hits)


def good_class(labels: Sequence[str]) -> int | None:
    """Return the index of the class whose name means good parts; None if there is none, or several."""
    plain = [
        label.casefold().removeprefix("mt_").replace("_", "").replace(" ", "").replace("-", "") for label in labels
    ]
    indices = [index for index, name in enumerate(plain) if name in GOOD_NAMES]
    return indices[0] if len(indices) == 1 else None


def cells_of(counts: Counts) -> tuple[str, ...]:
    """Return precision, recall, escapes and false alarms as the text of a table's cells."""
    precision = _fraction(counts.hits, counts.hits + counts.false_alarms)
    recall = _fraction(counts.hits, counts.hits + counts.escapes)
    return precision, recall, str(counts.escapes), str(counts.false_alarms)


def _fraction(part: int, whole: int) -> str:
    """Return a fraction in per cent, rounded as the script rounds it."""
    return f"{math.floor(1000 * part / whole + 0.5) / 10:.1f}%" if whole else "-"


@dataclass(frozen=True, slots=True)
class ThresholdTable:
    """Contents of the table at its first threshold, and the data of its script."""

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
    """Return the contents of the table.

    Args:
        labels: class names.
        truth: index of each image's class.
        scores: scores of each image for all classes, 0 to 1.
    """
    true, score = np.asarray(truth), np.asarray(scores)
    counts = [count_flagged(true == k, score[:, k] >= FIRST_THRESHOLD) for k in range(len(labels))]
    good = good_class(labels)
    rejected = count_flagged(true != good, score[:, good] < FIRST_THRESHOLD) if good is not None else Counts(0, 0, 0)
    data = json.dumps({"labels": list(labels), "truth": list(truth), "scores": [list(row) for row in scores]})
    rows = tuple((label, cells_of(count)) for label, count in zip(labels, counts, strict=True))
    return ThresholdTable(rows, good, cells_of(rejected), data)

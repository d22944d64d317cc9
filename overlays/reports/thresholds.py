"""HTML table of precision and recall per class at an adjustable threshold, with a slider.

The page's script computes from the same scores what this module computes for one threshold.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
import numpy.typing as npt

FIRST_THRESHOLD: Final = 0.5

GOOD_NAMES: Final = ("ok", "good", "normal", "pass", "clean", "free", "intact", "nodefect", "defectfree", "io", "gut")
"""Usual names of a class of good parts."""

SCRIPT: Final = """
'use strict';
const box = document.getElementById('thresholds'), data = JSON.parse(box.dataset.scores);
const slider = document.getElementById('threshold'), good = document.getElementById('good');
const percent = (part, whole) => whole ? (Math.floor(1000 * part / whole + 0.5) / 10).toFixed(1) + '%' : '-';
function fill(row, truth, flagged) {
  let hits = 0, escapes = 0, alarms = 0;
  truth.forEach((is, n) => { if (is && flagged[n]) hits++; else if (is) escapes++; else if (flagged[n]) alarms++; });
  [percent(hits, hits + alarms), percent(hits, hits + escapes), escapes, alarms].forEach((value, k) => {
    row.cells[k + 1].textContent = value;
  });
}
function update() {
  const level = Number(slider.value);
  document.getElementById('level').textContent = level.toFixed(2);
  data.labels.forEach((_, k) => fill(document.getElementById('class' + k), data.truth.map(label => label === k),
    data.scores.map(row => row[k] >= level)));
  const chosen = Number(good.value), row = document.getElementById('rejected');
  row.hidden = chosen < 0;
  if (chosen >= 0) fill(row, data.truth.map(label => label !== chosen), data.scores.map(row => row[chosen] < level));
}
slider.addEventListener('input', update);
good.addEventListener('change', update);
update();
"""

POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode('ascii')}'"
)
"""Content-Security-Policy of a page with this table: allows embedded images and this script."""


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


def cells_of(counts: Counts) -> str:
    """Return precision, recall, escapes and false alarms as cells of a table row."""
    fractions = (
        _fraction(counts.hits, whole) for whole in (counts.hits + counts.false_alarms, counts.hits + counts.escapes)
    )
    return "".join(f"<td>{value}" for value in (*fractions, counts.escapes, counts.false_alarms))


def _fraction(part: int, whole: int) -> str:
    """Return a fraction in per cent, rounded as the script rounds it."""
    return f"{math.floor(1000 * part / whole + 0.5) / 10:.1f}%" if whole else "-"


def threshold_table(labels: Sequence[str], truth: Sequence[int], scores: Sequence[Sequence[float]]) -> str:
    """Return the table with its slider and script.

    Args:
        labels: class names.
        truth: index of each image's class.
        scores: scores of each image for all classes, 0 to 1.
    """
    true, score = np.asarray(truth), np.asarray(scores)
    rows = "".join(
        f"<tr id=class{k}><th class=w>{escape(label)}"
        f"{cells_of(count_flagged(true == k, score[:, k] >= FIRST_THRESHOLD))}</tr>"
        for k, label in enumerate(labels)
    )
    good = good_class(labels)
    rejected = count_flagged(true != good, score[:, good] < FIRST_THRESHOLD) if good is not None else Counts(0, 0, 0)
    chosen = (f"<option value={k}{' selected' * (k == good)}>{escape(label)}" for k, label in enumerate(labels))
    data = escape(json.dumps({"labels": list(labels), "truth": list(truth), "scores": [list(row) for row in scores]}))
    return (
        f"<div id=thresholds data-scores='{data}'><p><label>Threshold <input id=threshold type=range min=0 max=1 "
        f"step=0.01 value={FIRST_THRESHOLD}> <b id=level>{FIRST_THRESHOLD:.2f}</b></label> &ensp; <label>Class of "
        f"good parts <select id=good><option value=-1{' selected' * (good is None)}>(no class){''.join(chosen)}"
        "</select></label></p><table><tr><th class=w>flagged as<th>precision<th>recall<th>escapes<th>false alarms</tr>"
        f"{rows}<tr id=rejected{' hidden' * (good is None)}><th class=w>rejected{cells_of(rejected)}</tr></table>"
        "<p class=s>An image is flagged as a class if that class's score is at least the threshold; it is rejected "
        "if the score of the good class is below it. Escapes: images of the class that are not flagged, or parts "
        "that are not good and not rejected. False alarms: other images that are flagged, or good parts that are "
        f"rejected.</p></div><script>{SCRIPT}</script>"
    )

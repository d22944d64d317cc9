"""What each class's threshold lets through and stops: a table with a slider, in a page that needs nothing else.

Values in, HTML out. The page's script computes from the same scores what this module computes for one threshold.
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
"""What a class of good parts is often called."""

SCRIPT: Final = """
'use strict';
const box = document.getElementById('thresholds'), data = JSON.parse(box.dataset.scores);
const slider = document.getElementById('threshold'), good = document.getElementById('good');
const share = (part, whole) => whole ? (Math.floor(1000 * part / whole + 0.5) / 10).toFixed(1) + '%' : '-';
function fill(row, truth, flagged) {
  let hits = 0, escapes = 0, alarms = 0;
  truth.forEach((is, n) => { if (is && flagged[n]) hits++; else if (is) escapes++; else if (flagged[n]) alarms++; });
  [share(hits, hits + alarms), share(hits, hits + escapes), escapes, alarms].forEach((value, k) => {
    row.cells[k + 1].textContent = value;
  });
}
function update() {
  const level = Number(slider.value);
  document.getElementById('level').textContent = level.toFixed(2);
  data.labels.forEach((_, k) => fill(document.getElementById('class' + k), data.truth.map(one => one === k),
    data.scores.map(row => row[k] >= level)));
  const chosen = Number(good.value), row = document.getElementById('rejected');
  row.hidden = chosen < 0;
  if (chosen >= 0) fill(row, data.truth.map(one => one !== chosen), data.scores.map(one => one[chosen] < level));
}
slider.addEventListener('input', update);
good.addEventListener('change', update);
update();
"""

POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode('ascii')}'"
)
"""What a page with this table may load and run: pictures within it, and this script."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What comes of flagging some pictures of a class."""

    hits: int
    escapes: int
    """Pictures of the class that are not flagged."""
    false_alarms: int
    """Pictures of other classes that are."""

    @property
    def recall(self) -> float | None:
        """Share of the class that is flagged; None where there is none of it."""
        return self.hits / total if (total := self.hits + self.escapes) else None


def count_flagged(truth: npt.ArrayLike, flagged: npt.ArrayLike) -> Counts:
    """Return the counts for pictures that are of a class, or not, (N,) bool, and are flagged, or not."""
    real, given = np.asarray(truth, bool), np.asarray(flagged, bool)
    return Counts(int((real & given).sum()), int((real & ~given).sum()), int((~real & given).sum()))


def count_named(confusion: Sequence[Sequence[int]], label: int) -> Counts:
    """Return the counts where a picture is flagged as the class of its highest score.

    Args:
        confusion: pictures by true class (row) and given class (column).
        label: the class, by its number.
    """
    table = np.asarray(confusion, int)
    hits = int(table[label, label])
    return Counts(hits, int(table[label].sum()) - hits, int(table[:, label].sum()) - hits)


def good_class(labels: Sequence[str]) -> int | None:
    """Return which class is called like good parts; None where none is, or several are."""
    plain = [
        label.casefold().removeprefix("mt_").replace("_", "").replace(" ", "").replace("-", "") for label in labels
    ]
    found = [place for place, name in enumerate(plain) if name in GOOD_NAMES]
    return found[0] if len(found) == 1 else None


def cells_of(counts: Counts) -> str:
    """Return precision, recall, escapes and false alarms as a row's cells."""
    fractions = (
        _fraction(counts.hits, whole) for whole in (counts.hits + counts.false_alarms, counts.hits + counts.escapes)
    )
    return "".join(f"<td>{one}" for one in (*fractions, counts.escapes, counts.false_alarms))


def _fraction(part: int, whole: int) -> str:
    """Return a share in per cent, rounded as the script rounds it."""
    return f"{math.floor(1000 * part / whole + 0.5) / 10:.1f}%" if whole else "-"


def threshold_table(labels: Sequence[str], truth: Sequence[int], scores: Sequence[Sequence[float]]) -> str:
    """Return the table, its slider and its script.

    Args:
        labels: class names.
        truth: each picture's class, by its number.
        scores: each picture's scores of all classes, 0 to 1.
    """
    real, given = np.asarray(truth), np.asarray(scores)
    rows = "".join(
        f"<tr id=class{k}><th class=w>{escape(label)}"
        f"{cells_of(count_flagged(real == k, given[:, k] >= FIRST_THRESHOLD))}</tr>"
        for k, label in enumerate(labels)
    )
    good = good_class(labels)
    rejected = count_flagged(real != good, given[:, good] < FIRST_THRESHOLD) if good is not None else Counts(0, 0, 0)
    chosen = (f"<option value={k}{' selected' * (k == good)}>{escape(label)}" for k, label in enumerate(labels))
    data = escape(json.dumps({"labels": list(labels), "truth": list(truth), "scores": [list(row) for row in scores]}))
    return (
        f"<div id=thresholds data-scores='{data}'><p><label>Threshold <input id=threshold type=range min=0 max=1 "
        f"step=0.01 value={FIRST_THRESHOLD}> <b id=level>{FIRST_THRESHOLD:.2f}</b></label> &ensp; <label>Good parts "
        f"are called <select id=good><option value=-1{' selected' * (good is None)}>(no class){''.join(chosen)}"
        "</select></label></p><table><tr><th class=w>flagged as<th>precision<th>recall<th>escapes<th>false alarms</tr>"
        f"{rows}<tr id=rejected{' hidden' * (good is None)}><th class=w>rejected{cells_of(rejected)}</tr></table>"
        "<p class=s>A picture is flagged as a class when that class's score is at least the threshold; it is rejected "
        "when the score of the good class is below it. Escapes: pictures of the class that are not flagged, or parts "
        "that are not good and not rejected. False alarms: other pictures that are flagged, or good parts that are "
        f"rejected.</p></div><script>{SCRIPT}</script>"
    )

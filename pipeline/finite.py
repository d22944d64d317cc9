"""Checks that all numbers of an explanation are finite. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.frames import Explanation, Finding

Numbers = Iterator[tuple[str, Iterable[float | None]]]
"""Pairs of a name and the numbers of that name; None stands for a missing number."""


def find_non_finite(explanation: Explanation) -> str:
    """Return a message that names the first NaN or infinite number; empty if all numbers are finite.

    Sinks refuse such explanations, because JSON and many readers have no NaN and no infinity.
    """
    for name, numbers in _of_frame(explanation):
        for number in numbers:
            if number is not None and not math.isfinite(number):
                return f"{name} is {number}; a frame with such a number is not published"
    for finding in explanation.findings:
        for name, numbers in _of_finding(finding):
            for number in numbers:
                if number is not None and not math.isfinite(number):
                    return f"{name} of {finding.label!r} is {number}; a frame with such a number is not published"
        against = None if finding.box_map is None else finding.box_map.against
        if not np.isfinite(finding.heat).all() or (against is not None and not np.isfinite(against).all()):
            return f"the heat of {finding.label!r} has numbers that are not finite; such a frame is not published"
    return ""


def _of_frame(explanation: Explanation) -> Numbers:
    frame = explanation.frame
    yield "taken_at or pts_seconds", (frame.captured_at, frame.pts_seconds)
    yield "heat_region", explanation.region
    for stage, seconds in explanation.timings.items():
        yield f"timing {stage!r}", (seconds,)
    for box in () if frame.truth is None else frame.truth.boxes:
        yield "a true box", box
    for region in explanation.regions:
        for corner in region.polygon:
            yield f"region {region.name!r}", corner
    for guard in explanation.guards:
        yield f"the seconds of guard {guard.name!r}", (guard.seconds,)
    if (check := explanation.deletion) is not None:
        yield "the deletion check", (check.score, check.masked_score, check.age_seconds)


def _of_finding(finding: Finding) -> Numbers:
    yield "the score", (finding.score,)
    if finding.box is not None:
        yield "the box", finding.box
    if (box_map := finding.box_map) is not None:
        yield "the heat region", box_map.region
        yield "the scale, lowest score or age of the heat", (
            box_map.scale, box_map.lowest_score, box_map.age_seconds,
        )  # fmt: skip
    if (stats := finding.heatmap_stats) is not None:
        yield "focus_area, entropy or stability", (stats.focus_area, stats.entropy, stats.stability)
        yield "the heat's centre", stats.centre or ()
        yield "heat_inside", stats.heat_inside.values()

"""Checks that all numbers of an explanation are finite. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.frames import Explanation, Finding

Numbers = Iterable[tuple[str, float | None]]


def find_non_finite(explanation: Explanation) -> str:
    """Return which number is NaN or infinite, as text; empty if all are finite.

    JSON and many readers have no such numbers, so no sink publishes them.
    """
    for name, value in _numbers(explanation):
        if value is not None and not math.isfinite(value):
            return f"{name} is {value}; a frame with such a number is not published"
    for finding in explanation.findings:
        against = None if finding.box_map is None else finding.box_map.against
        if not np.isfinite(finding.heat).all() or (against is not None and not np.isfinite(against).all()):
            return f"the heat of {finding.label!r} has numbers that are not finite; such a frame is not published"
    return ""


def _numbers(explanation: Explanation) -> Iterator[tuple[str, float | None]]:
    frame = explanation.frame
    yield "taken_at", frame.captured_at
    yield "pts_seconds", frame.pts_seconds
    yield from _edges("heat_region", explanation.region)
    yield from ((f"timing {stage!r}", seconds) for stage, seconds in explanation.timings.items())
    for finding in explanation.findings:
        yield from _of_finding(finding)
    for box in () if frame.truth is None else frame.truth.boxes:
        yield from _edges("a true box", box)
    for region in explanation.regions:
        for corner in region.polygon:
            yield from _edges(f"region {region.name!r}", corner)
    yield from ((f"the seconds of guard {guard.name!r}", guard.seconds) for guard in explanation.guards)
    if (checked := explanation.deletion) is not None:
        yield from (("the deletion check's score", each) for each in (checked.score, checked.masked_score))
        yield "the deletion check's age", checked.age_seconds


def _of_finding(finding: Finding) -> Numbers:
    yield f"the score of {finding.label!r}", finding.score
    yield from _edges(f"the box of {finding.label!r}", finding.box or ())
    if (box_map := finding.box_map) is not None:
        yield from _edges(f"the heat region of {finding.label!r}", box_map.region)
        yield f"the scale of the heat of {finding.label!r}", box_map.scale
        yield f"the lowest score of {finding.label!r}", box_map.lowest_score
        yield f"the age of the heat of {finding.label!r}", box_map.age_seconds
    if (stats := finding.heatmap_stats) is not None:
        yield "focus_area", stats.focus_area
        yield "entropy", stats.entropy
        yield "stability", stats.stability
        yield from _edges("the heat's centre", stats.centre or ())
        yield from ((f"heat_inside({name})", fraction) for name, fraction in stats.heat_inside.items())


def _edges(name: str, numbers: Iterable[float]) -> Iterator[tuple[str, float | None]]:
    return ((name, number) for number in numbers)

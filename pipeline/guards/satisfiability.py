"""Checks whether a rule or condition can hold, by its evaluation for all cases that it distinguishes.

A test compares a number with bounds, or a name with names. It is enough to try each bound, one number between each two
neighbouring bounds, each name, and one other name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pipeline.frames import Box, BoxMap, DeletionCheck, Explanation, Finding, Frame, HeatmapStats
from pipeline.guards.box_stats import BOX
from pipeline.guards.state import GuardState
from pipeline.guards.variables import (
    BOXES,
    DROP,
    HEAT_INSIDE,
    OUTSIDE_BOX,
    TRACK,
    BoundVariable,
    RuleContext,
    Variable,
    heat_inside,
)

MAX_CASES: Final = 4096
"""Maximum number of cases; rules that distinguish more cases are not checked."""
_OTHER: Final = "\0another"
"""A name that no rule can contain."""
_PIXEL: Final = np.zeros((1, 1, 3), np.uint8)
_FLAT: Final = np.zeros((1, 1), np.float32)
_HOT: Final = np.ones((1, 1), np.float32)
_UNIT: Final = Box(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Domain:
    """The numbers and names in a rule or condition."""

    numbers: tuple[BoundVariable, ...] = ()
    """Numbers with their bounds; a number with several bounds occurs several times."""
    labels: frozenset[str] = frozenset()
    cameras: frozenset[str] = frozenset()
    guards: frozenset[str] | None = None
    """The guards that the condition names; None if it has no test of guards."""
    places: frozenset[str] | None = None
    """The zones and lines that the condition names; None if it has no test of parts or crossings."""
    asks_trial: bool = False
    """True if the condition tests whether a network on trial disagrees."""

    def cases(self, cameras: Collection[str] | None = None) -> Iterator[RuleContext] | None:
        """Return a context for every case that the rule distinguishes; None if there are too many.

        Args:
            cameras: the cameras of the run; None for any camera.
        """
        numbers = [_independent(number) for number in self.numbers]
        kinds = {number.name: number.variable for number in numbers}
        names = sorted(kinds)
        levels = [_levels(kinds[name], [number.bound for number in numbers if number.name == name]) for name in names]
        labels = [*sorted(self.labels), _OTHER]
        known = [*sorted(self.cameras), _OTHER] if cameras is None else sorted(cameras)
        firing = _subsets([*sorted(self.guards), _OTHER]) if self.guards is not None else [()]
        passages: list[tuple[str, str] | None] = [None]
        if self.places is not None:
            passages += itertools.product(("part", "crossing"), [*sorted(self.places), _OTHER])
        trials = (False, True) if self.asks_trial else (False,)
        if math.prod([len(labels), len(known), len(firing), len(passages), len(trials), *map(len, levels)]) > MAX_CASES:
            return None
        return (
            _make_context(label, camera, guards, dict(zip(names, values, strict=True)))._replace(
                passage=passage, disagrees=disagrees
            )
            for label, camera, guards, passage, disagrees in itertools.product(labels, known, firing, passages, trials)
            for values in itertools.product(*levels)
        )


def _independent(number: BoundVariable) -> BoundVariable:
    """Return the number from which a dependent number is computed, with its bound; others unchanged."""
    if number.name != OUTSIDE_BOX:
        return number
    return replace(heat_inside(BOX), bound=None if number.bound is None else 1.0 - number.bound)


def _levels(variable: Variable, bounds: Sequence[float | None]) -> list[float]:
    """Return the bounds and limits of a number, and one value between each two neighbours, in order."""
    minimum, maximum = variable.minimum, variable.maximum
    edges = sorted({minimum, maximum, *(bound for bound in bounds if bound is not None)})
    if variable.is_count:
        around = {math.floor(edge) + step for edge in edges for step in (-1, 0, 1)}
        return sorted(float(value) for value in around if minimum <= value <= maximum)
    return sorted({*edges, *((low + high) / 2 for low, high in itertools.pairwise(edges))})


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all subsets of names; more than ``MAX_CASES`` subsets mean that there are too many names."""
    if len(names) > 12:
        return [()] * (MAX_CASES + 1)
    return [chosen for count in range(len(names) + 1) for chosen in itertools.combinations(names, count)]


def _make_context(label: str, camera: str, guards: Sequence[str], numbers: dict[str, float]) -> RuleContext:
    inside = {
        name.removeprefix(f"{HEAT_INSIDE}(").removesuffix(")"): value
        for name, value in numbers.items()
        if name.startswith(HEAT_INSIDE)
    }
    stats = HeatmapStats(
        focus_area=numbers.get("focus_area"),
        entropy=numbers.get("entropy"),
        centre=(numbers.get("centre_x", 0.5), numbers.get("centre_y", 0.5)),
        stability=numbers.get("stability"),
        heat_inside=inside,
    )
    states = tuple(GuardState(name, firing=True, seconds=0.0, message="", fire_count=1) for name in guards)
    finding = Finding(label, numbers.get("score", 1.0), _FLAT, 0, heatmap_stats=stats)
    deletion = DeletionCheck(label, numbers[DROP], 0.0, 0, 0.0) if DROP in numbers else None
    findings: tuple[Finding, ...] = (finding,)
    if BOXES in numbers or TRACK in numbers:
        finding = _make_box(finding, numbers)
        findings = (finding,) * int(numbers.get(BOXES, 1.0))
    explanation = Explanation(Frame(_PIXEL, camera, 0, 0.0), findings, "", "", deletion=deletion, guards=states)
    return RuleContext(explanation, finding if findings else None, deletion)


def _make_box(finding: Finding, numbers: dict[str, float]) -> Finding:
    """Return a classifier's finding as the finding of a detector, with a box."""
    drop = numbers.get(DROP, 0.0)
    box_map = BoxMap("drop", "", _UNIT, abs(drop), against=_FLAT if drop > 0.0 else _HOT)
    heat = _HOT if drop > 0.0 else _FLAT
    return replace(finding, box=_UNIT, box_map=box_map, heat=heat, track=int(numbers.get(TRACK, 1.0)))

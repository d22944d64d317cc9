"""Checks whether a rule or condition can hold: it is evaluated for all cases that it distinguishes. Pure.

A test compares a number with bounds, or a name with names. It is enough to try each bound, a number between each two
bounds, each name, and one other name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.frames import DeletionCheck, Explanation, Finding, Frame, GuardState, HeatmapStats
from pipeline.guards.variables import DROP, HEAT_INSIDE, NUMBERS, BoundVariable, RuleContext

MAX_CASES: Final = 4096
"""Rules that distinguish more cases are not checked."""
_OTHER: Final = "\0another"
"""A name that no rule can contain."""
_PIXEL: Final = np.zeros((1, 1, 3), np.uint8)
_FLAT: Final = np.zeros((1, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Domain:
    """The numbers and names in a rule or condition."""

    numbers: tuple[BoundVariable, ...] = ()
    """Numbers with the bounds they are compared with; a number may occur several times."""
    labels: frozenset[str] = frozenset()
    cameras: frozenset[str] = frozenset()
    guards: frozenset[str] | None = None
    """The guards that it names; None where it has no test of guards."""

    def cases(self, cameras: Collection[str] | None = None) -> Iterator[RuleContext] | None:
        """Return a context for every case that the rule distinguishes; None where there are too many.

        Args:
            cameras: the cameras of the run; None: any.
        """
        names = sorted({number.name for number in self.numbers})
        levels = [_levels(name, [number.bound for number in self.numbers if number.name == name]) for name in names]
        labels = [*sorted(self.labels), _OTHER]
        known = [*sorted(self.cameras), _OTHER] if cameras is None else sorted(cameras)
        firing = _subsets([*sorted(self.guards), _OTHER]) if self.guards is not None else [()]
        if math.prod([len(labels), len(known), len(firing), *map(len, levels)]) > MAX_CASES:
            return None
        return (
            _make_context(label, camera, guards, dict(zip(names, values, strict=True)))
            for label, camera, guards in itertools.product(labels, known, firing)
            for values in itertools.product(*levels)
        )


def _levels(name: str, bounds: Sequence[float | None]) -> list[float]:
    """Return each bound and limit of a number, and a value between each two of them."""
    minimum = 0.0 if name.startswith(HEAT_INSIDE) else NUMBERS[name].minimum
    edges = sorted({minimum, 1.0, *(bound for bound in bounds if bound is not None)})
    return sorted({*edges, *((low + high) / 2 for low, high in itertools.pairwise(edges))})


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all subsets of names; more than ``MAX_CASES`` entries where there are too many names."""
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
    finding = Finding(label, numbers.get("score", 1.0), _FLAT, 0, heatmap_stats=stats)
    deletion = DeletionCheck(label, numbers[DROP], 0.0, 0, 0.0) if DROP in numbers else None
    states = tuple(GuardState(name, firing=True, seconds=0.0, message="", fire_count=1) for name in guards)
    explanation = Explanation(Frame(_PIXEL, camera, 0, 0.0), (finding,), "", "", deletion=deletion, guards=states)
    return RuleContext(explanation, finding, deletion)

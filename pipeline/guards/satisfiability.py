"""Whether a rule or a condition can hold at all: every case that it tells apart is tried on made-up facts. Pure.

A test compares a number with its bounds, and a name with other names. So it is enough to try each bound, a number
between each two bounds, each name, and one name that is none of them.
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
"""A text that tells more cases apart is not tried."""
_OTHER: Final = "\0another"
"""A name that nobody can write."""
_PIXEL: Final = np.zeros((1, 1, 3), np.uint8)
_FLAT: Final = np.zeros((1, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Domain:
    """What a text speaks of."""

    numbers: tuple[BoundVariable, ...] = ()
    """With the bounds that they are compared with; a number may come several times."""
    labels: frozenset[str] = frozenset()
    cameras: frozenset[str] = frozenset()
    guards: frozenset[str] | None = None
    """The guards that are named; None where it does not speak of guards."""

    def cases(self, cameras: Collection[str] | None = None) -> Iterator[RuleContext] | None:
        """Give facts of every case that the text tells apart; None where there are too many.

        Args:
            cameras: the cameras there are; None: any may come.
        """
        names = sorted({one.name for one in self.numbers})
        levels = [_levels(name, [one.bound for one in self.numbers if one.name == name]) for name in names]
        labels = [*sorted(self.labels), _OTHER]
        known = [*sorted(self.cameras), _OTHER] if cameras is None else sorted(cameras)
        firing = _subsets([*sorted(self.guards), _OTHER]) if self.guards is not None else [()]
        if math.prod([len(labels), len(known), len(firing), *map(len, levels)]) > MAX_CASES:
            return None
        return (
            _facts(label, camera, guards, dict(zip(names, values, strict=True)))
            for label, camera, guards in itertools.product(labels, known, firing)
            for values in itertools.product(*levels)
        )


def _levels(name: str, bounds: Sequence[float | None]) -> list[float]:
    """Return each bound and limit of a number, and a value between each two."""
    least = 0.0 if name.startswith(HEAT_INSIDE) else NUMBERS[name].minimum
    edges = sorted({least, 1.0, *(bound for bound in bounds if bound is not None)})
    return sorted({*edges, *((low + high) / 2 for low, high in itertools.pairwise(edges))})


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every choice of names; the choices of very many names are too many to be tried."""
    if len(names) > 12:
        return [()] * (MAX_CASES + 1)
    return [chosen for count in range(len(names) + 1) for chosen in itertools.combinations(names, count)]


def _facts(label: str, camera: str, guards: Sequence[str], numbers: dict[str, float]) -> RuleContext:
    inside = {
        name.removeprefix(f"{HEAT_INSIDE}(").removesuffix(")"): value
        for name, value in numbers.items()
        if name.startswith(HEAT_INSIDE)
    }
    grounds = HeatmapStats(
        focus_area=numbers.get("focus_area"),
        entropy=numbers.get("entropy"),
        centre=(numbers.get("centre_x", 0.5), numbers.get("centre_y", 0.5)),
        stability=numbers.get("stability"),
        heat_inside=inside,
    )
    finding = Finding(label, numbers.get("score", 1.0), _FLAT, 0, heatmap_stats=grounds)
    deletion = DeletionCheck(label, numbers[DROP], 0.0, 0, 0.0) if DROP in numbers else None
    states = tuple(GuardState(name, firing=True, seconds=0.0, message="", fire_count=1) for name in guards)
    explanation = Explanation(Frame(_PIXEL, camera, 0, 0.0), (finding,), "", "", deletion=deletion, guards=states)
    return RuleContext(explanation, finding, deletion)

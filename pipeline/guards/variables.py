"""The numbers that conditions and rules can use, by name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from pipeline.frames import DeletionCheck, Explanation, Finding


class RuleContext(NamedTuple):
    """A finding of a frame, as rules are evaluated on it."""

    explanation: Explanation
    finding: Finding | None
    deletion: DeletionCheck | None
    """The camera's last deletion check, up to its maximum age."""


def _read_centre(axis: int) -> Callable[[RuleContext], float | None]:
    """Return a function that reads a coordinate of the centre as a fraction of the frame."""

    def read(context: RuleContext) -> float | None:
        centre = (
            None
            if context.finding is None or context.finding.heatmap_stats is None
            else context.finding.heatmap_stats.centre
        )
        frame = context.explanation.frame
        return None if centre is None else centre[axis] / (frame.width, frame.height)[axis]

    return read


def _read_statistic(name: str) -> Callable[[RuleContext], float | None]:
    def read(context: RuleContext) -> float | None:
        stats = None if context.finding is None else context.finding.heatmap_stats
        return None if stats is None else getattr(stats, name)

    return read


def _read_drop(context: RuleContext) -> float | None:
    checked = context.deletion
    same = checked is not None and context.finding is not None and checked.label == context.finding.label
    return checked.drop if checked is not None and same else None


class Variable(NamedTuple):
    """A number: the function that reads it, and its range."""

    read: Callable[[RuleContext], float | None]
    """Returns None where the number is not known."""
    minimum: float = 0.0
    """Its lower limit; the upper limit is 1."""


DROP: Final = "score_drop_when_masked"
HEAT_INSIDE: Final = "heat_inside"

NUMBERS: Final[Mapping[str, Variable]] = MappingProxyType(
    {
        "score": Variable(lambda context: 0.0 if context.finding is None else context.finding.score),
        "focus_area": Variable(_read_statistic("focus_area")),
        "entropy": Variable(_read_statistic("entropy")),
        "stability": Variable(_read_statistic("stability"), -1.0),
        "centre_x": Variable(_read_centre(0)),
        "centre_y": Variable(_read_centre(1)),
        DROP: Variable(_read_drop, -1.0),
    }
)
"""All numbers but ``heat_inside``, of which each region has one."""


@dataclass(frozen=True, slots=True)
class BoundVariable:
    """A number in a rule."""

    name: str
    """As written: ``heat_inside(part)``."""
    read: Callable[[RuleContext], float | None]
    region: str | None = None
    bound: float | None = None
    """The number that the rule compares it with."""


def heat_inside(region: str) -> BoundVariable:
    """Return the number ``heat_inside(region)``: the fraction of the evidence in a region."""

    def read(context: RuleContext) -> float | None:
        stats = None if context.finding is None else context.finding.heatmap_stats
        return None if stats is None else stats.heat_inside.get(region)

    return BoundVariable(f"{HEAT_INSIDE}({region})", read, region)

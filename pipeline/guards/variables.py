"""What may be said of a finding, by name: the numbers that conditions and rules go by. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from pipeline.frames import DeletionCheck, Explanation, Finding


class RuleContext(NamedTuple):
    """What is known of one finding of a frame."""

    explanation: Explanation
    finding: Finding | None
    deletion: DeletionCheck | None
    """The camera's last deletion check, while it is fresh."""


def _fraction_of(place: int) -> Callable[[RuleContext], float | None]:
    """Return what reads one coordinate of the centre as a share of the frame."""

    def read(facts: RuleContext) -> float | None:
        centre = (
            None if facts.finding is None or facts.finding.heatmap_stats is None else facts.finding.heatmap_stats.centre
        )
        frame = facts.explanation.frame
        return None if centre is None else centre[place] / (frame.width, frame.height)[place]

    return read


def _ground(name: str) -> Callable[[RuleContext], float | None]:
    def read(facts: RuleContext) -> float | None:
        grounds = None if facts.finding is None else facts.finding.heatmap_stats
        return None if grounds is None else getattr(grounds, name)

    return read


def _drop(facts: RuleContext) -> float | None:
    checked = facts.deletion
    same = checked is not None and facts.finding is not None and checked.label == facts.finding.label
    return checked.drop if checked is not None and same else None


class Variable(NamedTuple):
    """A number of one name."""

    read: Callable[[RuleContext], float | None]
    """None: it is not known."""
    minimum: float = 0.0
    """Its lower limit; the upper one is 1."""


DROP: Final = "score_drop_when_masked"
HEAT_INSIDE: Final = "heat_inside"

NUMBERS: Final[Mapping[str, Variable]] = MappingProxyType(
    {
        "score": Variable(lambda facts: 0.0 if facts.finding is None else facts.finding.score),
        "focus_area": Variable(_ground("focus_area")),
        "entropy": Variable(_ground("entropy")),
        "stability": Variable(_ground("stability"), -1.0),
        "centre_x": Variable(_fraction_of(0)),
        "centre_y": Variable(_fraction_of(1)),
        DROP: Variable(_drop, -1.0),
    }
)
"""All but ``heat_inside``, which is one for each region."""


@dataclass(frozen=True, slots=True)
class BoundVariable:
    """A number that a rule goes by."""

    name: str
    """As it is written: ``heat_inside(part)``."""
    read: Callable[[RuleContext], float | None]
    region: str | None = None
    bound: float | None = None
    """What the rule compares it with."""


def heat_inside(region: str) -> BoundVariable:
    """Return the share of the evidence in a region."""

    def read(facts: RuleContext) -> float | None:
        grounds = None if facts.finding is None else facts.finding.heatmap_stats
        return None if grounds is None else grounds.heat_inside.get(region)

    return BoundVariable(f"{HEAT_INSIDE}({region})", read, region)

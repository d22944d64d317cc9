"""What may be said of a finding, by name: the numbers that conditions and rules go by. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from pipeline.frames import Deletion, Explanation, Finding


class Facts(NamedTuple):
    """What is known of one finding of a frame."""

    explanation: Explanation
    finding: Finding | None
    deletion: Deletion | None
    """The camera's last deletion check, while it is fresh."""


def _share_of(place: int) -> Callable[[Facts], float | None]:
    """Return what reads one coordinate of the centre as a share of the frame."""

    def read(facts: Facts) -> float | None:
        centre = None if facts.finding is None or facts.finding.grounds is None else facts.finding.grounds.centre
        frame = facts.explanation.frame
        return None if centre is None else centre[place] / (frame.width, frame.height)[place]

    return read


def _ground(name: str) -> Callable[[Facts], float | None]:
    def read(facts: Facts) -> float | None:
        grounds = None if facts.finding is None else facts.finding.grounds
        return None if grounds is None else getattr(grounds, name)

    return read


def _drop(facts: Facts) -> float | None:
    checked = facts.deletion
    same = checked is not None and facts.finding is not None and checked.label == facts.finding.label
    return checked.drop if checked is not None and same else None


class Number(NamedTuple):
    """A number of one name."""

    read: Callable[[Facts], float | None]
    """None: it is not known."""
    least: float = 0.0
    """Its lower limit; the upper one is 1."""


DROP: Final = "score_drop_when_masked"
HEAT_INSIDE: Final = "heat_inside"

NUMBERS: Final[Mapping[str, Number]] = MappingProxyType(
    {
        "score": Number(lambda facts: 0.0 if facts.finding is None else facts.finding.score),
        "focus_area": Number(_ground("focus_area")),
        "entropy": Number(_ground("entropy")),
        "stability": Number(_ground("stability"), -1.0),
        "centre_x": Number(_share_of(0)),
        "centre_y": Number(_share_of(1)),
        DROP: Number(_drop, -1.0),
    }
)
"""All but ``heat_inside``, which is one for each region."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A number that a rule goes by."""

    name: str
    """As it is written: ``heat_inside(part)``."""
    read: Callable[[Facts], float | None]
    region: str | None = None
    bound: float | None = None
    """What the rule compares it with."""


def heat_inside(region: str) -> Seen:
    """Return the share of the evidence in a region."""

    def read(facts: Facts) -> float | None:
        grounds = None if facts.finding is None else facts.finding.grounds
        return None if grounds is None else grounds.heat_inside.get(region)

    return Seen(f"{HEAT_INSIDE}({region})", read, region)

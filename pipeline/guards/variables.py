"""The numbers that conditions and rules can use by name, and the three-valued logic of their tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from pipeline.frames import DeletionCheck, Explanation, Finding
from pipeline.guards.box_stats import BOX, has_boxes


class RuleContext(NamedTuple):
    """The input for the evaluation of a rule: a finding and its frame."""

    explanation: Explanation
    finding: Finding | None
    deletion: DeletionCheck | None
    """The camera's last deletion check; None if there is none, or it is too old."""
    passage: tuple[str, str] | None = None
    """Kind and zone or line of the part or crossing that ``finding`` decided; None for a finding of the frame."""
    disagrees: bool = False
    """True if a network on trial differs in the frame, or decides the part or crossing otherwise."""


Predicate = Callable[[RuleContext, float], bool | None]
"""Returns whether a test holds if every bound is made stricter by a margin; None if it is unknown."""


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
    if context.finding is not None and context.finding.box is not None:
        return box_drop(context.finding)
    checked = context.deletion
    same = checked is not None and context.finding is not None and checked.label == context.finding.label
    return checked.drop if checked is not None and same else None


def box_drop(finding: Finding) -> float | None:
    """Return the largest decrease of a box's score when one cell is dropped, in the frame of its map."""
    box_map = finding.box_map
    if box_map is None or box_map.against is None:
        return None
    most = float(finding.heat.max())
    return box_map.scale * (most if most > 0.0 else -float(box_map.against.min()))


def _read_outside(context: RuleContext) -> float | None:
    stats = None if context.finding is None else context.finding.heatmap_stats
    inside = None if stats is None else stats.heat_inside.get(BOX)
    return None if inside is None else 1.0 - inside


def _read_track(context: RuleContext) -> float | None:
    return None if context.finding is None else context.finding.track


def _read_count(context: RuleContext) -> float | None:
    explanation = context.explanation
    return len(explanation.findings) if has_boxes(explanation) else None


class Variable(NamedTuple):
    """A number that rules can use: the function that reads it, and its range."""

    read: Callable[[RuleContext], float | None]
    """Returns the number; None if it is not known."""
    minimum: float = 0.0
    """Smallest possible value."""
    maximum: float = 1.0
    """Largest possible value."""
    is_count: bool = False
    """True if the number is a whole number."""
    of_boxes: bool = False
    """True if only the boxes of a detector have the number."""


DROP: Final = "score_drop_when_masked"
HEAT_INSIDE: Final = "heat_inside"
OUTSIDE_BOX: Final = "evidence_outside_box"
BOXES: Final = "boxes"
TRACK: Final = "track"
MAX_BOXES: Final = 1000
MAX_TRACK: Final = 10**9

NUMBERS: Final[Mapping[str, Variable]] = MappingProxyType(
    {
        "score": Variable(lambda context: 0.0 if context.finding is None else context.finding.score),
        "focus_area": Variable(_read_statistic("focus_area")),
        "entropy": Variable(_read_statistic("entropy")),
        "stability": Variable(_read_statistic("stability"), -1.0),
        "centre_x": Variable(_read_centre(0)),
        "centre_y": Variable(_read_centre(1)),
        DROP: Variable(_read_drop, -1.0),
        OUTSIDE_BOX: Variable(_read_outside, of_boxes=True),
        TRACK: Variable(_read_track, maximum=MAX_TRACK, is_count=True, of_boxes=True),
        BOXES: Variable(_read_count, maximum=MAX_BOXES, is_count=True, of_boxes=True),
    }
)
"""All numbers by name, except ``heat_inside``, which exists once for each region."""


@dataclass(frozen=True, slots=True)
class BoundVariable:
    """A number in a rule, with the bound that it is compared with."""

    name: str
    """Name as in the rule: ``heat_inside(part)``."""
    read: Callable[[RuleContext], float | None]
    region: str | None = None
    bound: float | None = None
    """The bound that the rule compares the number with; None if there is none."""

    @property
    def variable(self) -> Variable:
        """The number's range and kind."""
        if self.region is None:
            return NUMBERS[self.name]
        return Variable(self.read, of_boxes=self.region == BOX)


def heat_inside(region: str) -> BoundVariable:
    """Return the number ``heat_inside(region)``: the fraction of the evidence in a region."""

    def read(context: RuleContext) -> float | None:
        stats = None if context.finding is None else context.finding.heatmap_stats
        return None if stats is None else stats.heat_inside.get(region)

    return BoundVariable(f"{HEAT_INSIDE}({region})", read, region)


def negated(test: Predicate) -> Predicate:
    """Return Kleene's "not" of a test."""

    def opposite(context: RuleContext, margin: float) -> bool | None:
        result = test(context, -margin)
        return None if result is None else not result

    return opposite


def combined(tests: Sequence[Predicate], *, decides: bool) -> Predicate:
    """Return Kleene's "or" (``decides`` is True) or "and" (``decides`` is False) of tests."""

    def joint(context: RuleContext, margin: float) -> bool | None:
        results = [test(context, margin) for test in tests]
        if decides in results:
            return decides
        return None if None in results else not decides

    return joint

"""The state of a guard after a frame."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardFigure:
    """The number of a guard's rule that is furthest from its bound in a frame."""

    name: str
    """As in the rule: ``heat_inside(part)``."""
    value: float
    """Its value in this frame."""
    bound: float
    """The number that the rule compares it with."""
    slack: float
    """The largest margin with which the frame meets the rule; negative where it is violated."""


@dataclass(frozen=True, slots=True)
class GuardState:
    """State of a guard after a frame."""

    name: str
    firing: bool
    seconds: float
    """Time since it began to fire, on the frames' clock; 0 while it does not fire."""
    message: str
    """While it fires: the rule and the values of this frame, as text."""
    fire_count: int
    """Number of times it began to fire in this run."""
    figure: GuardFigure | None = None
    """The worst number of this frame, while it fires and the frame violates its rule, if the rule compares numbers."""

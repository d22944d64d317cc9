"""Data types for the state of a guard after a frame."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardFigure:
    """The number in a guard's rule that violates its bound most in a frame."""

    name: str
    """Name as in the rule: ``heat_inside(part)``."""
    value: float
    """Value in this frame."""
    bound: float
    """The bound that the rule compares the value with."""
    slack: float
    """The largest margin with which the frame meets the rule; negative if it violates the rule."""


@dataclass(frozen=True, slots=True)
class GuardState:
    """State of a guard after a frame."""

    name: str
    firing: bool
    seconds: float
    """Time since the guard began to fire, on the stream's clock; 0 while it does not fire."""
    message: str
    """The rule and the values of this frame as text, while the guard fires; else empty."""
    fire_count: int
    """Number of times that the guard began to fire in this run."""
    figure: GuardFigure | None = None
    """The worst number of this frame, if the guard fires and the frame violates a rule that compares numbers."""

"""What ``doctor`` asks of a room: one line per thing a run may need, and the cure where it is missing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is there or not."""

    name: str
    present: bool
    detail: str
    """What was found, or what is missing."""
    hint: str = ""
    """What to do where it is missing; "" where nothing need be done."""

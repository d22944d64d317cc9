"""What ``doctor`` reports for a package: one line per requirement, and the remedy where it is missing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One requirement of a run."""

    name: str
    present: bool
    detail: str
    """What was found, or what is missing."""
    hint: str = ""
    """The remedy where it is missing; empty where none is needed."""

"""Results of ``doctor`` for a package: one per requirement, with the remedy if it is missing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One requirement of a run."""

    name: str
    present: bool
    detail: str
    """The installed version, or what is missing."""
    hint: str = ""
    """The remedy; "" if nothing is missing."""

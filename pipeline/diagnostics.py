"""Results of the command ``doctor``: whether each requirement of a package is met, and the remedy if not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """The result of the check of one requirement."""

    name: str
    present: bool
    detail: str
    """The installed version, or what is missing."""
    hint: str = ""
    """The remedy; "" if nothing is missing."""

"""Limits the time of deletion checks to a fraction of the total time."""

from __future__ import annotations

from typing import Final

_FIRST_GUESS: Final = 2.0
"""Assumed cost of the first check, as a multiple of the cost of a frame."""
_RESERVE: Final = 2.0
"""Saved time before a check may run, and maximum of saved time, as multiples of the cost of a check. A check that takes
twice as long as the previous check is thus still within the budget, and no burst of checks follows a pause."""


class OverheadBudget:
    """Keeps time of checks / (time of work + time of checks) below a fraction.

    A check may run after twice its expected cost has been saved. The fraction is therefore exceeded only if a check
    takes more than twice as long as the previous check.
    """

    def __init__(self, fraction: float) -> None:
        """Set the fraction of the total time that checks may take, above 0 and below 1."""
        self._rate = fraction / (1.0 - fraction)
        self._saved_seconds = 0.0
        self._cost_seconds: float | None = None
        self.work_seconds = 0.0
        self.spent_seconds = 0.0
        self.checks = 0

    def record_work(self, seconds: float, frames: int = 1) -> None:
        """Add the time of work on a number of frames."""
        self.work_seconds += seconds
        if self._cost_seconds is None:
            self._cost_seconds = _FIRST_GUESS * seconds / max(frames, 1)
        self._saved_seconds = min(self._saved_seconds + self._rate * seconds, _RESERVE * self._cost_seconds)

    @property
    def can_run(self) -> bool:
        """True if the budget allows a check now."""
        return self._cost_seconds is not None and self._saved_seconds >= _RESERVE * self._cost_seconds

    def record_overhead(self, seconds: float) -> None:
        """Add the time of a check, which is also the expected cost of the next one."""
        self.spent_seconds += seconds
        self._saved_seconds -= seconds
        self._cost_seconds = seconds
        self.checks += 1

    @property
    def fraction(self) -> float:
        """Fraction of the total time that checks have taken."""
        return self.spent_seconds / max(self.work_seconds + self.spent_seconds, 1e-9)

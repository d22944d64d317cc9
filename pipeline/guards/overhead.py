"""How often something extra may be done: a share of the time that the work itself takes. Pure, but for its counters."""

from __future__ import annotations

from typing import Final

_FIRST_GUESS: Final = 2.0
"""What the first check is taken to cost, in times of what one frame costs."""
_RESERVE: Final = 2.0
"""How many checks' worth must have been saved up for one, and may be: one that takes twice as long as the last is paid
for before it is made, and a pause is no reason for a burst."""


class OverheadBudget:
    """Time earned by work and spent on checks: checks / (work + checks) stays below a share.

    A check is allowed when twice its cost has been earned, so a run's total is ahead of the share only by what one
    check costs above twice the one before.
    """

    def __init__(self, fraction: float) -> None:
        """Take the share of all time that checks may have, above 0 and below 1."""
        self._rate = fraction / (1.0 - fraction)
        self._saved_seconds = 0.0
        self._cost_seconds: float | None = None
        self.work_seconds = 0.0
        self.spent_seconds = 0.0
        self.checks = 0

    def record_work(self, seconds: float, frames: int = 1) -> None:
        """Take note of work that was done on some frames."""
        self.work_seconds += seconds
        if self._cost_seconds is None:
            self._cost_seconds = _FIRST_GUESS * seconds / max(frames, 1)
        self._saved_seconds = min(self._saved_seconds + self._rate * seconds, _RESERVE * self._cost_seconds)

    @property
    def can_run(self) -> bool:
        """Whether there is enough for one check."""
        return self._cost_seconds is not None and self._saved_seconds >= _RESERVE * self._cost_seconds

    def record_overhead(self, seconds: float) -> None:
        """Take note of a check and of what it took: the next one is taken to cost as much."""
        self.spent_seconds += seconds
        self._saved_seconds -= seconds
        self._cost_seconds = seconds
        self.checks += 1

    @property
    def fraction(self) -> float:
        """What checks have taken of all time so far."""
        return self.spent_seconds / max(self.work_seconds + self.spent_seconds, 1e-9)

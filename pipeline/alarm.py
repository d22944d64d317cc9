"""When a guard fires and when it ends: a pure policy on the frames' own clock.

A rule ``claim when condition`` is broken in a frame when its condition is true of the verdict and its claim is false.
Everywhere else it is kept: also where the condition does not apply, and where a number is not known. A guard fires once
its rule has been broken in every frame for ``hold_seconds``, and ends once it has been kept in every frame for
``clear_seconds``, its bounds moved by ``margin`` to be harder to keep. Both start anew after a pause, or when the clock
goes back: nobody knows what was in between.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.condition import Rule
from pipeline.facts import Facts
from pipeline.frames import GuardState
from pipeline.grounds import PAUSE_SECONDS
from pipeline.guards import GuardConfig


class Alarm:
    """One guard of one camera. Used by one thread."""

    def __init__(self, guard: GuardConfig) -> None:
        """Take whose rule and patience it has."""
        self.name = guard.name
        self.rule: Rule = guard.parsed
        self.fired = 0
        self.firing = False
        self._hold_seconds, self._clear_seconds = guard.hold_seconds, guard.clear_seconds
        self._margin = guard.margin
        self._last: float | None = None
        self._turning_since: float | None = None
        """Since when every frame has spoken for a change."""
        self._seconds = 0.0
        self._says = ""
        self._quiet = GuardState(guard.name, firing=False, seconds=0.0, says="", fired=0)

    def judge(self, facts: Facts, moment: float) -> GuardState:
        """Take one frame's verdict and its time, and say how the guard stands then."""
        passed = 0.0 if self._last is None else moment - self._last
        self._last = moment
        if not 0.0 <= passed <= PAUSE_SECONDS:
            self._turning_since = None
        if self.firing:
            self._seconds += max(passed, 0.0)
        broken = self.applies(facts) and self.rule.claim(facts, self._margin if self.firing else 0.0) is False
        if broken:
            self._says = told(self.rule, facts)
        if broken == self.firing:
            self._turning_since = None
            return self.state
        self._turning_since = moment if self._turning_since is None else self._turning_since
        patience = self._clear_seconds if self.firing else self._hold_seconds
        # Half a microsecond: clocks count in fractions that add up to a little less.
        if moment - self._turning_since >= patience - 5e-7:
            self._turn()
        return self.state

    def applies(self, facts: Facts) -> bool:
        """Say whether the rule's condition is true of a verdict."""
        return self.rule.when(facts, 0.0) is True

    @property
    def state(self) -> GuardState:
        """How it stands."""
        if not self.firing:
            return self._quiet
        return GuardState(self.name, firing=True, seconds=round(self._seconds, 3), says=self._says, fired=self.fired)

    def _turn(self) -> None:
        self.firing = not self.firing
        self.fired += self.firing
        self._turning_since, self._seconds = None, 0.0
        self._quiet = replace(self._quiet, fired=self.fired)


def told(rule: Rule, facts: Facts) -> str:
    """Say what a rule wants and what was seen instead."""
    seen = {one.name: one.read(facts) for one in rule.numbers}
    known = {name: value for name, value in seen.items() if value is not None}
    if len(seen) == 1:
        return f"{rule.text}, but is {_shown(next(iter(known.values())))}" if known else rule.text
    numbers = ", ".join(f"{name} is {_shown(value)}" for name, value in known.items())
    return f"{rule.text}, but {numbers}" if numbers else rule.text


def _shown(value: float) -> str:
    """Return a number in two decimals, or in as many as it takes not to be shown as nothing."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"

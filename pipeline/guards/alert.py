"""When a guard fires and when it ends: a pure policy on the frames' own clock.

A rule ``claim when condition`` is broken in a frame when its condition is true of the verdict and its claim is false.
Everywhere else it is kept: also where the condition does not apply, and where a number is not known. A guard fires once
its rule has been broken in every frame for ``hold_seconds``, and ends once it has been kept in every frame for
``clear_seconds``, its bounds moved by ``margin`` to be harder to keep. Both start anew after a pause, or when the clock
goes back: nobody knows what was in between. What a guard says is of the frame that it says it of.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.frames import GuardState
from pipeline.guards.config import GuardConfig
from pipeline.guards.heatmap_stats import PAUSE_SECONDS
from pipeline.guards.parser import Rule
from pipeline.guards.variables import DROP, RuleContext


class AlertState:
    """One guard of one camera. Used by one thread."""

    def __init__(self, guard: GuardConfig) -> None:
        """Take whose rule and patience it has."""
        self.name = guard.name
        self.rule: Rule = guard.parsed
        self.fire_count = 0
        self.firing = False
        self._hold_seconds, self._clear_seconds = guard.hold_seconds, guard.clear_seconds
        self._hysteresis = guard.margin
        self._last: float | None = None
        self._pending_since: float | None = None
        """Since when every frame has spoken for a change."""
        self._seconds = 0.0
        self._broken_seconds = 0.0
        """For how long no frame has broken the rule."""
        self._quiet_state = GuardState(guard.name, firing=False, seconds=0.0, message="", fire_count=0)

    def update(self, facts: RuleContext, timestamp: float) -> GuardState:
        """Take one frame's verdict and its time, and say how the guard stands then."""
        passed = 0.0 if self._last is None else timestamp - self._last
        self._last = timestamp
        if not 0.0 <= passed <= PAUSE_SECONDS:
            self._pending_since = None
        if self.firing:
            self._seconds += max(passed, 0.0)
        broken = (
            self.condition_holds(facts)
            and self.rule.requirement(facts, self._hysteresis if self.firing else 0.0) is False
        )
        self._broken_seconds = 0.0 if broken else self._broken_seconds + max(passed, 0.0)
        if broken == self.firing:
            self._pending_since = None
        else:
            self._pending_since = timestamp if self._pending_since is None else self._pending_since
            patience = self._clear_seconds if self.firing else self._hold_seconds
            # Half a microsecond: clocks count in fractions that add up to a little less.
            if timestamp - self._pending_since >= patience - 5e-7:
                self._toggle()
        if not self.firing:
            return self._quiet_state
        says = describe_violation(self.rule, facts, self._hysteresis) if broken else self._kept(facts)
        return GuardState(
            self.name, firing=True, seconds=round(self._seconds, 3), message=says, fire_count=self.fire_count
        )

    def _kept(self, facts: RuleContext) -> str:
        """Say of a frame that keeps the rule what was seen in it: the guard fires on for ``clear_seconds``."""
        numbers = seen_numbers(self.rule, facts) if self.condition_holds(facts) else ""
        now = f"is kept again: {numbers}" if numbers else "does not apply to this frame"
        return f"{self.rule.text}; {now}; last broken {self._broken_seconds:.1f} s ago"

    def condition_holds(self, facts: RuleContext) -> bool:
        """Say whether the rule's condition is true of a verdict."""
        return self.rule.condition(facts, 0.0) is True

    def _toggle(self) -> None:
        self.firing = not self.firing
        self.fire_count += self.firing
        self._pending_since, self._seconds = None, 0.0
        self._quiet_state = replace(self._quiet_state, fire_count=self.fire_count)


def describe_violation(rule: Rule, facts: RuleContext, margin: float = 0.0) -> str:
    """Say what a rule wants and what was seen in this frame instead.

    Args:
        rule: the rule that is broken.
        facts: the frame's.
        margin: how far from its bound a number must stay while the guard fires.
    """
    numbers = seen_numbers(rule, facts)
    if not numbers:
        return rule.text
    kept = margin and rule.requirement(facts, 0.0) is not False
    return f"{rule.text}{f' by a margin of {margin:g}' if kept else ''}, but {numbers}"


def seen_numbers(rule: Rule, facts: RuleContext) -> str:
    """Return the numbers of this frame that a rule goes by, in words; those that are not known are left out."""
    seen = {one.name: (one.read(facts), one.bound) for one in rule.numbers}
    known = {name: (value, bound) for name, (value, bound) in seen.items() if value is not None}
    return ", ".join(
        f"{'' if len(seen) == 1 else f'{name} '}is {_shown(value, bound)}{_when(name, facts)}"
        for name, (value, bound) in known.items()
    )


def _when(name: str, facts: RuleContext) -> str:
    """Say how old a number is that was measured in an earlier frame."""
    checked = facts.deletion
    if name != DROP or checked is None or checked.age_seconds <= 0:
        return ""
    return f" (measured {checked.age_seconds:.1f} s ago)"


def _shown(value: float, bound: float | None) -> str:
    """Return a number in two decimals, or in as many as it takes not to be shown as nothing, or as its bound."""
    if 0 < abs(value) < 0.005:
        return f"{value:.1g}"
    for decimals in range(2, 7):
        shown = f"{value:.{decimals}f}"
        if bound is None or value == bound or float(shown) != bound:
            break
    return shown

"""Decides when a guard fires and when it ends, on the clock of the frames. Pure.

A rule ``requirement when condition`` is violated in a frame where its condition is true for the top class and its
requirement is false. In all other frames it is met, also where the condition is false or a number is not known. A guard
fires after its rule was violated in every frame for ``hold_seconds``. It ends after the rule was met in every frame for
``clear_seconds``, with bounds made stricter by ``margin``. Both times start again after a pause, or when the clock goes
back. The message of a state describes that frame.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.frames import GuardState
from pipeline.guards.config import GuardConfig
from pipeline.guards.heatmap_stats import PAUSE_SECONDS
from pipeline.guards.parser import Rule
from pipeline.guards.variables import DROP, RuleContext


class AlertState:
    """State of a guard of one camera. Used by one thread."""

    def __init__(self, guard: GuardConfig) -> None:
        """Set the guard's rule and times."""
        self.name = guard.name
        self.rule: Rule = guard.parsed
        self.fire_count = 0
        self.firing = False
        self._hold_seconds, self._clear_seconds = guard.hold_seconds, guard.clear_seconds
        self._hysteresis = guard.margin
        self._last: float | None = None
        self._pending_since: float | None = None
        """Time of the first frame since which every frame calls for a change of state."""
        self._seconds = 0.0
        self._met_seconds = 0.0
        """Time since the last frame that violated the rule."""
        self._quiet_state = GuardState(guard.name, firing=False, seconds=0.0, message="", fire_count=0)

    def update(self, context: RuleContext, timestamp: float) -> GuardState:
        """Evaluate a frame, at its time in seconds, and return the state of the guard."""
        passed = 0.0 if self._last is None else timestamp - self._last
        self._last = timestamp
        if not 0.0 <= passed <= PAUSE_SECONDS:
            self._pending_since = None
        if self.firing:
            self._seconds += max(passed, 0.0)
        violated = (
            self.condition_holds(context)
            and self.rule.requirement(context, self._hysteresis if self.firing else 0.0) is False
        )
        self._met_seconds = 0.0 if violated else self._met_seconds + max(passed, 0.0)
        if violated == self.firing:
            self._pending_since = None
        else:
            self._pending_since = timestamp if self._pending_since is None else self._pending_since
            required_seconds = self._clear_seconds if self.firing else self._hold_seconds
            # Half a microsecond for rounding: sums of frame times may be slightly too small.
            if timestamp - self._pending_since >= required_seconds - 5e-7:
                self._toggle()
        if not self.firing:
            return self._quiet_state
        message = describe_violation(self.rule, context, self._hysteresis) if violated else self._describe_met(context)
        return GuardState(
            self.name, firing=True, seconds=round(self._seconds, 3), message=message, fire_count=self.fire_count
        )

    def _describe_met(self, context: RuleContext) -> str:
        """Return the message for a frame that meets the rule while the guard still fires."""
        numbers = seen_numbers(self.rule, context) if self.condition_holds(context) else ""
        status = f"is met again: {numbers}" if numbers else "does not apply to this frame"
        return f"{self.rule.text}; {status}; last violated {self._met_seconds:.1f} s ago"

    def condition_holds(self, context: RuleContext) -> bool:
        """Return whether the rule's condition is true for a finding."""
        return self.rule.condition(context, 0.0) is True

    def _toggle(self) -> None:
        self.firing = not self.firing
        self.fire_count += self.firing
        self._pending_since, self._seconds = None, 0.0
        self._quiet_state = replace(self._quiet_state, fire_count=self.fire_count)


def describe_violation(rule: Rule, context: RuleContext, margin: float = 0.0) -> str:
    """Return the message for a frame that violates a rule: the rule and the values of the frame.

    Args:
        rule: the violated rule.
        context: the frame.
        margin: how much stricter the bounds are while the guard fires.
    """
    numbers = seen_numbers(rule, context)
    if not numbers:
        return rule.text
    by_margin = margin and rule.requirement(context, 0.0) is not False
    return f"{rule.text}{f' by a margin of {margin:g}' if by_margin else ''}, but {numbers}"


def seen_numbers(rule: Rule, context: RuleContext) -> str:
    """Return the values of a rule's numbers in a frame as text, without unknown ones."""
    seen = {number.name: (number.read(context), number.bound) for number in rule.numbers}
    known = {name: (value, bound) for name, (value, bound) in seen.items() if value is not None}
    return ", ".join(
        f"{'' if len(seen) == 1 else f'{name} '}is {_format(value, bound)}{_format_age(name, context)}"
        for name, (value, bound) in known.items()
    )


def _format_age(name: str, context: RuleContext) -> str:
    """Return the age of a number that was measured on an earlier frame, as text."""
    checked = context.deletion
    if name != DROP or checked is None or checked.age_seconds <= 0:
        return ""
    return f" (measured {checked.age_seconds:.1f} s ago)"


def _format(value: float, bound: float | None) -> str:
    """Return a number with two decimals, or with more where it would look like 0 or like its bound."""
    if 0 < abs(value) < 0.005:
        return f"{value:.1g}"
    for decimals in range(2, 7):
        shown = f"{value:.{decimals}f}"
        if bound is None or value == bound or float(shown) != bound:
            break
    return shown

"""Decides when a guard starts and stops firing, on the stream's clock. Pure state, no I/O.

A frame violates a rule ``requirement when condition`` if, for the top class, the condition is true and the requirement
is false. All other frames meet the rule, including frames for which the condition is false or a number is not known. A
guard fires after every frame has violated its rule for ``hold_seconds``. It stops after every frame has met the rule
for ``clear_seconds``, with bounds that are stricter by ``margin``. Both times start again after a pause, or when the
clock goes back. The message of a state describes the frame of that state.

For a detector, the rule is evaluated for each box. Each track has its own times and its own margin, and a frame without
the track does not violate the rule. The guard fires while it fires for at least one track.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipeline.guards.box_stats import track_key
from pipeline.guards.config import GuardConfig
from pipeline.guards.heatmap_stats import PAUSE_SECONDS
from pipeline.guards.parser import Rule
from pipeline.guards.state import GuardFigure, GuardState
from pipeline.guards.variables import BOXES, DROP, TRACK, BoundVariable, RuleContext

MAX_TRACKS: Final = 1000
"""Maximum number of tracks per guard that are stored after a violation; the most recent violations are kept."""
OF_THIS_FRAME: Final = frozenset({"score", BOXES, TRACK})
"""The numbers of a box that belong to the current frame, because they do not depend on the box's map."""
_TOP_CLASS: Final = "top class"
"""The key of the only subject of a classifier's guard."""
_NO_BOX: Final = "no box"
"""The key of the subject of a guard on the number of boxes, in frames without boxes."""


@dataclass(slots=True)
class _Subject:
    """A top class or a track that violates a rule now, or violated it before."""

    firing: bool = False
    pending_since: float | None = None
    """Time of the first of the consecutive frames that require a change of ``firing``; None if there are none."""
    met_seconds: float = 0.0
    """Time since the last frame that violated the rule."""
    name: str = ""
    """Label and track, for messages; empty for a classifier."""


class AlertState:
    """State of a guard for one camera. For one thread."""

    def __init__(self, guard: GuardConfig) -> None:
        """Create a state that does not fire, with the rule and times of a guard."""
        self.guard, self.name = guard, guard.name
        self.rule: Rule = guard.parsed
        self.fire_count = 0
        self.firing = False
        self._hold_seconds, self._clear_seconds = guard.hold_seconds, guard.clear_seconds
        self._hysteresis = guard.margin
        self._counts_boxes = any(number.name == BOXES for number in self.rule.numbers)
        self._subjects: dict[Hashable, _Subject] = {}
        """The subjects for which the guard fires, or that have violated the rule; other subjects are removed."""
        self._last: float | None = None
        self._seconds = 0.0
        self._quiet_state = GuardState(guard.name, firing=False, seconds=0.0, message="", fire_count=0)

    def update(self, context: RuleContext, timestamp: float) -> GuardState:
        """Evaluate the top class of a frame, and return the state of the guard.

        Args:
            context: the frame with its top class.
            timestamp: time of the frame in seconds, on the stream's clock.
        """
        return self._update({_TOP_CLASS: [context]}, timestamp)

    def update_boxes(self, frame: RuleContext, boxes: Sequence[RuleContext], timestamp: float) -> GuardState:
        """Evaluate all boxes of a frame, and return the state of the guard.

        Args:
            frame: the frame without a finding; a guard on the number of boxes uses it if there are no boxes.
            boxes: one context for each box, with its finding.
            timestamp: time of the frame in seconds, on the stream's clock.
        """
        by_track: dict[Hashable, list[RuleContext]] = {}
        for context in boxes:
            if context.finding is not None:
                by_track.setdefault(track_key(context.explanation.frame, context.finding), []).append(context)
        if not boxes and self._counts_boxes:
            by_track[_NO_BOX] = [frame]
        return self._update(by_track, timestamp)

    def _update(self, contexts: Mapping[Hashable, Sequence[RuleContext]], timestamp: float) -> GuardState:
        """Evaluate the subjects of a frame; a subject violates the rule if at least one of its findings does."""
        passed = 0.0 if self._last is None else timestamp - self._last
        self._last = timestamp
        if not 0.0 <= passed <= PAUSE_SECONDS:
            for subject in self._subjects.values():
                subject.pending_since = None
        if self.firing:
            self._seconds += max(passed, 0.0)
        violations = {key: found for key, each in contexts.items() if (found := self._violations(key, each))}
        for key in [*self._subjects, *(key for key in violations if key not in self._subjects)]:
            self._advance(key, violations.get(key), timestamp, max(passed, 0.0))
        self._forget_oldest()
        self._toggle(firing=any(subject.firing for subject in self._subjects.values()))
        if not self.firing:
            return self._quiet_state
        message, figure = self._describe(contexts, violations)
        seconds = round(self._seconds, 3)
        return GuardState(self.name, firing=True, seconds=seconds, message=message, fire_count=self.fire_count,
                          figure=figure)  # fmt: skip

    def _violations(self, key: Hashable, contexts: Sequence[RuleContext]) -> list[RuleContext]:
        """Return the findings of a subject that violate the rule."""
        subject = self._subjects.get(key)
        margin = self._hysteresis if subject is not None and subject.firing else 0.0
        requirement = self.rule.requirement
        return [each for each in contexts if self.condition_holds(each) and requirement(each, margin) is False]

    def _advance(
        self, key: Hashable, violations: Sequence[RuleContext] | None, timestamp: float, passed: float
    ) -> None:
        """Update the times of a subject by a frame."""
        subject = self._subjects.setdefault(key, _Subject())
        subject.met_seconds += passed
        if violations:
            subject.met_seconds, subject.name = 0.0, _name_of(violations[0])
        if bool(violations) == subject.firing:
            subject.pending_since = None
        else:
            subject.pending_since = timestamp if subject.pending_since is None else subject.pending_since
            required_seconds = self._clear_seconds if subject.firing else self._hold_seconds
            # Half a microsecond is added, because sums of frame times may be slightly too small by rounding.
            if timestamp - subject.pending_since >= required_seconds - 5e-7:
                subject.firing, subject.pending_since = not subject.firing, None
        if not subject.firing and subject.pending_since is None:
            del self._subjects[key]

    def _forget_oldest(self) -> None:
        surplus = len(self._subjects) - MAX_TRACKS
        if surplus > 0:
            for key in heapq.nlargest(surplus, self._subjects, key=lambda key: self._subjects[key].met_seconds):
                del self._subjects[key]

    def _describe(
        self, contexts: Mapping[Hashable, Sequence[RuleContext]], violations: Mapping[Hashable, Sequence[RuleContext]]
    ) -> tuple[str, GuardFigure | None]:
        """Return the message and the worst number of this frame, for the worst track that the guard fires for."""
        firing = {key: subject for key, subject in self._subjects.items() if subject.firing}
        found = [context for key in firing for context in violations.get(key, ())]
        if found:
            worst = min(found, key=lambda context: slack(self.rule, context)) if len(found) > 1 else found[0]
            more = f"; {len(found) - 1} more" if len(found) > 1 else ""
            name = _name_of(worst)
            message = f"{f'{name}: ' if name else ''}{describe_violation(self.rule, worst, self._hysteresis)}{more}"
            return message, worst_figure(self.rule, worst)
        key, latest = min(firing.items(), key=lambda item: item[1].met_seconds)
        message = self._describe_met(contexts.get(key, ()), latest)
        return f"{latest.name}: {message}" if latest.name else message, None

    def _describe_met(self, contexts: Sequence[RuleContext], subject: _Subject) -> str:
        """Return the message for a frame that meets the rule while the guard still fires."""
        numbers = next((seen_numbers(self.rule, each) for each in contexts if self.condition_holds(each)), "")
        status = f"is met again: {numbers}" if numbers else "does not apply to this frame"
        if not contexts:
            status = "is not in this frame"
        return f"{self.rule.text}; {status}; last violated {subject.met_seconds:.1f} s ago"

    def condition_holds(self, context: RuleContext) -> bool:
        """Return whether the rule's condition is true for a finding."""
        return self.rule.condition(context, 0.0) is True

    def _toggle(self, *, firing: bool) -> None:
        if firing == self.firing:
            return
        self.firing = firing
        self.fire_count += firing
        self._seconds = 0.0
        self._quiet_state = replace(self._quiet_state, fire_count=self.fire_count)


def _name_of(context: RuleContext) -> str:
    """Return the label and track of a box as text; empty for a classifier."""
    finding = context.finding
    if finding is None or finding.box is None:
        return ""
    return finding.label if finding.track is None else f"{finding.label} #{finding.track}"


def slack(rule: Rule, context: RuleContext) -> float:
    """Return the largest margin with which a finding meets a rule; negative if it violates the rule."""
    distances = [
        abs(value - number.bound)
        for number in rule.numbers
        if number.bound is not None and (value := number.read(context)) is not None
    ]
    # The rule changes its value only at margins at which a bound equals a number.
    for margin in sorted({sign * distance for distance in distances for sign in (1.0, -1.0)}, reverse=True):
        if rule.requirement(context, margin - 1e-9) is not False:
            return margin
    return -math.inf


def worst_figure(rule: Rule, context: RuleContext) -> GuardFigure | None:
    """Return the number that decides how far a finding violates a rule; None if no number is known."""
    known = [
        (number, value, number.bound)
        for number in rule.numbers
        if number.bound is not None and (value := number.read(context)) is not None
    ]
    if not known:
        return None
    margin = slack(rule, context)
    number, value, bound = min(known, key=lambda item: abs(abs(item[1] - item[2]) - abs(margin)))
    return GuardFigure(number.name, float(value), float(bound), margin)


def describe_violation(rule: Rule, context: RuleContext, margin: float = 0.0) -> str:
    """Return the message for a frame that violates a rule: the rule and the values of the frame.

    Args:
        rule: the violated rule.
        context: the frame and its finding.
        margin: number by which the bounds are stricter while the guard fires.
    """
    numbers = seen_numbers(rule, context)
    if not numbers:
        return rule.text
    by_margin = margin and rule.requirement(context, 0.0) is not False
    return f"{rule.text}{f' by a margin of {margin:g}' if by_margin else ''}, but {numbers}"


def seen_numbers(rule: Rule, context: RuleContext) -> str:
    """Return the known values of a rule's numbers in a frame as text."""
    seen = {number.name: number for number in rule.numbers}
    known = {name: value for name, number in seen.items() if (value := number.read(context)) is not None}
    return ", ".join(
        f"{'' if len(seen) == 1 else f'{name} '}is {_format(value, seen[name])}{_format_age(name, context)}"
        for name, value in known.items()
    )


def _format_age(name: str, context: RuleContext) -> str:
    """Return the age of a number as text, if it was measured on an earlier frame; else an empty text."""
    finding = context.finding
    if finding is not None and finding.box_map is not None:
        age_seconds = finding.box_map.age_seconds
        return f" (measured {age_seconds:.1f} s ago)" if age_seconds >= 0.05 and name not in OF_THIS_FRAME else ""
    checked = context.deletion
    if name != DROP or checked is None or checked.age_seconds <= 0:
        return ""
    return f" (measured {checked.age_seconds:.1f} s ago)"


def _format(value: float, number: BoundVariable) -> str:
    """Return a number with two decimals, or with more if it would look equal to 0 or to its bound."""
    if number.variable.is_count:
        return f"{value:.0f}"
    bound = number.bound
    if 0 < abs(value) < 0.005:
        return f"{value:.1g}"
    for decimals in range(2, 7):
        shown = f"{value:.{decimals}f}"
        if bound is None or value == bound or float(shown) != bound:
            break
    return shown

"""Derives the start, changes and end of events from the overlays of cameras. The caller passes all times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from overlays.events.event import MAX_TEXT, Change, Event, EventKind, Figure, Observation, new_event_id
from overlays.wire.text import replace_undecodable
from pipeline.frames import Finding, Overlay
from pipeline.guards.state import GuardState

EVIDENCE_SECONDS: Final = 1.0
"""Minimum time between two changes of the frame that represents an event, in seconds."""
SEEN_SECONDS: Final = 10.0
"""Interval in seconds between reports of an open event. After a killed run, the event ends at its last report."""

Observer = Callable[[Overlay], Iterable[Observation]]
"""Returns the observations in a frame. Called for every frame, so it must be fast if there are none."""
_Key = tuple[EventKind, str, str]


@dataclass(slots=True)
class _OpenEvent:
    """An event that has not ended."""

    event: Event
    ends_after: float
    """Seconds without an observation after which the event ends."""
    overlay: Overlay | None = None
    """The worst frame, if it is not reported yet."""
    reported_at: float = -math.inf
    evidence_at: float = -math.inf
    is_paused: bool = False
    """True if the event was not observed in the newest frame."""


class EventTracker:
    """Tracks the open events of all cameras. Only one thread may use it."""

    def __init__(self, observers: Sequence[Observer], *, gap_seconds: float = 2.0) -> None:
        """Create a tracker without open events.

        Args:
            observers: return the observations in each frame.
            gap_seconds: time without an observation after which an event ends. Shorter interruptions do not end it.
        """
        self._observers = observers
        self._gap_seconds = gap_seconds
        self._open: dict[str, dict[_Key, _OpenEvent]] = {}
        self.begun_count = 0
        """Number of events that have started."""

    @property
    def open_count(self) -> int:
        """Number of open events."""
        return sum(map(len, self._open.values()))

    def update(self, overlay: Overlay, taken_unix: float) -> list[Change]:
        """Return the changes of events caused by a frame or by a report of a signal loss.

        Args:
            overlay: the frame, or the report of the signal loss.
            taken_unix: time of the frame or of the report, in Unix seconds.
        """
        camera = overlay.explanation.frame.camera
        if (loss := overlay.signal_loss) is not None:
            why = replace_undecodable(loss.reason or loss.state) or "no reason is known"
            return self.lost(camera, taken_unix - loss.seconds, taken_unix, why, overlay)
        observed = [item for observer in self._observers for item in observer(overlay)]
        if not observed and camera not in self._open:
            return []
        changes = self.returned(camera, taken_unix)
        changes += [change for item in observed for change in self._observe(camera, item, overlay, taken_unix)]
        keys = {_key(item) for item in observed}
        for key, current in list(self._open.get(camera, {}).items()):
            if key not in keys and key[0] != "drift":
                current.is_paused = True
                if not 0.0 <= taken_unix - current.event.seen < current.ends_after:
                    changes.append(self._end(camera, key, current.event.seen if current.ends_after else taken_unix))
        return changes

    def lost(
        self, camera: str, since_unix: float, now_unix: float, why: str, overlay: Overlay | None = None
    ) -> list[Change]:
        """Return the changes of events caused by a signal loss.

        Args:
            camera: the camera.
            since_unix: time of the camera's last frame in Unix seconds.
            now_unix: current time in Unix seconds.
            why: reason of the signal loss.
            overlay: the camera's last frame.
        """
        seconds = max(now_unix - since_unix, 0.0)
        loss = Observation("signal_loss", "signal loss", why[:MAX_TEXT], seconds=seconds)
        return self._observe(camera, loss, overlay, now_unix)

    def returned(self, camera: str, taken_unix: float) -> list[Change]:
        """Return the end of the camera's signal loss, if there is one, because a frame has arrived."""
        keys = [key for key in self._open.get(camera, {}) if key[0] == "signal_loss"]
        return [self._end(camera, key, taken_unix) for key in keys]

    def drift(self, observed: Mapping[str, Sequence[Observation]], now_unix: float) -> list[Change]:
        """Return the changes of drift events, given the current drift observations by camera."""
        changes = []
        for camera in list(self._open):
            keys = {_key(item) for item in observed.get(camera, ())}
            over = [key for key in self._open[camera] if key[0] == "drift" and key not in keys]
            changes += [self._end(camera, key, now_unix) for key in over]
        for camera, items in observed.items():
            changes += [change for item in items for change in self._observe(camera, item, None, now_unix)]
        return changes

    def end_camera(self, camera: str, now_unix: float) -> list[Change]:
        """End all events of a camera that left the run, and return the changes."""
        return [self._end(camera, key, now_unix) for key in list(self._open.get(camera, {}))]

    def end_all(self, now_unix: float) -> list[Change]:
        """End all events at the end of a run, and return the changes."""
        return [change for camera in list(self._open) for change in self.end_camera(camera, now_unix)]

    def _observe(self, camera: str, seen: Observation, overlay: Overlay | None, taken_unix: float) -> list[Change]:
        key = _key(seen)
        events = self._open.setdefault(camera, {})
        current = events.get(key)
        if current is not None and current.is_paused:
            current.is_paused = False
            if not 0.0 <= taken_unix - current.event.seen <= current.ends_after:
                ended = self._end(camera, key, current.event.seen)
                return [ended, *self._observe(camera, seen, overlay, taken_unix)]
        if current is None:
            event = _begun(camera, seen, taken_unix)
            self.begun_count += 1
            if seen.is_instant:
                self._discard_empty(camera)
                return [Change(replace(event, end=taken_unix), seen.overlay or overlay)]
            waits = 0.0 if seen.kind == "signal_loss" else self._gap_seconds
            events[key] = _OpenEvent(event, waits, None, taken_unix, taken_unix)
            return [Change(event, overlay)]
        current.event = replace(current.event, seen=taken_unix)
        if seen.kind == "signal_loss":
            current.event = replace(current.event, text=seen.text)
        elif _is_worse(seen, current.event):
            current.event, current.overlay = replace(current.event, **_worst(seen)), overlay
        due = current.overlay is not None and taken_unix - current.evidence_at >= EVIDENCE_SECONDS
        if not due and 0.0 <= taken_unix - current.reported_at < SEEN_SECONDS:
            return []
        change = Change(current.event, current.overlay if due else None)
        current.reported_at = taken_unix
        if due:
            current.overlay, current.evidence_at = None, taken_unix
        return [change]

    def _end(self, camera: str, key: _Key, end_unix: float) -> Change:
        current = self._open[camera].pop(key)
        self._discard_empty(camera)
        event = replace(current.event, end=max(end_unix, current.event.start))
        return Change(event, current.overlay)

    def _discard_empty(self, camera: str) -> None:
        if not self._open.get(camera):
            self._open.pop(camera, None)


def _key(seen: Observation) -> _Key:
    return (seen.kind, seen.rule, seen.subject)


def _begun(camera: str, seen: Observation, taken_unix: float) -> Event:
    start = taken_unix - max(seen.seconds, 0.0)
    name, rule = replace_undecodable(camera), replace_undecodable(seen.rule)[:MAX_TEXT]
    event = Event(new_event_id(start), seen.kind, name, rule, "", start, taken_unix)
    return replace(event, **_worst(seen))


def _worst(seen: Observation) -> dict[str, Any]:
    """Return the fields of an event that describe its worst frame."""
    finding = seen.finding
    label = None if finding is None else replace_undecodable(finding.label)[:MAX_TEXT]
    return {
        "text": replace_undecodable(seen.text)[:MAX_TEXT],
        "label": label,
        "score": None if finding is None else float(finding.score),
        "track": None if finding is None else finding.track,
        "figure": seen.figure,
    }


def _is_worse(seen: Observation, event: Event) -> bool:
    """Return whether an observation is worse (has less slack) than the event's current figure."""
    if seen.figure is None:
        return False
    return event.figure is None or seen.figure.slack < event.figure.slack


def observe_guards(overlay: Overlay) -> list[Observation]:
    """Return one observation for each firing guard."""
    explanation = overlay.explanation
    if not explanation.guards:
        return []
    top = explanation.top_scoring
    return [_observe_guard(guard, explanation.findings, top) for guard in explanation.guards if guard.firing]


def _observe_guard(guard: GuardState, findings: Sequence[Finding], top: Finding | None) -> Observation:
    worst = guard.figure
    figure = None if worst is None else Figure(worst.name, worst.value, worst.bound, worst.slack)
    finding = _of_message(findings, guard.message) or top
    return Observation("guard", guard.name, guard.message, finding, figure, guard.seconds)


def _of_message(findings: Sequence[Finding], message: str) -> Finding | None:
    """Return the box whose label and track number start a guard's message; None if there is none."""
    boxes = (finding for finding in findings if finding.box is not None and finding.track is not None)
    return next((box for box in boxes if message.startswith(f"{box.label} #{box.track}: ")), None)


def make_condition_observer(text: str, condition: Callable[..., bool]) -> Observer:
    """Return an observer of frames that meet ``condition``; ``text`` is the condition as written."""

    def observe(overlay: Overlay) -> list[Observation]:
        explanation = overlay.explanation
        if not condition(explanation):
            return []
        top = explanation.top_scoring
        score = 0.0 if top is None else float(top.score)
        words = text if top is None else f"{text}; {top.label} {score:.0%}"
        # The frame with the highest score represents the event.
        figure = None if top is None else Figure("highest score", score, None, -score)
        return [Observation("condition", text, words, top, figure)]

    return observe


def observe_disagreement(overlay: Overlay) -> list[Observation]:
    """Return an observation if the findings of a trial network differ from the first network's."""
    explanation, trial = overlay.explanation, overlay.explanation.trial
    if trial is None or not trial.difference:
        return []
    return [Observation("disagreement", trial.name, trial.difference, explanation.top_scoring)]

"""From a viewer to sinks: what ``run.py view`` does, with every sink behind a queue of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from overlays.render.stale import format_duration, stale_overlay
from overlays.wire.viewer import ReceivedFrame, Viewer
from pipeline.errors import WireError
from pipeline.frames import Explanation, Overlay, SignalLoss
from pipeline.guards.metrics import guard_metrics, heatmap_metrics
from pipeline.outputs import make_sink_worker
from pipeline.ports import MetricSample, Sink
from pipeline.result import RunObserver, RunResult
from pipeline.signal_loss import SILENT_INTERVALS
from pipeline.stats import Histogram, RunStats, update_mean_interval
from pipeline.workers.queue import QueueWorker

SILENCE_SECONDS = 2.0
"""After so long without a message it is said."""
_SAY_EVERY_SECONDS = 5.0
_TOO_MANY = "at most 64 are passed on; name those that you want: --camera NAME"
_GREY_EVERY_SECONDS = 1.0
MAX_CAMERAS = 64
"""Cameras that are passed on: each costs every sink memory, an encoder or a file of its own."""


@dataclass
class ForwardStats:
    """What a viewer saw."""

    frames: int = 0
    missed: int = 0
    damaged: int = 0
    left_out: int = 0
    """Messages of cameras beyond the first ``MAX_CAMERAS``."""
    age: Histogram = field(default_factory=Histogram)
    sink_workers: list[QueueWorker[Overlay]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """A few sentences for people."""
        p50, p99 = self.age.quantile(0.5) * 1e3, self.age.quantile(0.99) * 1e3
        ages = f"age p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        count = f"{self.frames} frame{'' if self.frames == 1 else 's'}"
        told = [f"{count} seen, {self.missed} missed, {self.damaged} damaged; {ages}"]
        if self.left_out:
            told.append(f"{self.left_out} messages of further cameras left out: {_TOO_MANY}")
        for sink_worker in self.sink_workers:
            refused = f", {sink_worker.refused} refused ({sink_worker.refusal})" if sink_worker.refused else ""
            told.append(
                f"{sink_worker.name}: {sink_worker.delivered} delivered, {sink_worker.dropped} dropped{refused}"
            )
        return told


def forward(
    viewer: Viewer,
    sinks: Sequence[Sink],
    *,
    stop: threading.Event,
    cameras: Sequence[str] = (),
    frames: int | None = None,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
) -> ForwardStats:
    """Put what a viewer receives into sinks until ``stop`` is set, a limit is reached, or the window is closed.

    Args:
        viewer: entered.
        sinks: entered.
        stop: ends it.
        cameras: these alone, where any are named: a topic brings all cameras whose names begin with it.
        frames: stop after so many.
        seconds: stop after so long.
        say: told when nothing comes, and when it comes again.
    """
    kept = StaleFrames()
    seen = ForwardStats(sink_workers=[make_sink_worker(sink, sink.put) for sink in sinks])
    _notify_observers(sinks, seen, kept)
    until = None if seconds is None else time.monotonic() + seconds
    with ExitStack() as stack:
        for sink_worker in seen.sink_workers:
            stack.enter_context(sink_worker)
        said, admitted = _Said(say), _Admitted(seen, cameras, say)
        for received in map(admitted.only, viewer.messages_or_silence(stop)):
            now = time.monotonic()
            if received is None:
                said.silence(viewer, now, kept.patience_seconds(viewer.problem))
            elif (overlay := _forward_frame(received, viewer, seen)) is not None:
                said.signal(viewer, now)
                kept.update(overlay, now)
            for stale in kept.stale(now, viewer.problem):
                for sink_worker in seen.sink_workers:
                    sink_worker.put(stale)
            if seen.frames == frames or (until is not None and now >= until) or _closed(seen.sink_workers):
                break
    seen.damaged = viewer.damaged
    for sink_worker in seen.sink_workers:
        if sink_worker.error is not None:
            seen.errors.append(str(sink_worker.error))
    return seen


def _notify_observers(sinks: Sequence[Sink], seen: ForwardStats, kept: StaleFrames) -> None:
    """Give the page the figures and troubles of the sinks beside it, and what the last explanations say."""
    here = RunResult(RunStats([]), [], seen.sink_workers, (*sinks, kept))
    for sink in sinks:
        if isinstance(sink, RunObserver):
            sink.on_run_start(here)


class _Admitted:
    """The cameras that are passed on: those that were named, or the first ones that come."""

    def __init__(self, seen: ForwardStats, wanted: Sequence[str], say: Callable[[str], None]) -> None:
        self._seen, self._say = seen, say
        self._wanted = frozenset(wanted)
        self._names: set[str] = set()

    def only(self, received: ReceivedFrame | None) -> ReceivedFrame | None:
        """Return a message of a camera that is passed on; None for any other, as if nothing had come."""
        if received is None or (self._wanted and received.camera not in self._wanted):
            return None
        camera = received.camera
        if not self._wanted and camera not in self._names and len(self._names) >= MAX_CAMERAS:
            if not self._seen.left_out:
                self._say(f"camera {camera[:80]!r} and others are left out: {_TOO_MANY}")
            self._seen.left_out += 1
            return None
        self._names.add(camera)
        return received


class _Said:
    """Says that nothing comes, and why, every few seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.silent = False
        self._say = say
        self._said_at = self._silent_since = 0.0

    def signal(self, viewer: Viewer, now: float) -> None:
        """Note that a picture came, and say so where silence was told."""
        if self.silent:
            self._say(f"signal from {viewer.uri} again after {format_duration(now - self._silent_since)}")
        self.silent = False

    def silence(self, viewer: Viewer, now: float, patience_seconds: float) -> None:
        """Say that nothing comes, once it is worth saying and not too often."""
        seconds = viewer.silent_seconds
        if seconds > patience_seconds and (not self.silent or now - self._said_at > _SAY_EVERY_SECONDS):
            why = f": {viewer.problem}" if viewer.problem else ""
            self._say(f"no signal from {viewer.uri} for {format_duration(seconds)}{why}; waiting for it")
            self.silent, self._said_at, self._silent_since = True, now, now - seconds


@dataclass(frozen=True, slots=True)
class _Last:
    """What came last of a camera."""

    explanation: Explanation
    live_at: float
    interval_seconds: float = 0.0
    """The usual time between two pictures; 0 before the second."""

    def followed_by(self, explanation: Explanation, now: float) -> _Last:
        """Return the next one."""
        return _Last(explanation, now, update_mean_interval(self.interval_seconds, now - self.live_at))

    def patience_seconds(self, reason: str) -> float:
        """Return how long nothing may come: a slow camera takes its time, but not where it is known why."""
        return SILENCE_SECONDS if reason else max(SILENCE_SECONDS, SILENT_INTERVALS * self.interval_seconds)


class StaleFrames:
    """The last picture of each camera, shown grey while nothing comes: what stands still must not look live."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}
        """By camera; of its last live picture."""
        self._changed_at: dict[str, float] = {}
        """When each camera's picture, live or grey, was last put."""

    def update(self, overlay: Overlay, now: float) -> None:
        """Take note of what came: a live picture, or one that the publisher has made grey itself."""
        camera = overlay.explanation.frame.camera
        if camera not in self._changed_at and len(self._changed_at) >= MAX_CAMERAS:
            return
        self._changed_at[camera] = now
        if overlay.signal_loss is None:
            last = self._last.get(camera)
            explanation = overlay.explanation
            self._last[camera] = last.followed_by(explanation, now) if last else _Last(explanation, now)

    def patience_seconds(self, reason: str = "") -> float:
        """Return after how long without any picture it is said; ``reason``: why nothing comes, where that is known."""
        return min((last.patience_seconds(reason) for last in self._last.values()), default=SILENCE_SECONDS)

    def metrics(self) -> list[MetricSample]:
        """Return how the guards of each camera stand, and where its last heat lies; for any thread."""
        told: list[MetricSample] = []
        for camera, last in list(self._last.items()):
            told.extend(guard_metrics(camera, last.explanation.guards))
            told.extend(heatmap_metrics(last.explanation))
        return told

    def stale(self, now: float, reason: str = "") -> list[Overlay]:
        """Return what is to be shown of cameras that are silent: at most once a second each."""
        due: list[Overlay] = []
        for camera, last in self._last.items():
            quiet, silent = now - self._changed_at[camera] > _GREY_EVERY_SECONDS, now - last.live_at
            if quiet and silent > last.patience_seconds(reason):
                self._changed_at[camera] = now
                due.append(stale_overlay(last.explanation, SignalLoss(silent, "", reason)))
        return due


def _forward_frame(received: ReceivedFrame, viewer: Viewer, seen: ForwardStats) -> Overlay | None:
    """Put one message into every outlet and return it; None when its picture is damaged."""
    try:
        overlay = received.overlay()
    except WireError as error:
        viewer.leave_out(error)
        return None
    if overlay.signal_loss is None:
        seen.frames += 1
        seen.missed += received.missed
        seen.age.add(max(received.age_seconds(), 0.0))
    for sink_worker in seen.sink_workers:
        sink_worker.put(overlay)
    return overlay


def _closed(sink_workers: Sequence[QueueWorker[Overlay]]) -> bool:
    return any(o.stop_requested.is_set() for o in sink_workers) or all(o.failed for o in sink_workers)

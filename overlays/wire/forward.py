"""Forwarding from a viewer to sinks: what ``run.py view`` does, each sink behind its own queue."""

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
from pipeline.ports import MetricSample, Part, Sink
from pipeline.result import RunResult
from pipeline.signal_loss import SILENT_INTERVALS
from pipeline.stats import Histogram, RunStats, update_mean_interval
from pipeline.workers.queue import QueueWorker

SIGNAL_LOSS_SECONDS = 2.0
"""After this time without a message, the signal counts as lost."""
_REPORT_SECONDS = 5.0
_TOO_MANY = "at most 64 are forwarded; name the cameras to forward: --camera NAME"
_STALE_SECONDS = 1.0
MAX_CAMERAS = 64
"""Maximum number of forwarded cameras: each costs every sink memory, an encoder or a file."""


@dataclass
class ForwardStats:
    """Statistics of a viewer."""

    frames: int = 0
    missed: int = 0
    damaged: int = 0
    left_out: int = 0
    """Number of messages of cameras beyond the first ``MAX_CAMERAS``."""
    age: Histogram = field(default_factory=Histogram)
    sink_workers: list[QueueWorker[Overlay]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The statistics as a few lines of text."""
        p50, p99 = self.age.quantile(0.5) * 1e3, self.age.quantile(0.99) * 1e3
        ages = f"age p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        count = f"{self.frames} frame{'' if self.frames == 1 else 's'}"
        lines = [f"{count} received, {self.missed} missed, {self.damaged} damaged; {ages}"]
        if self.left_out:
            lines.append(f"{self.left_out} messages of further cameras left out: {_TOO_MANY}")
        for sink_worker in self.sink_workers:
            refused = f", {sink_worker.refused} refused ({sink_worker.refusal})" if sink_worker.refused else ""
            lines.append(
                f"{sink_worker.name}: {sink_worker.delivered} delivered, {sink_worker.dropped} dropped{refused}"
            )
        return lines


def forward(
    viewer: Viewer,
    sinks: Sequence[Sink],
    *,
    stop: threading.Event,
    cameras: Sequence[str] = (),
    frames: int | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> ForwardStats:
    """Put what a viewer receives into sinks until ``stop`` is set, a limit is reached, or the window is closed.

    Args:
        viewer: an entered viewer.
        sinks: entered sinks.
        stop: ends the loop.
        cameras: forward only these cameras, if any are named: a topic selects all cameras with its prefix.
        frames: maximum number of frames.
        seconds: maximum duration.
        report: called with a line of text when the signal is lost, and when it returns.

    Returns:
        The statistics; ``errors`` holds the errors of sinks that failed.
    """
    last_frames = StaleFrames()
    stats = ForwardStats(sink_workers=[make_sink_worker(sink, sink.put) for sink in sinks])
    _notify_observers(sinks, stats, last_frames)
    deadline = None if seconds is None else time.monotonic() + seconds
    with ExitStack() as stack:
        for sink_worker in stats.sink_workers:
            stack.enter_context(sink_worker)
        reporter, camera_filter = _SignalReporter(report), _CameraFilter(stats, cameras, report)
        for received in map(camera_filter.select, viewer.messages_or_none(stop)):
            now = time.monotonic()
            if received is None:
                reporter.handle_nothing(viewer, now, last_frames.timeout_seconds(viewer.problem))
            elif (overlay := _forward_frame(received, viewer, stats)) is not None:
                reporter.handle_frame(viewer, now)
                last_frames.update(overlay, now)
            for stale in last_frames.stale(now, viewer.problem):
                for sink_worker in stats.sink_workers:
                    sink_worker.put(stale)
            if stats.frames == frames or (deadline is not None and now >= deadline) or _closed(stats.sink_workers):
                break
    stats.damaged = viewer.damaged
    for sink_worker in stats.sink_workers:
        if sink_worker.error is not None:
            stats.errors.append(str(sink_worker.error))
    return stats


def _notify_observers(sinks: Sequence[Sink], stats: ForwardStats, last_frames: StaleFrames) -> None:
    """Give the page the metrics and problems of the sinks beside it, and of the last explanations."""
    result = RunResult(RunStats([]), [], stats.sink_workers, (*sinks, last_frames))
    for sink in sinks:
        sink.on_run_start(result)


class _CameraFilter:
    """Selects the cameras to forward: the named ones, or the first ``MAX_CAMERAS`` that send."""

    def __init__(self, stats: ForwardStats, cameras: Sequence[str], report: Callable[[str], None]) -> None:
        self._stats, self._report = stats, report
        self._cameras = frozenset(cameras)
        self._names: set[str] = set()

    def select(self, received: ReceivedFrame | None) -> ReceivedFrame | None:
        """Return the message if its camera is forwarded, otherwise None."""
        if received is None or (self._cameras and received.camera not in self._cameras):
            return None
        camera = received.camera
        if not self._cameras and camera not in self._names and len(self._names) >= MAX_CAMERAS:
            if not self._stats.left_out:
                self._report(f"camera {camera[:80]!r} and others are left out: {_TOO_MANY}")
            self._stats.left_out += 1
            return None
        self._names.add(camera)
        return received


class _SignalReporter:
    """Reports the loss of the signal with its reason every few seconds, and its return."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.is_lost = False
        self._report = report
        self._reported_at = self._lost_since = 0.0

    def handle_frame(self, viewer: Viewer, now: float) -> None:
        """Report the return of the signal if its loss was reported."""
        if self.is_lost:
            self._report(f"signal from {viewer.uri} again after {format_duration(now - self._lost_since)}")
        self.is_lost = False

    def handle_nothing(self, viewer: Viewer, now: float, timeout_seconds: float) -> None:
        """Report the loss of the signal after ``timeout_seconds``, and again every few seconds."""
        seconds = viewer.silent_seconds
        if seconds > timeout_seconds and (not self.is_lost or now - self._reported_at > _REPORT_SECONDS):
            why = f": {viewer.problem}" if viewer.problem else ""
            self._report(f"no signal from {viewer.uri} for {format_duration(seconds)}{why}; waiting for it")
            self.is_lost, self._reported_at, self._lost_since = True, now, now - seconds


@dataclass(frozen=True, slots=True)
class _LastFrame:
    """The last live frame of a camera."""

    explanation: Explanation
    live_at: float
    interval_seconds: float = 0.0
    """Mean time between two frames; 0 before the second."""

    def followed_by(self, explanation: Explanation, now: float) -> _LastFrame:
        """Return the state after the next frame."""
        return _LastFrame(explanation, now, update_mean_interval(self.interval_seconds, now - self.live_at))

    def timeout_seconds(self, reason: str) -> float:
        """Return the time until signal loss: longer for a slow camera, unless the reason of the loss is known."""
        return SIGNAL_LOSS_SECONDS if reason else max(SIGNAL_LOSS_SECONDS, SILENT_INTERVALS * self.interval_seconds)


class StaleFrames(Part):
    """The last frame of each camera, shown grey during a signal loss: a frozen image must not look live."""

    def __init__(self) -> None:
        self._last: dict[str, _LastFrame] = {}
        """By camera."""
        self._changed_at: dict[str, float] = {}
        """When the last overlay of each camera, live or grey, was forwarded."""

    def update(self, overlay: Overlay, now: float) -> None:
        """Record a received overlay: a live one, or one that the publisher has made grey."""
        camera = overlay.explanation.frame.camera
        if camera not in self._changed_at and len(self._changed_at) >= MAX_CAMERAS:
            return
        self._changed_at[camera] = now
        if overlay.signal_loss is None:
            last = self._last.get(camera)
            explanation = overlay.explanation
            self._last[camera] = last.followed_by(explanation, now) if last else _LastFrame(explanation, now)

    def timeout_seconds(self, reason: str = "") -> float:
        """Return the time without any message until signal loss; ``reason``: why nothing arrives, if known."""
        return min((last.timeout_seconds(reason) for last in self._last.values()), default=SIGNAL_LOSS_SECONDS)

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of each camera's guards and last heat map; for any thread."""
        samples: list[MetricSample] = []
        for camera, last in list(self._last.items()):
            samples.extend(guard_metrics(camera, last.explanation.guards))
            samples.extend(heatmap_metrics(last.explanation))
        return samples

    def stale(self, now: float, reason: str = "") -> list[Overlay]:
        """Return grey overlays of the cameras with signal loss, at most once a second per camera."""
        due: list[Overlay] = []
        for camera, last in self._last.items():
            is_due, lost_seconds = now - self._changed_at[camera] > _STALE_SECONDS, now - last.live_at
            if is_due and lost_seconds > last.timeout_seconds(reason):
                self._changed_at[camera] = now
                due.append(stale_overlay(last.explanation, SignalLoss(lost_seconds, "", reason)))
        return due


def _forward_frame(received: ReceivedFrame, viewer: Viewer, stats: ForwardStats) -> Overlay | None:
    """Put one message into every sink and return it; None if its image is damaged."""
    try:
        overlay = received.overlay()
    except WireError as error:
        viewer.handle_damaged(error)
        return None
    if overlay.signal_loss is None:
        stats.frames += 1
        stats.missed += received.missed
        stats.age.add(max(received.age_seconds(), 0.0))
    for sink_worker in stats.sink_workers:
        sink_worker.put(overlay)
    return overlay


def _closed(sink_workers: Sequence[QueueWorker[Overlay]]) -> bool:
    return any(w.stop_requested.is_set() for w in sink_workers) or all(w.failed for w in sink_workers)

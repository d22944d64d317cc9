"""The whole journey on one page: frames in, explanations, pictures, out through every door."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pipeline.errors import FrameError, ReciproStreamError, WireError
from pipeline.finite import unsound
from pipeline.frames import Explanation, Frame, Overlay, SignalLoss
from pipeline.ports import (
    AsyncExplainer,
    Explainer,
    HasMetrics,
    HasProblems,
    MetricSample,
    Overflow,
    PostBatchHook,
    Preparer,
    Renderer,
    Sink,
    Source,
)
from pipeline.signal_loss import SignalLossDetector
from pipeline.stats import RunStats
from pipeline.workers import QueueWorker, SourceWorker, iter_batches


@dataclass(frozen=True, slots=True)
class RunLimits:
    """When a run ends by itself, and how much may wait in it."""

    frames: int | None = None
    """Stop after so many explained frames, of all cameras together."""
    seconds: float | None = None
    """Stop after so long."""
    batch_size: int = 8
    """Frames in a batch at the most."""
    batch_window_seconds: float = 0.0
    """How long a batch waits for more cameras."""
    queue_frames: int = 2
    """Frames of a camera that may wait for the engine."""
    max_age_seconds: float | None = None
    """A live camera's frame that is older is dropped, before the engine and before it is drawn; None = never."""
    sink_queue_frames: int = 16
    """Overlays that may wait for a recorder or a log; for a window or the network the two newest may."""


@dataclass(slots=True)
class RunResult:
    """How a run went."""

    stats: RunStats
    source_workers: list[SourceWorker]
    sink_workers: list[QueueWorker[Overlay]]
    """Each sink's thread and queue."""
    parts: Sequence[object] = ()
    """The explainer, the renderer and the sinks: whatever may have figures or troubles of its own."""
    errors: list[str] = field(default_factory=list)
    """What ended a camera or a sink before its time, one sentence each."""
    seconds: float = 0.0

    @property
    def received(self) -> int:
        """Frames that all sources gave."""
        return sum(worker.received for worker in self.source_workers)

    @property
    def dropped(self) -> int:
        """Frames dropped before the engine."""
        return sum(worker.dropped for worker in self.source_workers)

    @property
    def expired(self) -> int:
        """Frames that were too old: dropped before the engine (these are among ``dropped``), or behind it."""
        before = sum(worker.expired for worker in self.source_workers)
        return before + sum(camera.expired for camera in self.stats.cameras.values())

    @property
    def explained(self) -> int:
        """Frames explained."""
        return sum(camera.explained for camera in self.stats.cameras.values())

    def metrics(self) -> list[MetricSample]:
        """Return what the parts of the run tell of themselves."""
        return [figure for part in self.parts if isinstance(part, HasMetrics) for figure in part.metrics()]

    def problems(self) -> dict[str, str]:
        """Return the sinks that do not do all they should, and why: those that are closed, and those that go on."""
        told = {sink.uri: sink.problem for sink in self.parts if isinstance(sink, HasProblems)}
        told |= {
            sink_worker.name: f"closed: {sink_worker.error}" for sink_worker in self.sink_workers if sink_worker.error
        }
        return {uri: why for uri, why in told.items() if why}


@runtime_checkable
class RunObserver(Protocol):
    """A sink that also shows how the run does: the web page with its figures."""

    def on_run_start(self, result: RunResult) -> None:
        """Take the run, once, before the first frame. Its numbers go on changing; any thread may read them."""
        ...


def run_pipeline(
    sources: Sequence[tuple[Source, Overflow | None]],
    explainer: Explainer,
    renderer: Renderer,
    sinks: Sequence[Sink],
    *,
    limits: RunLimits,
    stop: threading.Event,
    watch: Callable[[RunResult], None] | None = None,
    alive: Callable[[], None] | None = None,
) -> RunResult:
    """Carry frames from sources through the explainer and the renderer to the sinks until an end is reached.

    Ends when every source has ended, a limit is reached, ``stop`` is set, a window is closed, or every sink is broken.
    Sources and sinks must have been entered. A source or sink that fails ends alone, and is named in the outcome.

    Args:
        sources: what to read, each with what its full queue does.
        explainer: frames to explanations.
        renderer: explanations to overlays.
        sinks: where overlays go.
        limits: when to end by itself.
        stop: set it from anywhere (a signal handler) to end in order.
        watch: called several times a second, in this thread, with the outcome so far, whether frames come or not.
        alive: called several times a second, in this thread, whether frames come or not: for a watchdog.
    """
    condition = threading.Condition()
    workers = [
        SourceWorker(
            s, depth=limits.queue_frames, overflow=overflow, condition=condition, max_age_seconds=limits.max_age_seconds
        )
        for s, overflow in sources
    ]
    stats = RunStats([worker.camera for worker in workers])
    sink_workers = [make_sink_worker(sink, _timed(sink, stats), limits.sink_queue_frames) for sink in sinks]
    result = RunResult(stats, workers, sink_workers, (explainer, renderer, *sinks))
    _notify_observers(sinks, result)
    open_sinks = list(zip(sinks, sink_workers, strict=True))
    streams = _Lanes(workers, condition, limits, ahead=isinstance(explainer, AsyncExplainer))
    started_at = time.monotonic()
    until = None if limits.seconds is None else started_at + limits.seconds
    with ExitStack() as stack:
        for sink_worker in sink_workers:
            stack.enter_context(sink_worker)
        for worker in workers:
            loss_detector = SignalLossDetector([worker], _silent(renderer, open_sinks))
            draw = _drawing(renderer, open_sinks, worker, stats, loss_detector)
            streams.open(worker.camera, stack.enter_context(streams.relay(worker.camera, draw, loss_detector.check)))
        finishing = stack.enter_context(QueueWorker("engine", _call, depth=1))
        for worker in workers:
            stack.enter_context(worker)
        stack.callback(_stop_all, workers)

        def over() -> bool:
            if alive:
                alive()
            return stop.is_set() or streams.broken or finishing.failed or _stop_requested(result)

        explain = _explaining(explainer, streams, finishing, stats)
        wait, sent = limits.batch_window_seconds, 0
        for gathered in iter_batches(
            workers,
            condition,
            over,
            limit=limits.batch_size,
            window_seconds=wait,
            until=until,
            ready=streams.ready,
            idle=(lambda: watch(result)) if watch else lambda: None,
        ):
            batch = gathered if limits.frames is None else gathered[: limits.frames - sent]
            sent += len(batch)
            streams.began(batch)
            explain(batch)
            result.seconds = time.monotonic() - started_at
            if sent == limits.frames:
                break
    if error := streams.error or finishing.error:
        raise error
    result.errors.extend(_errors(workers, sink_workers))
    return result


def _notify_observers(sinks: Sequence[Sink], result: RunResult) -> None:
    for sink in sinks:
        if isinstance(sink, RunObserver):
            sink.on_run_start(result)


def _call(finish: Callable[[], None]) -> None:
    finish()


class _Lanes:
    """A thread for each camera that draws its frames: one camera's large pictures hold up no other camera.

    How many frames of a camera are on their way, from the batch to the sinks, is counted; while there are too many, no
    more are taken from it (``ready``), and what its full queue does is what the source was given.
    """

    def __init__(
        self, workers: Sequence[SourceWorker], condition: threading.Condition, limits: RunLimits, *, ahead: bool
    ) -> None:
        # A file may fill a batch while the one before is drawn. A live camera has one frame in a batch: one is drawn
        # while the next is explained; more would only become old.
        self._most = {
            "wait": 2 * limits.batch_size + limits.queue_frames,
            "drop-oldest": limits.queue_frames + 2 * ahead,
        }
        self._depth = sum(self._most.values()) + limits.batch_size
        self._under_way = dict.fromkeys([worker.camera for worker in workers], 0)
        self._bell = condition
        self._lanes: dict[str, QueueWorker[Explanation]] = {}

    def relay(
        self, camera: str, draw: Callable[[Explanation], None], idle: Callable[[], None]
    ) -> QueueWorker[Explanation]:
        """Return a camera's thread, not started yet."""

        def deliver(explanation: Explanation) -> None:
            try:
                draw(explanation)
            finally:
                self.ended(camera)

        return QueueWorker(f"drawing {camera}", deliver, depth=self._depth, idle=idle)

    def open(self, camera: str, stream: QueueWorker[Explanation]) -> None:
        """Take a camera's thread."""
        self._lanes[camera] = stream

    @property
    def broken(self) -> bool:
        """Whether one of them draws no more."""
        return any(stream.failed for stream in self._lanes.values())

    @property
    def error(self) -> BaseException | None:
        """What ended one of them before its time."""
        return next((stream.error for stream in self._lanes.values() if stream.error is not None), None)

    def ready(self, worker: SourceWorker) -> bool:
        """Say whether another frame of a camera may be taken."""
        return self._under_way[worker.camera] < self._most[worker.overflow]

    def began(self, batch: Sequence[Frame]) -> None:
        """Count frames that were taken."""
        with self._bell:
            for frame in batch:
                self._under_way[frame.camera] += 1

    def ended(self, camera: str) -> None:
        """Count a frame that has been drawn and handed on, or left out."""
        with self._bell:
            self._under_way[camera] -= 1
            self._bell.notify_all()

    def put(self, explanation: Explanation) -> None:
        """Hand an explanation to its camera's thread."""
        self._lanes[explanation.frame.camera].put(explanation, "wait")


def _explaining(
    explainer: Explainer, streams: _Lanes, finishing: QueueWorker[Callable[[], None]], stats: RunStats
) -> Callable[[Sequence[Frame]], None]:
    """Return what explains a batch and hands it on: here, or begun here and finished by the thread of ``finishing``."""

    def hand_on(explained: Sequence[Explanation], begun: float) -> None:
        for explanation in explained:
            stats.observe_stage("queue", begun - explanation.frame.captured_at)
            stats.count_explained(explanation)
            streams.put(explanation)
        if isinstance(explainer, PostBatchHook):
            explainer.after_batch()

    def explain(batch: Sequence[Frame]) -> None:
        started_at = time.monotonic()
        stats.count_batch(len(batch))
        if isinstance(explainer, AsyncExplainer):
            finish = explainer.submit(batch)
            finishing.put(lambda: hand_on(finish(), started_at), "wait")
        else:
            hand_on(explainer.explain(batch), started_at)

    return explain


def _drawing(
    renderer: Renderer,
    open_sinks: Sequence[tuple[Sink, QueueWorker[Overlay]]],
    worker: SourceWorker,
    stats: RunStats,
    loss_detector: SignalLossDetector,
) -> Callable[[Explanation], None]:
    """Return what draws a camera's explanation, if anybody looks, and hands it to every sink's outlet."""
    camera = worker.camera
    preparing = [sink for sink, _ in open_sinks if isinstance(sink, Preparer)]

    def draw(explanation: Explanation) -> None:
        if worker.is_expired(explanation.frame):
            stats.count_expired(camera)
            return
        started_at = time.monotonic()
        looked_at = any(sink.needs_image(camera) and not sink_worker.failed for sink, sink_worker in open_sinks)
        if looked_at and not unsound(explanation):  # an unsound one cannot be drawn; every outlet refuses it
            overlay = renderer.render(explanation)
            stats.observe_stage("render", time.monotonic() - started_at)
        else:
            overlay = Overlay(explanation.frame.image, explanation)
        for preparer in preparing:
            preparer.prepare(overlay)
        for sink, sink_worker in open_sinks:
            # A file loses nothing on its way into a file; nobody else is ever waited for.
            sink_worker.put(overlay, worker.overflow if sink.lossless else "drop-oldest")
        stats.count_delivered(explanation)
        loss_detector.record(explanation)
        loss_detector.check()

    return draw


def _silent(
    renderer: Renderer, open_sinks: Sequence[tuple[Sink, QueueWorker[Overlay]]]
) -> Callable[[Explanation, SignalLoss], None]:
    """Return what shows every door that looks at pictures that a camera has gone silent."""

    def tell(explanation: Explanation, signal_loss: SignalLoss) -> None:
        camera = explanation.frame.camera
        looking = [
            sink_worker for sink, sink_worker in open_sinks if sink.needs_image(camera) and not sink_worker.failed
        ]
        if looking:
            overlay = renderer.render_stale(explanation, signal_loss)
            for sink_worker in looking:
                sink_worker.put(overlay)

    return tell


def make_sink_worker(sink: Sink, put: Callable[[Overlay], None], depth: int = 16) -> QueueWorker[Overlay]:
    """Return the thread and queues before a sink: deep where every frame counts, else a camera's two newest.

    No single frame closes a sink: one that cannot be told or encoded is counted as refused, with its reason.
    """

    def checked(overlay: Overlay) -> None:
        if reason := unsound(overlay.explanation):
            frame = overlay.explanation.frame
            raise FrameError(f"camera {frame.camera!r}, frame {frame.index}: {reason}")
        put(overlay)

    relay = QueueWorker(
        sink.uri,
        checked,
        depth=depth if sink.lossless else 2,
        idle=sink.idle,
        size_of=_bytes_of,
        key=_camera_of,
        skips=_concerns_one_frame,
    )
    relay.counts_all = sink.lossless
    return relay


def _concerns_one_frame(error: Exception) -> bool:
    """Say whether an error of a sink may be one frame's: all but those that say that the sink is broken."""
    if isinstance(error, FrameError | WireError):
        return True
    return not isinstance(error, ReciproStreamError)


def _camera_of(overlay: Overlay) -> str:
    return overlay.explanation.frame.camera


def _bytes_of(overlay: Overlay) -> int:
    frame = overlay.explanation.frame.image
    return overlay.image.nbytes + (0 if overlay.image is frame else frame.nbytes)


def _timed(sink: Sink, stats: RunStats) -> Callable[[Overlay], None]:
    """Return the sink's ``put``, with its duration and the frame's age behind it counted."""

    def put(overlay: Overlay) -> None:
        started_at = time.monotonic()
        sink.put(overlay)
        if overlay.signal_loss is not None:
            return
        stats.observe_stage(f"put {sink.uri}", time.monotonic() - started_at)
        stats.observe_stage(f"age at {sink.uri}", overlay.explanation.frame.age_seconds())

    return put


def _stop_requested(result: RunResult) -> bool:
    sink_workers = result.sink_workers
    return any(o.stop_requested.is_set() for o in sink_workers) or (
        bool(sink_workers) and all(o.failed for o in sink_workers)
    )


def _stop_all(workers: Sequence[SourceWorker]) -> None:
    """Tell every camera to stop before the first one is joined."""
    for worker in workers:
        worker.stop()


def _errors(workers: Sequence[SourceWorker], sink_workers: Sequence[QueueWorker[Overlay]]) -> list[str]:
    """Return what went wrong, in words; a bug (an error outside our tree) is raised instead."""
    told: list[str] = []
    errors = [
        *(worker.error for worker in workers),
        *(sink_worker.error or sink_worker.fault for sink_worker in sink_workers),
    ]
    for error in errors:
        if error is not None and not isinstance(error, ReciproStreamError | OSError):
            raise error
        if error is not None:
            told.append(str(error))
    for sink_worker in sink_workers:
        if sink_worker.counts_all and sink_worker.refused:
            frames = sink_worker.delivered + sink_worker.dropped + sink_worker.refused
            told.append(
                f"{sink_worker.name}: {sink_worker.refused} of {frames} frames were "
                f"refused; the last: {sink_worker.refusal}"
            )
    return told

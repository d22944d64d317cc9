"""Runs the pipeline: frames go from sources through the explainer and the renderer to the sinks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pipeline.drawing import CameraStream
from pipeline.drops import DropReason
from pipeline.frames import Explanation, Frame
from pipeline.outputs import Outputs
from pipeline.ports import Discovery, Explainer, Overflow, Renderer, Sink, Source
from pipeline.result import RunLimits, RunResult
from pipeline.stats import RunStats
from pipeline.workers.batches import iter_batches
from pipeline.workers.queue import Outcome, QueueWorker
from pipeline.workers.source import Arrivals, SourceWorker


@dataclass(slots=True)
class _Batch:
    """A batch of frames that is being explained."""

    frames: Sequence[Frame]
    """The frames; empty after their explanations were queued for drawing."""
    started_at: float
    finish: Callable[[], Sequence[Explanation]] = tuple
    """Waits for the explanations and returns them; called once."""


class Pipeline:
    """Moves frames from sources through the explainer and the renderer to the sinks.

    ``run`` returns when every source has ended, a limit is reached, ``stop`` is set, a window is closed, or every sink
    has failed. The error of a source or sink ends only that source or sink, and is added to ``result.errors``.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, Overflow | None]],
        explainer: Explainer,
        renderer: Renderer,
        sinks: Sequence[Sink],
        *,
        limits: RunLimits,
        stop: threading.Event,
        watch: Callable[[RunResult], None] | None = None,
        alive: Callable[[], None] | None = None,
        discovery: Discovery | None = None,
        may_publish: Callable[[Frame], bool] = lambda _frame: True,
    ) -> None:
        """Connect the parts; ``run`` starts the threads.

        Args:
            sources: the sources, already entered, each with the action when its queue is full (None: the default of
                the kind of source).
            explainer: explains the frames.
            renderer: draws the explanations.
            sinks: the sinks, already entered.
            limits: limits of the run, and sizes of queues and batches.
            stop: ends the run in order when it is set, by any thread or signal handler.
            watch: called several times a second, in the calling thread, with the state of the run.
            alive: called several times a second, in the calling thread, with or without frames: for a watchdog.
            discovery: adds and removes sources during the run; with it, the run continues when all sources have ended.
            may_publish: returns whether a frame may be published now; called by any thread.
        """
        self._explainer, self._renderer, self._limits, self._stop = explainer, renderer, limits, stop
        self._watch, self._alive, self._discovery = watch, alive, discovery
        self._arrivals = Arrivals()
        self._stats = RunStats([])
        self._outputs = Outputs(sinks, self._stats, limits.sink_queue_frames, may_publish=may_publish)
        self._workers: list[SourceWorker] = []
        self._streams: dict[str, CameraStream] = {}
        self._has_failed = False
        """True if ``_observe`` found a camera whose frames can no longer be drawn."""
        self._is_busy = False
        """True if a batch was explained since the last call of ``_observe``."""
        self._leaving: set[str] = set()
        """Cameras that were stopped, but whose frames are still in progress."""
        for source, overflow in sources:
            self._add_camera(source, overflow)
        self._has_appeared = discovery is not None
        """True if ``discovery`` may have sources to add or remove."""
        if discovery is not None:
            discovery.notify = self._wake
        self._finishing: QueueWorker[_Batch] = QueueWorker(
            "engine", self._finish, depth=1, on_outcome=self._drop_unfinished
        )
        self.result = RunResult(self._stats, self._workers, self._outputs.workers, (explainer, *sinks))
        """The state of the run; any thread may read it at any time."""
        for sink in sinks:
            sink.on_run_start(self.result)

    def run(self) -> RunResult:
        """Run until an end is reached and return the result; raise an error of the explainer or the renderer."""
        started_at = time.monotonic()
        try:
            with ExitStack() as stack:
                self._start(stack)
                self._explain_all(started_at)
        finally:
            self._outputs.close()
        errors = [*(stream.queue.error for stream in self._streams.values()), self._finishing.error]
        for error in errors:
            if error is not None:
                raise error
        self._outputs.complete()
        self.result.collect_errors()
        return self.result

    def _add_camera(self, source: Source, overflow: Overflow | None = None) -> None:
        worker = SourceWorker(
            source,
            depth=self._limits.queue_frames,
            overflow=overflow,
            arrivals=self._arrivals,
            max_age_seconds=self._limits.max_age_seconds,
            counts=self._stats.frames,
        )
        self._stats.add_camera(source.camera)
        self._streams[source.camera] = CameraStream(
            worker,
            self._renderer,
            self._outputs,
            self._stats,
            limits=self._limits,
            arrivals=self._arrivals,
            asynchronous=self._explainer.asynchronous,
        )
        self._workers.append(worker)

    def _start(self, stack: ExitStack) -> None:
        """Start the threads of sinks, drawing and sources in this order; they are stopped in the opposite order."""
        self._outputs.start(stack)
        stack.push(self._end_drawing)
        stack.enter_context(self._finishing)
        stack.callback(self._end_sources)
        for worker in self._workers:
            self._start_camera(worker)

    def _start_camera(self, worker: SourceWorker) -> None:
        self._streams[worker.camera].queue.__enter__()
        worker.__enter__()

    def _end_drawing(self, *error: Any) -> None:  # noqa: ANN401 - the arguments of __exit__
        for stream in self._streams.values():
            stream.queue.__exit__(*error)

    def _end_sources(self) -> None:
        """Stop all cameras before the first is joined, so that they end at the same time."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.__exit__()

    def _explain_all(self, started_at: float) -> None:
        limits = self._limits
        count = 0
        for frames in iter_batches(
            self._workers,
            self._arrivals,
            self._is_over,
            limit=limits.batch_size,
            window_seconds=limits.batch_window_seconds,
            deadline=None if limits.seconds is None else started_at + limits.seconds,
            is_ready=lambda worker: self._streams[worker.camera].is_ready,
            idle=self._observe,
            has_appeared=None if self._discovery is None else lambda: self._has_appeared,
        ):
            batch = frames if limits.frames is None else frames[: limits.frames - count]
            self._drop(frames[len(batch) :], DropReason.FRAME_LIMIT)
            count += len(batch)
            self._explain(batch)
            self.result.seconds = time.monotonic() - started_at
            if count == limits.frames:
                return

    def _observe(self) -> None:
        """Add and remove cameras, and report the state of the run; call ``idle`` of the explainer without frames."""
        if self._discovery is not None:
            self._has_appeared = False
            self._update_cameras(self._discovery)
        self._has_failed = any(stream.queue.failed for stream in self._streams.values())
        if self._watch:
            self._watch(self.result)
        if not self._is_busy and not self._explainer.asynchronous:
            self._explainer.idle()
        self._is_busy = False

    def _update_cameras(self, discovery: Discovery) -> None:
        for worker in self._workers:
            if worker.camera in self._leaving and self._has_left(worker):
                self._release(worker, discovery)
                break  # the list was changed during the iteration; the next call continues soon
        for camera in discovery.take_removed():
            if camera in self._streams:
                self._leaving.add(camera)
                next(worker for worker in self._workers if worker.camera == camera).stop()
        for source in discovery.take():
            self._add_camera(source, source.overflow)
            self._start_camera(self._workers[-1])

    def _has_left(self, worker: SourceWorker) -> bool:
        """Return whether the source has ended and each of its frames is queued for the sinks or counted."""
        stream = self._streams[worker.camera]
        is_settled = not stream.is_busy and not stream.queue.failed
        return is_settled and (worker.finished or worker.may_be_abandoned)

    def _release(self, worker: SourceWorker, discovery: Discovery) -> None:
        self._leaving.discard(worker.camera)
        worker.__exit__()
        self._streams.pop(worker.camera).queue.__exit__(None, None, None)
        self._workers.remove(worker)
        if worker.error is not None:
            self.result.removed_errors.append(worker.error)
        self._renderer.forget_camera(worker.camera)
        self._explainer.forget_camera(worker.camera)
        self._outputs.forget_camera(worker.camera)
        discovery.on_removed(worker.source)

    def _wake(self) -> None:
        self._has_appeared = True
        self._arrivals.notify()

    def _is_over(self) -> bool:
        if self._alive:
            self._alive()
        return self._stop.is_set() or self._has_failed or self._finishing.failed or self._outputs.stop_requested

    def _explain(self, frames: Sequence[Frame]) -> None:
        """Explain a batch and queue its explanations for drawing, in this thread or that of ``_finishing``."""
        self._is_busy = True
        for frame in frames:
            self._streams[frame.camera].begin()
        self._stats.count_batch(len(frames))
        batch = _Batch(frames, time.monotonic())
        try:
            batch.finish = self._explainer.submit(frames)
            if self._explainer.asynchronous:
                self._finishing.put(batch, "wait")
            else:
                self._finish(batch)
        except BaseException:
            self._drop(batch.frames, DropReason.ENGINE_FAILED)
            raise

    def _finish(self, batch: _Batch) -> None:
        explanations = batch.finish()
        if len(explanations) != len(batch.frames):
            found = f"{len(explanations)} explanations for {len(batch.frames)} frames"
            message = f"the explainer returned {found}; it must return one for each frame"
            raise ValueError(message)
        batch.frames = ()
        for explanation in explanations:
            self._stats.observe_stage("queue", batch.started_at - explanation.frame.captured_at)
            self._stats.count_explained(explanation)
            self._streams[explanation.frame.camera].put(explanation)
        self._explainer.after_batch()

    def _drop_unfinished(self, batch: _Batch, outcome: Outcome) -> None:
        if outcome is not Outcome.DELIVERED:
            failed = outcome is Outcome.FAILED
            self._drop(batch.frames, DropReason.ENGINE_FAILED if failed else DropReason.STOPPED)

    def _drop(self, frames: Sequence[Frame], reason: DropReason) -> None:
        for frame in frames:
            self._stats.frames.count_drop(frame, reason)

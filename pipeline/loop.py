"""The pipeline: frames from sources through the explainer and the renderer to the sinks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.drawing import CameraStream
from pipeline.drops import DropReason
from pipeline.frames import Explanation, Frame
from pipeline.outputs import Outputs
from pipeline.ports import Explainer, Overflow, Renderer, Sink, Source
from pipeline.result import RunLimits, RunResult
from pipeline.stats import RunStats
from pipeline.workers.batches import iter_batches
from pipeline.workers.queue import Outcome, QueueWorker
from pipeline.workers.source import SourceWorker


@dataclass(slots=True)
class _Batch:
    """Frames that are being explained."""

    frames: Sequence[Frame]
    """Emptied once their explanations are queued for drawing."""
    started_at: float
    finish: Callable[[], Sequence[Explanation]] = tuple
    """Called once; waits for the explanations."""


class Pipeline:
    """Carries frames from sources through the explainer and the renderer to the sinks until an end is reached.

    ``run`` ends when every source has ended, a limit is reached, ``stop`` is set, a window is closed, or every sink has
    failed. A source or sink that fails ends alone and is named in ``result.errors``.
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
    ) -> None:
        """Connect the parts; ``run`` starts the threads.

        Args:
            sources: what to read, entered, each with what its full queue does (None: by the kind of source).
            explainer: frames to explanations.
            renderer: explanations to overlays.
            sinks: where overlays go, entered.
            limits: when to end, and the sizes of queues and batches.
            stop: set it from anywhere (a signal handler) to end the run in order.
            watch: called several times a second, in the calling thread, with the state of the run.
            alive: called several times a second, in the calling thread, with or without frames: for a watchdog.
        """
        self._explainer, self._limits, self._stop = explainer, limits, stop
        self._watch, self._alive = watch, alive
        self._condition = threading.Condition()
        self._stats = RunStats([source.camera for source, _ in sources])
        self._workers = [
            SourceWorker(
                source,
                depth=limits.queue_frames,
                overflow=overflow,
                condition=self._condition,
                max_age_seconds=limits.max_age_seconds,
                counts=self._stats.frames,
            )
            for source, overflow in sources
        ]
        self._outputs = Outputs(sinks, self._stats, limits.sink_queue_frames)
        self._streams = {worker.camera: self._make_stream(worker, renderer) for worker in self._workers}
        self._finishing: QueueWorker[_Batch] = QueueWorker(
            "engine", self._finish, depth=1, on_outcome=self._drop_unfinished
        )
        self.result = RunResult(self._stats, self._workers, self._outputs.workers, (explainer, *sinks))
        """The state of the run; any thread may read it at any time."""
        for sink in sinks:
            sink.on_run_start(self.result)

    def run(self) -> RunResult:
        """Run until the end and return the result; raise what the explainer or the renderer raised."""
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
        self.result.collect_errors()
        return self.result

    def _make_stream(self, worker: SourceWorker, renderer: Renderer) -> CameraStream:
        return CameraStream(
            worker,
            renderer,
            self._outputs,
            self._stats,
            limits=self._limits,
            condition=self._condition,
            asynchronous=self._explainer.asynchronous,
        )

    def _start(self, stack: ExitStack) -> None:
        """Start the threads from the sinks to the sources; they end in the opposite order."""
        self._outputs.start(stack)
        for stream in self._streams.values():
            stack.enter_context(stream.queue)
        stack.enter_context(self._finishing)
        for worker in self._workers:
            stack.enter_context(worker)
        stack.callback(self._stop_sources)

    def _stop_sources(self) -> None:
        """Stop all cameras before the first is joined."""
        for worker in self._workers:
            worker.stop()

    def _explain_all(self, started_at: float) -> None:
        limits = self._limits
        count = 0
        for frames in iter_batches(
            self._workers,
            self._condition,
            self._is_over,
            limit=limits.batch_size,
            window_seconds=limits.batch_window_seconds,
            deadline=None if limits.seconds is None else started_at + limits.seconds,
            is_ready=lambda worker: self._streams[worker.camera].is_ready,
            idle=self._show_progress,
        ):
            batch = frames if limits.frames is None else frames[: limits.frames - count]
            self._drop(frames[len(batch) :], DropReason.FRAME_LIMIT)
            count += len(batch)
            self._explain(batch)
            self.result.seconds = time.monotonic() - started_at
            if count == limits.frames:
                return

    def _show_progress(self) -> None:
        if self._watch:
            self._watch(self.result)

    def _is_over(self) -> bool:
        if self._alive:
            self._alive()
        return (
            self._stop.is_set()
            or self._finishing.failed
            or self._outputs.stop_requested
            or any(stream.queue.failed for stream in self._streams.values())
        )

    def _explain(self, frames: Sequence[Frame]) -> None:
        """Explain a batch, here or in the thread of ``_finishing``, and queue the explanations for drawing."""
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
            message = f"the explainer returned {len(explanations)} explanations for {len(batch.frames)} frames"
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

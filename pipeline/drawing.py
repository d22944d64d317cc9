"""Draws explained frames in one thread for each camera, so that large images do not delay other cameras."""

from __future__ import annotations

import time
from typing import Final

from pipeline.drops import DropReason
from pipeline.finite import find_non_finite
from pipeline.frames import Explanation, Overlay, SignalLoss
from pipeline.outputs import Outputs
from pipeline.ports import Overflow, Renderer
from pipeline.result import RunLimits
from pipeline.signal_loss import SignalLossDetector
from pipeline.stats import RunStats
from pipeline.workers.queue import Outcome, QueueWorker
from pipeline.workers.source import Arrivals, SourceWorker

ASYNC_FRAMES: Final = 2
"""Additional frames of a live camera that may be in progress if the explainer runs batches asynchronously."""


class CameraStream:
    """Draws the explained frames of one camera and puts them into the sinks' queues.

    It also counts the camera's frames in progress, from the batch to the sinks' queues. While there are too many,
    ``is_ready`` is False: no further frame is taken from the camera, and the camera's own queue fills.
    """

    def __init__(
        self,
        worker: SourceWorker,
        renderer: Renderer,
        outputs: Outputs,
        stats: RunStats,
        *,
        limits: RunLimits,
        arrivals: Arrivals,
        asynchronous: bool,
    ) -> None:
        """Create the thread; entering ``queue`` starts it.

        Args:
            worker: the camera's source worker.
            renderer: draws explanations.
            outputs: the sinks.
            stats: counts durations.
            limits: sizes of batches and queues.
            arrivals: its lock guards the number of frames in progress; notified when another frame may be taken.
            asynchronous: whether the explainer accepts a batch before it has finished the previous one.
        """
        # A file may fill one batch while the previous batch is drawn. A live camera has one frame in a batch: one frame
        # is drawn while the next is explained. More frames in progress would only be older when they are delivered.
        self._max_in_progress: dict[Overflow, int] = {
            "wait": 2 * limits.batch_size + limits.queue_frames,
            "drop-oldest": limits.queue_frames + ASYNC_FRAMES * asynchronous,
        }
        self._worker, self._renderer, self._outputs, self._stats = worker, renderer, outputs, stats
        self._arrivals = arrivals
        self._in_progress = 0
        self._settled = False
        """True if the frame that is being drawn has been counted or put into the sinks' queues."""
        self._loss_detector = SignalLossDetector(worker, self._put_stale)
        self.queue: QueueWorker[Explanation] = QueueWorker(
            f"drawing {worker.camera}",
            self._draw,
            depth=sum(self._max_in_progress.values()) + limits.batch_size,
            idle=self._check_signal,
            on_outcome=self._settle,
        )

    @property
    def is_ready(self) -> bool:
        """True if another frame of the camera may be taken."""
        return self._in_progress < self._max_in_progress[self._worker.overflow]

    @property
    def is_busy(self) -> bool:
        """True if frames of the camera are in progress."""
        return self._in_progress > 0

    def begin(self) -> None:
        """Count a frame as in progress, after it was taken from the camera."""
        with self._arrivals:
            self._in_progress += 1

    def put(self, explanation: Explanation) -> None:
        """Queue an explanation for drawing."""
        self.queue.put(explanation, "wait")

    def _draw(self, explanation: Explanation) -> None:
        self._settled = False
        if self._worker.is_expired(explanation.frame):
            self._settled = True
            self._stats.frames.count_drop(explanation.frame, DropReason.EXPIRED_BEFORE_RENDER)
            return
        self._outputs.prepare(overlay := self._render(explanation))
        self._settled = True
        # A lossless sink may delay a file, whose frames must all be delivered; other sinks never delay the run.
        self._outputs.put(overlay, self._worker.overflow)
        self._stats.observe_age(explanation)
        self._loss_detector.record(explanation)
        self._check_signal()

    def _render(self, explanation: Explanation) -> Overlay:
        # An explanation with NaN or infinite numbers cannot be drawn; every sink refuses it.
        if not self._outputs.needs_image(self._worker.camera) or find_non_finite(explanation):
            return Overlay(explanation.frame.pixels, explanation)
        started_at = time.monotonic()
        overlay = self._renderer.render(explanation)
        if overlay.is_drawn or overlay.jpeg is not None:  # it was drawn here
            self._stats.observe_stage("render", time.monotonic() - started_at)
        return overlay

    def _check_signal(self) -> None:
        """Show a signal loss: the source's own image of it, if it has one, else the camera's last frame as stale."""
        overlay = self._worker.source.take_stale()
        if overlay is None:
            self._loss_detector.check()
        else:
            self._loss_detector.postpone()
            self._outputs.put_stale(lambda: overlay, self._worker.camera)

    def _put_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> None:
        self._outputs.put_stale(lambda: self._renderer.render_stale(explanation, signal_loss), explanation.frame.camera)

    def _settle(self, explanation: Explanation, outcome: Outcome) -> None:
        if outcome is Outcome.FAILED and not self._settled:
            self._stats.frames.count_drop(explanation.frame, DropReason.RENDER_FAILED)
        elif outcome is Outcome.CLOSED:
            self._stats.frames.count_drop(explanation.frame, DropReason.STOPPED)
        with self._arrivals:
            was_ready = self.is_ready
            self._in_progress -= 1
            if not was_ready:
                self._arrivals.notify()

"""The sinks of a run; each has its own thread and queues."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from pipeline.drops import DeliveryTracker, DropReason
from pipeline.errors import FrameError, ReciproStreamError, WireError
from pipeline.finite import find_non_finite
from pipeline.frames import Frame, Overlay
from pipeline.ports import Overflow, Sink
from pipeline.stats import RunStats
from pipeline.workers.queue import Outcome, QueueWorker

_REASONS: Final = {
    Outcome.DELIVERED: None,
    Outcome.QUEUE_FULL: DropReason.SINK_QUEUE_FULL,
    Outcome.REFUSED: DropReason.SINK_REFUSED,
    Outcome.FAILED: DropReason.SINK_CLOSED,
    Outcome.CLOSED: DropReason.SINK_CLOSED,
}


class Outputs:
    """Puts overlays into the queues of all sinks, and counts which frames are delivered or dropped."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        stats: RunStats,
        queue_frames: int,
        *,
        may_publish: Callable[[Frame], bool] = lambda _frame: True,
    ) -> None:
        """Create a worker for each entered sink.

        Args:
            sinks: the sinks, already entered.
            stats: counts the frames.
            queue_frames: maximum number of overlays of a camera in the queue of a lossless sink.
            may_publish: returns whether a frame may be published now; called in the threads of the sinks.
        """
        self._stats = stats
        self._may_publish = may_publish
        self._tracker = DeliveryTracker(stats.frames)
        self.workers = [
            make_sink_worker(sink, partial(self._put_timed, sink), queue_frames, on_outcome=self._settle)
            for sink in sinks
        ]
        self._sinks = list(zip(sinks, self.workers, strict=True))

    def start(self, stack: ExitStack) -> None:
        """Start the threads; when ``stack`` is closed, the queued overlays are still delivered."""
        for worker in self.workers:
            stack.enter_context(worker)

    @property
    def stop_requested(self) -> bool:
        """True if a sink requested the end of the run, or every sink has failed."""
        workers = self.workers
        return any(worker.stop_requested.is_set() for worker in workers) or (
            bool(workers) and all(worker.failed for worker in workers)
        )

    def needs_image(self, camera: str) -> bool:
        """Return whether a sink that has not failed needs a drawn image of this camera now."""
        return any(sink.needs_image(camera) and not worker.failed for sink, worker in self._sinks)

    def prepare(self, overlay: Overlay) -> None:
        """Let each sink compress the frame in the calling thread, before ``put``."""
        for sink, _ in self._sinks:
            sink.prepare(overlay)

    def put(self, overlay: Overlay, overflow: Overflow) -> None:
        """Put an overlay into every sink's queue.

        ``overflow`` applies to lossless sinks; the queue of any other sink drops its oldest overlay.
        """
        frame = overlay.explanation.frame
        if not self._may_publish(frame):
            self._stats.frames.count_drop(frame, DropReason.LEASE_ENDED)
            return
        self._tracker.begin(overlay, len(self._sinks))
        for sink, worker in self._sinks:
            worker.put(overlay, overflow if sink.lossless else "drop-oldest")

    def put_stale(self, draw: Callable[[], Overlay], camera: str) -> None:
        """Put the image of a camera without signal into each sink that needs images or reports signal losses.

        The image is not counted as a frame.
        """
        workers = [
            worker
            for sink, worker in self._sinks
            if (sink.reports_signal_loss or sink.needs_image(camera)) and not worker.failed
        ]
        if workers:
            overlay = draw()
            for worker in workers:
                worker.put(overlay)

    def forget_camera(self, camera: str) -> None:
        """Let every sink release its state of a camera that left the run, after the camera's last overlay."""
        for worker in self.workers:
            worker.forget(camera)

    def close(self) -> None:
        """Count the frames in the queues of abandoned sinks. Call it after the threads have ended."""
        self._tracker.close()

    def complete(self) -> None:
        """Call ``on_run_end`` of each sink that has not failed. Call this method after the threads have ended."""
        for sink, worker in self._sinks:
            if not worker.failed:
                sink.on_run_end()

    def _put_timed(self, sink: Sink, overlay: Overlay) -> None:
        frame = overlay.explanation.frame
        if not self._may_publish(frame):  # the lease ended while the overlay waited
            raise FrameError(
                f"camera {frame.camera!r}, frame {frame.index}: not published, because the camera's lease has ended"
            )
        started_at = time.monotonic()
        sink.put(overlay)
        if overlay.signal_loss is None:
            self._stats.observe_stage(f"put {sink.uri}", time.monotonic() - started_at)
            self._stats.observe_stage(f"age at {sink.uri}", overlay.explanation.frame.age_seconds())

    def _settle(self, overlay: Overlay, outcome: Outcome) -> None:
        self._tracker.settle(overlay, _REASONS[outcome])


def make_sink_worker(
    sink: Sink,
    put: Callable[[Overlay], None],
    depth: int = 16,
    *,
    on_outcome: Callable[[Overlay, Outcome], None] | None = None,
) -> QueueWorker[Overlay]:
    """Return the thread and queues of a sink: ``depth`` overlays of each camera for a lossless sink, else two.

    A single frame cannot close a sink: an overlay that has NaN or infinite numbers, or that cannot be encoded, is
    refused with the reason.
    """
    worker = QueueWorker(
        sink.uri,
        partial(_put_finite, put),
        depth=depth if sink.lossless else 2,
        idle=sink.idle,
        size_of=_size_of,
        key=_camera_of,
        skips=_concerns_one_frame,
        on_outcome=on_outcome,
        counted=_is_frame,
        on_forget=sink.forget_camera,
    )
    worker.counts_all = sink.lossless
    return worker


def _put_finite(put: Callable[[Overlay], None], overlay: Overlay) -> None:
    if reason := find_non_finite(overlay.explanation):
        frame = overlay.explanation.frame
        raise FrameError(f"camera {frame.camera!r}, frame {frame.index}: {reason}")
    put(overlay)


def _concerns_one_frame(error: Exception) -> bool:
    """Return whether an error of a sink concerns one frame only; False if the whole sink has failed."""
    return isinstance(error, FrameError | WireError) or not isinstance(error, ReciproStreamError)


def _camera_of(overlay: Overlay) -> str:
    return overlay.explanation.frame.camera


def _is_frame(overlay: Overlay) -> bool:
    """Return whether an overlay shows a new frame; False for a last image that is repeated during a signal loss."""
    return overlay.signal_loss is None


def _size_of(overlay: Overlay) -> int:
    frame_pixels = overlay.explanation.frame.pixels
    return frame_pixels.nbytes + (overlay.pixels.nbytes if overlay.is_drawn else 0)

"""Reads a source into a bounded queue in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Self

from pipeline.drops import DropReason, FrameCounts
from pipeline.errors import SourceError
from pipeline.frame_rate import FrameRate
from pipeline.frames import Frame
from pipeline.ports import Health, Overflow, Source, overflow_of
from pipeline.workers.thread import JOIN_SECONDS, POLL_SECONDS, Wakeup, log_abandoned

CONNECTING_SECONDS: Final = 1.0
"""Time that a stopped live source has to end while it connects: it waits for a reply and cannot be interrupted."""


class Arrivals:
    """Notifies one reader of frames that are queued in many source workers, so that it need not poll all of them.

    ``with arrivals:`` holds the lock of all queues. It is not held while a source is read or a frame is explained.
    """

    def __init__(self) -> None:
        """Create it without workers."""
        self._lock = threading.RLock()
        self._wakeup = Wakeup()
        self.queued: dict[SourceWorker, None] = {}
        """The workers with queued frames, in turn: a worker whose frame was taken moves to the end."""
        self.wanted = 1
        """Number of workers with queued frames at which the reader is woken."""
        self.looks = 0
        """Number of times that the reader has looked for frames."""
        self.ended = 0
        """Number of workers whose source has ended."""

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def notify(self) -> None:
        """Wake the reader; any thread may call it, with or without the lock."""
        self._wakeup.set()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Wait, without the lock, until ``notify`` was called since the last wait."""
        self._wakeup.wait(timeout_seconds)


class SourceWorker:
    """Runs a source in a thread and keeps its frames in a bounded queue.

    ``with SourceWorker(source, depth=2, overflow="drop-oldest") as worker: for frame in worker: ...`` Leaving the block
    early also ends a source that waits for space in the queue. Enter the source before the worker, and leave it after
    the worker. An exception of the source ends only this worker and is stored in ``error``.
    """

    def __init__(
        self,
        source: Source,
        *,
        depth: int = 2,
        overflow: Overflow | None = "drop-oldest",
        arrivals: Arrivals | None = None,
        max_age_seconds: float | None = None,
        counts: FrameCounts | None = None,
    ) -> None:
        """Create the thread; entering starts it.

        Args:
            source: the source, already entered.
            depth: maximum number of queued frames.
            overflow: action when the queue is full, see ``pipeline.ports.Overflow``. None: "drop-oldest" for a live
                source, else "wait".
            arrivals: notified at each frame and at the end, so that one reader can wait for many workers.
            max_age_seconds: older frames of a live source are dropped; None = no limit.
            counts: counts received and dropped frames; None: a new object.
        """
        self.source = source
        self.error: BaseException | None = None
        self.counts = counts or FrameCounts()
        self.ended = False
        """True if the source has ended; frames may still be queued."""
        self.frame_rate = FrameRate()
        """Estimates the frame rate from the times at which frames arrive."""
        self._overflow = overflow
        self._arrivals = arrivals or Arrivals()
        self._room = Wakeup()
        """Set when a frame was removed from the queue, and at the end."""
        self._queue: deque[Frame] = deque()
        self._depth = depth
        self._crowded_at: int | None = None
        """Number of received frames when ``pop`` last found several queued frames; None if it found fewer."""
        self._emptied_at = 0
        """``Arrivals.looks`` when the queue was last emptied."""
        self._max_age_seconds = max_age_seconds
        self._misfit: Health | None = None
        self._stop = threading.Event()
        self._stopped_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"source {source.camera}", daemon=True)

    @property
    def camera(self) -> str:
        """The camera's name."""
        return self.source.camera

    @property
    def received(self) -> int:
        """Number of frames that the source returned."""
        return self.counts.received(self.camera)

    @property
    def overflow(self) -> Overflow:
        """Action when the queue is full; without a setting, the default of the source's kind."""
        return overflow_of(self.source, self._overflow)

    @property
    def health(self) -> Health:
        """State of the source; ``failed`` also if its frames do not fit ``source.input_area``."""
        return self._misfit or self.source.health

    @property
    def queued(self) -> int:
        """Number of queued frames."""
        return len(self._queue)

    @property
    def finished(self) -> bool:
        """True if no frame is queued and none will come."""
        return self.ended and not self._queue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        while self._thread.is_alive() and not self.may_be_abandoned:
            self._thread.join(POLL_SECONDS)
        if self._thread.is_alive() and self._is_overdue:
            log_abandoned(self._thread)
        with self._arrivals:
            self._drop_all(DropReason.STOPPED)

    def stop(self) -> None:
        """Request the end of the source, also while it waits for space in the queue. Does not block."""
        if not self._stop.is_set():
            self._stopped_at = time.monotonic()
        self._stop.set()
        self._room.set()

    def pop(self) -> Frame | None:
        """Return the next frame, or None if none is queued.

        The next frame is the oldest queued frame, except if the reader of a live source is too slow: if two calls in a
        row find several queued frames, with new frames at the second call, the newest frame is returned and the older
        frames are dropped. Therefore a single delay loses no frame, and a slow reader gets no old frames.
        """
        with self._arrivals:
            crowded = self.overflow == "drop-oldest" and len(self._queue) > 1
            received = self.received if crowded else None
            if crowded and self._crowded_at not in {None, received}:
                while len(self._queue) > 1:
                    self._drop_first(DropReason.SUPERSEDED)
            self._crowded_at = received
            while self._queue and self.is_expired(self._queue[0]):
                self._drop_first(DropReason.EXPIRED_BEFORE_ENGINE)
            frame = self._queue.popleft() if self._queue else None
            self._arrivals.queued.pop(self, None)
            if self._queue:
                self._arrivals.queued[self] = None
            else:
                self._emptied_at = self._arrivals.looks
        self._room.set()
        return frame

    def is_expired(self, frame: Frame) -> bool:
        """Return whether a frame of a live source is older than ``max_age_seconds``."""
        return self._max_age_seconds is not None and self.source.live and frame.age_seconds() > self._max_age_seconds

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the source ends. An exception of the source is stored in ``error``, not raised."""
        while not self.finished:
            frame = self.pop()
            if frame is None:
                self._arrivals.wait()
            else:
                yield frame

    def _run(self) -> None:
        try:
            for frame in self.source.frames(self._stop):
                if not self._put(self._with_area(frame)):
                    break
        except Exception as error:  # noqa: BLE001 - stored in `error`: a failed camera must not end the run
            self.error = error
        finally:
            with self._arrivals:
                self.ended = True
                self._arrivals.ended += 1
            self._arrivals.notify()

    def _with_area(self, frame: Frame) -> Frame:
        """Return the frame with its ``area``, the part that the network gets.

        Raises:
            SourceError: the area does not lie in the frame.
        """
        options = self.source.input_area
        if options is None:
            return frame
        try:
            return replace(frame, area=options.placed(frame.width, frame.height))
        except SourceError as error:
            self._misfit = replace(self.source.health, state="failed", reason=str(error))
            raise SourceError(f"{self.camera}: {error}") from None

    def _put(self, frame: Frame) -> bool:
        """Queue a frame; if the worker was stopped, drop it and return False."""
        self.counts.count_received(self.camera)
        self.frame_rate.record(time.monotonic())
        while self.overflow == "wait" and len(self._queue) >= self._depth and not self._stop.is_set():
            self._room.wait()
        with self._arrivals:
            if self._stop.is_set():
                self.counts.count_drop(frame, DropReason.STOPPED)
                return False
            while len(self._queue) >= self._depth:
                self._drop_first(DropReason.QUEUE_FULL)
            if not self._queue and self._arrivals.looks != self._emptied_at:
                self._crowded_at = None  # the reader found an empty queue, so it is not too slow
            self._queue.append(frame)
            self._arrivals.queued[self] = None
            is_enough = len(self._arrivals.queued) >= self._arrivals.wanted
        if is_enough:
            self._arrivals.notify()
        return True

    def _drop_first(self, reason: DropReason) -> None:
        self.counts.count_drop(self._queue.popleft(), reason)

    def _drop_all(self, reason: DropReason) -> None:
        while self._queue:
            self._drop_first(reason)
        self._arrivals.queued.pop(self, None)

    @property
    def may_be_abandoned(self) -> bool:
        """True if the source was stopped, but its thread connects or has not ended in time; do not join it then."""
        if not self._stop.is_set():
            return False
        connects = self.source.live and self.health.state == "connecting"
        return self._is_overdue or (connects and time.monotonic() - self._stopped_at > CONNECTING_SECONDS)

    @property
    def _is_overdue(self) -> bool:
        return time.monotonic() - self._stopped_at > JOIN_SECONDS

"""The only threads of the house: Pump brings frames in, Relay carries things out, Worker runs a server.

``iter_batches`` makes batches.

Every wait here can be woken. Upstream is stopped before downstream is joined; what a camera or a sink does wrong ends
that camera or sink alone and is kept as ``error``, for whoever asks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipeline.errors import ReciproStreamError
from pipeline.fair_queue import FairQueue
from pipeline.frames import Frame
from pipeline.ports import Health, Overflow, Source, StopRequested
from pipeline.stats import update_mean_interval

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 0.1
"""How often a waiting batch looks whether somebody asked for the end: a signal handler cannot ring a bell safely."""

IDLE_SECONDS = 0.25
"""How often ``iter_batches`` calls ``idle`` while no frame comes."""

JOIN_SECONDS = 10.0
"""How long a thread may take to end once it was told to; then it is left behind (a daemon) and said so."""

CONNECTING_SECONDS = 1.0
"""How long a live source that is being connected may take to end: it waits for an answer, and cannot be woken."""


_MAX_FAILURES = 10
"""After so many items in a row that fail for a reason outside our tree a relay closes."""
_MAX_SAID = 20
"""Of so many items a relay says why it refuses them; of the others it only counts them."""


class SourceWorker:
    """Runs one source in a thread and keeps its frames in a bounded queue.

    ``with Pump(source, depth=2, overflow="drop-oldest") as camera: for frame in camera: ...`` Leaving early frees a
    producer that waits for room. The source must have been entered, and is left by its owner after the pump.
    """

    def __init__(
        self,
        source: Source,
        *,
        depth: int = 2,
        overflow: Overflow | None = "drop-oldest",
        condition: threading.Condition | None = None,
        max_age_seconds: float | None = None,
    ) -> None:
        """Take an entered source.

        Args:
            source: what to read from.
            depth: how many frames may wait.
            overflow: what a full queue does; see ``pipeline.ports.Overflow``. None: by whether the source is live.
            condition: rung at each frame and at the end, so that one reader can wait for many pumps.
            max_age_seconds: of a live source: a frame that waited longer is dropped instead of taken; None = never.
        """
        self.source = source
        self._overflow = overflow
        self.error: BaseException | None = None
        self.received = 0
        """How many frames the source gave."""
        self.dropped = 0
        """How many of them were dropped because the queue was full, or because they were too old."""
        self.expired = 0
        """How many of those were too old."""
        self.ended = False
        """Whether the source will give no more; frames may still wait in the queue."""
        self.last_received_at: float | None = None
        """``time.monotonic()`` when its last frame came; None before the first."""
        self.mean_interval_seconds = 0.0
        """The usual time between two of its frames: a running mean over about the last twenty."""
        # The bell guards the queue and the counters: put and get hold it, reading frames and explaining them do not.
        self._condition = condition or threading.Condition()
        self._queue: deque[Frame] = deque()
        self._depth = depth
        self._full_at: int | None = None
        """``taken`` when the reader last found several waiting; None where it found one or none."""
        self._max_age_seconds = max_age_seconds
        self._stop = threading.Event()
        self._stopped_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"pump {source.camera}", daemon=True)

    @property
    def camera(self) -> str:
        """The camera's name."""
        return self.source.camera

    @property
    def overflow(self) -> Overflow:
        """What a full queue does; where nothing was asked for, the source's kind says it, once that is known."""
        return self._overflow or ("drop-oldest" if self.source.live else "wait")

    @property
    def health(self) -> Health:
        """How the source does."""
        return self.source.health

    @property
    def queued(self) -> int:
        """How many frames wait in the queue."""
        return len(self._queue)

    @property
    def finished(self) -> bool:
        """Whether nothing waits and nothing will come."""
        return self.ended and not self._queue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.stop()
        while self._thread.is_alive() and not self._may_be_abandoned():
            self._thread.join(POLL_SECONDS)

    def stop(self) -> None:
        """Ask the source to end and free a producer that waits for room. Does not wait."""
        if not self._stop.is_set():
            self._stopped_at = time.monotonic()
        self._stop.set()
        with self._condition:
            self._condition.notify_all()

    def _may_be_abandoned(self) -> bool:
        """Say whether the thread may end by itself, later: one that only waits for a camera's answer gives no more.

        Cameras are stopped together, so their waits are counted together.
        """
        passed = time.monotonic() - self._stopped_at
        if self.source.live and self.health.state == "connecting" and passed > CONNECTING_SECONDS:
            return True
        if passed > JOIN_SECONDS:
            log.error("%s does not end %.0f s after it was told to; left behind", self._thread.name, JOIN_SECONDS)
            return True
        return False

    def pop(self) -> Frame | None:
        """Return the next waiting frame, or None when none waits now.

        That is the oldest one. But a reader of a live source that finds several waiting, and again new ones among
        several the next time, is behind: it gets the newest, and the others are dropped. One hiccup costs no frame, and
        falling behind never makes them old.
        """
        with self._condition:
            crowded = self.overflow == "drop-oldest" and len(self._queue) > 1
            behind = crowded and self._full_at not in {None, self.received}
            while behind and len(self._queue) > 1:
                self._queue.popleft()
                self.dropped += 1
            self._full_at = self.received if crowded else None
            frame = self._queue.popleft() if self._queue else None
            while frame is not None and self.is_expired(frame):
                self.expired += 1
                self.dropped += 1
                frame = self._queue.popleft() if self._queue else None
            self._condition.notify_all()
            return frame

    def is_expired(self, frame: Frame) -> bool:
        """Say whether a frame is no longer worth showing."""
        return self._max_age_seconds is not None and self.source.live and frame.age_seconds() > self._max_age_seconds

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the source ends. An error of the source is kept in ``error``, not raised."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self.ended)
                if self.finished:
                    return
            frame = self.pop()
            if frame is not None:
                yield frame

    def _run(self) -> None:
        try:
            for frame in self.source.frames(self._stop):
                if not self._put(frame):
                    break
        except Exception as error:  # noqa: BLE001 - kept for the reader: a dead camera ends only itself
            self.error = error
        finally:
            with self._condition:
                self.ended = True
                self._condition.notify_all()

    def _put(self, frame: Frame) -> bool:
        """Queue one frame; return False when the pump was stopped instead."""
        with self._condition:
            self.received += 1
            self._note_arrival(time.monotonic())
            if self.overflow == "wait":
                self._condition.wait_for(lambda: len(self._queue) < self._depth or self._stop.is_set())
            while len(self._queue) >= self._depth and not self._stop.is_set():
                self._queue.popleft()
                self.dropped += 1
            if self._stop.is_set():
                return False
            self._queue.append(frame)
            self._condition.notify_all()
            return True

    def _note_arrival(self, now: float) -> None:
        if self.last_received_at is not None:
            self.mean_interval_seconds = update_mean_interval(self.mean_interval_seconds, now - self.last_received_at)
        self.last_received_at = now


def iter_batches(
    workers: Sequence[SourceWorker],
    condition: threading.Condition,
    over: Callable[[], bool],
    *,
    limit: int,
    window_seconds: float = 0.0,
    until: float | None = None,
    ready: Callable[[SourceWorker], bool] = lambda _pump: True,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[list[Frame]]:
    """Give batches of frames from many cameras: one each in turn, until all have ended or it is ``over``.

    A batch leaves when it is full, when every camera that still runs has given a frame, or ``batch_window_seconds``
    after its first frame; nobody waits for a slow camera longer than that. Whoever was served last comes last next
    time. A camera whose queue waits (a file) may fill the rest of a batch.

    Args:
        workers: the running pumps, all made with ``condition``.
        condition: what they ring.
        over: asked at least every ``POLL_SECONDS``; True ends the batches.
        limit: frames in a batch at the most.
        window_seconds: how long a batch may wait for more cameras.
        until: ``time.monotonic()`` at which the batches end; None = never.
        ready: whether a frame of a camera may be taken now; the batch goes on without the others. Whoever makes it
            true again rings ``condition``.
        idle: called at least every ``IDLE_SECONDS``, without ``condition`` held, whether frames come or not.
    """
    turn = list(workers)
    while _wait_for_frames(turn, condition, over, until, ready):
        idle()
        if window_seconds:
            _wait_for_more([p for p in turn if ready(p)], condition, over, limit, time.monotonic() + window_seconds)
        batch: list[Frame] = []
        served: list[SourceWorker] = []
        for worker in turn:
            if len(batch) < limit and ready(worker) and (frame := worker.pop()):
                batch.append(frame)
                served.append(worker)
        for worker in served:
            while len(batch) < limit and worker.overflow == "wait" and (frame := worker.pop()):
                batch.append(frame)
        turn = [p for p in turn if p not in served] + served
        if batch:
            yield batch


def _wait_for_frames(
    workers: Sequence[SourceWorker],
    condition: threading.Condition,
    over: Callable[[], bool],
    until: float | None,
    ready: Callable[[SourceWorker], bool],
) -> bool:
    """Wait for a frame that may be taken, at most ``IDLE_SECONDS``; return False where there is an end."""
    idle_at = time.monotonic() + IDLE_SECONDS
    with condition:
        while not over() and (until is None or time.monotonic() < until):
            if any(worker.queued and ready(worker) for worker in workers):
                return True
            if all(worker.finished for worker in workers):
                return False
            if time.monotonic() >= idle_at:
                return True
            condition.wait(POLL_SECONDS)
    return False


def _wait_for_more(
    workers: Sequence[SourceWorker],
    condition: threading.Condition,
    over: Callable[[], bool],
    limit: int,
    deadline: float,
) -> None:
    """Wait until each running camera has a frame, the batch is full, or the deadline has passed."""
    with condition:
        while not over():
            running = [worker for worker in workers if not worker.finished]
            left = deadline - time.monotonic()
            if left <= 0 or sum(1 for worker in running if worker.queued) >= min(limit, len(running)):
                return
            condition.wait(min(left, POLL_SECONDS))


class QueueWorker(Generic[T]):
    """A thread with a bounded queue before a slow door: the one who puts is never held up longer than it wants.

    Leaving drains what waits; after ``abandon`` it does not.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[T], None],
        *,
        depth: int = 8,
        idle: Callable[[], None] | None = None,
        size_of: Callable[[T], int] | None = None,
        key: Callable[[T], str] | None = None,
        max_bytes: int = 1 << 28,
        skips: Callable[[Exception], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what the thread calls.

        Args:
            name: for messages.
            handler: called with each item.
            depth: how many items of a camera may wait.
            idle: called every ``POLL_SECONDS`` while nothing waits: a window must answer keys, a late viewer wants the
                last picture.
            size_of: the bytes an item holds; None: items are only counted.
            key: the camera of an item: each has a queue of its own, and its share of the thread's time; None: all
                items are one camera's.
            max_bytes: what waits may hold so much together; one item of each camera always may wait.
            clock: monotonic seconds, for the share of the time.
            skips: says of what ``handler`` or ``idle`` raised whether it concerns that item alone: it is counted as
                refused, and the thread goes on. None: every error closes the door.
        """
        self.name = name
        self.error: BaseException | None = None
        """Why the door was closed; None while it works."""
        self.fault: Exception | None = None
        """The first error outside our tree that concerned one item alone: a bug."""
        self.delivered = 0
        self.dropped = 0
        self.refused = 0
        """Items that could not be delivered, each for a reason of its own."""
        self.refusal = ""
        """The reason of the last one of them."""
        self.counts_all = False
        """Whether every item counts, so that one that is refused is an error of the run."""
        self._handler = handler
        self._idle = idle
        self._clock = clock
        self._skips = skips or (lambda _error: False)
        self._failures = 0
        """Items in a row that failed for a reason outside our tree."""
        # The lock guards the queue and the flags; deliver runs without it.
        self._condition = threading.Condition()
        self._queue: FairQueue[T] = FairQueue(
            depth, key=key or (lambda _item: ""), weigh=size_of or (lambda _item: 0), most_bytes=max_bytes
        )
        self._closing = False
        self.stop_requested = threading.Event()
        """Set when the door asked for the end: somebody closed the window."""
        self._thread = threading.Thread(target=self._run, name=f"relay {name}", daemon=True)

    @property
    def failed(self) -> bool:
        """Whether it delivers no more."""
        return self.error is not None or self.stop_requested.is_set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if kind is not None:
            self.clear()
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        _join(self._thread)

    def clear(self) -> None:
        """Drop what waits, counted."""
        with self._condition:
            self.dropped += self._queue.clear()
            self._condition.notify_all()

    def put(self, item: T, overflow: Overflow = "drop-oldest") -> None:
        """Queue one item: wait for room, or make room by dropping the oldest. Does nothing once it is broken."""
        with self._condition:
            if overflow == "wait":
                self._condition.wait_for(lambda: self._queue.has_room(item) or self.failed)
            while not self._queue.has_room(item):
                self._queue.drop_oldest(item)
                self.dropped += 1
            if not self.failed:
                self._queue.add(item)
                self._condition.notify_all()

    def _run(self) -> None:
        try:
            while True:
                with self._condition:
                    patience = None if self._idle is None else POLL_SECONDS
                    self._condition.wait_for(lambda: self._queue or self._closing, patience)
                    item = self._queue.take()
                    self._condition.notify_all()
                if item is not None:
                    started_at = self._clock()
                    self._deliver_one(item)
                    with self._condition:
                        self._queue.used(item, self._clock() - started_at)
                elif self._closing:
                    return
                elif self._idle is not None:
                    self._idle_once(self._idle)
        except StopRequested:
            self.stop_requested.set()
        except Exception as error:  # noqa: BLE001 - kept for the reader: a dead sink ends only itself
            self.error = error
            log.warning("%s closed: %s", self.name, error)
        finally:
            self.clear()

    def _deliver_one(self, item: T) -> None:
        try:
            self._handler(item)
        except StopRequested:
            raise
        except Exception as error:  # noqa: BLE001 - one item ends no door
            self._refuse(error)
        else:
            self.delivered += 1
            self._failures = 0

    def _idle_once(self, idle: Callable[[], None]) -> None:
        try:
            idle()
        except StopRequested:
            raise
        except Exception as error:  # noqa: BLE001 - one item ends no door
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        """Count an item that failed alone, and say so once a reason; raise the error where it is more than that."""
        if not self._skips(error):
            raise error
        if not isinstance(error, ReciproStreamError):
            self._failures += 1
            if self._failures >= _MAX_FAILURES:
                raise error
            self.fault = self.fault or (None if isinstance(error, OSError) else error)
        self.refused += 1
        if (reason := str(error) or type(error).__name__) != self.refusal:
            quietly = self.refused > _MAX_SAID
            log.log(logging.DEBUG if quietly else logging.WARNING, "%s: a frame is left out: %s", self.name, reason)
        self.refusal = reason


class ThreadWorker:
    """Runs one long call in a thread: a server with a loop of its own, a file that is being made.

    Leaving asks it to end and waits for it. What it raised is kept in ``error``.
    """

    def __init__(self, name: str, run: Callable[[], None], stop: Callable[[], None]) -> None:
        """Take what the thread calls.

        Args:
            name: for messages.
            run: called once.
            stop: makes ``run`` return soon; called from another thread, perhaps after its end.
        """
        self.name = name
        self.error: BaseException | None = None
        self.ended = False
        """Whether ``run`` has returned or raised."""
        self._call = run
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name=f"worker {name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stop()
        _join(self._thread)

    def _run(self) -> None:
        try:
            self._call()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - kept for the reader; a server may end by SystemExit
            self.error = error
            log.warning("%s ended: %s", self.name, error)
        finally:
            self.ended = True


def _join(thread: threading.Thread) -> None:
    thread.join(JOIN_SECONDS)
    if thread.is_alive():
        log.error("%s does not end %.0f s after it was told to; left behind", thread.name, JOIN_SECONDS)

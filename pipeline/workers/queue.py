"""A thread with a bounded queue for a slow task: a sink, or the drawing of a camera's frames."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from pipeline.errors import ReciproStreamError
from pipeline.fair_queue import FairQueue
from pipeline.ports import Overflow, StopRequested
from pipeline.workers.thread import POLL_SECONDS, Wakeup, join

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_FAILURES: Final = 10
"""A worker closes after this many consecutive items fail with an exception other than ``ReciproStreamError``."""
MAX_WARNINGS: Final = 20
"""Number of refused items that are logged as warnings; further items are logged at debug level."""


class Outcome(Enum):
    """Result of one item that was put into a worker's queue."""

    DELIVERED = "delivered"
    QUEUE_FULL = "queue full"
    """The item was removed from a full queue to make room for a newer item."""
    REFUSED = "refused"
    """The handler raised an error that concerns only this item."""
    FAILED = "failed"
    """The handler raised an error that closed the worker."""
    CLOSED = "closed"
    """The worker had failed, or the queue was cleared."""


class QueueWorker(Generic[T]):
    """Calls a handler with queued items in its own thread, so that ``put`` does not wait for the handler.

    At the end of the ``with`` block, queued items are still handled, unless the block raised an exception. Each item
    gets exactly one ``Outcome``.
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
        on_outcome: Callable[[T, Outcome], None] | None = None,
        counted: Callable[[T], bool] = lambda _item: True,
        on_forget: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the thread; entering starts it.

        Args:
            name: for messages.
            handler: called with each item.
            depth: maximum number of queued items of a camera.
            idle: called every ``POLL_SECONDS`` while the queue is empty: a window handles keys, a new viewer gets the
                last image.
            size_of: returns the size of an item in bytes; None: items have no size.
            key: returns the camera of an item; each camera has its own queue and a share of the thread's time. None:
                all items belong to one camera.
            max_bytes: maximum size of all queued items in bytes; one item of each camera may always be queued.
            skips: returns whether an exception of ``handler`` or ``idle`` concerns only one item; the item is then
                refused and the thread continues. None: every exception closes the worker.
            on_outcome: called once for each item, by the thread in which its outcome is decided; must not block.
            counted: returns whether ``delivered``, ``dropped`` and ``refused`` count an item.
            on_forget: called in the thread with a camera that ``forget`` named, after its last item.
            clock: returns monotonic seconds; measures the share of the time.
        """
        self.name = name
        self.error: BaseException | None = None
        """The exception that closed the worker; None while it runs."""
        self.fault: Exception | None = None
        """The first exception for one item that was not a ``ReciproStreamError``, which is a bug."""
        self.delivered = 0
        self.dropped = 0
        """Number of items that were removed from a full queue, or lost because the worker had closed."""
        self.refused = 0
        """Number of items for which the handler raised an error that concerned only this item."""
        self.refusal = ""
        """Message of the last error that was counted in ``refused``."""
        self.counts_all = False
        """True if the run has to report refused items as an error."""
        self.stop_requested = threading.Event()
        """Set when the handler requested the end of the run: the window was closed."""
        self._handler = handler
        self._idle = idle
        self._clock = clock
        self._skips = skips or (lambda _error: False)
        self._on_outcome = on_outcome or (lambda _item, _outcome: None)
        self._counted = counted
        self._on_forget = on_forget or (lambda _key: None)
        self._to_forget: list[str] = []
        """Cameras that left the run; their items may still be queued."""
        self._failures = 0
        """Number of consecutive items that failed with an exception other than ``ReciproStreamError``."""
        # Guards the queue, the counters and the flags; the handler and on_outcome run without it. Notified when items
        # were taken, for ``put`` that waits.
        self._room = threading.Condition(threading.Lock())
        self._work = Wakeup()
        """Set when the thread has work to do."""
        self._queue: FairQueue[T] = FairQueue(
            depth, key=key or (lambda _item: ""), size_of=size_of or (lambda _item: 0), max_bytes=max_bytes
        )
        self._closing = False
        self._ended = False
        """True if the thread handles no more items."""
        self._thread = threading.Thread(target=self._run, name=f"queue {name}", daemon=True)

    @property
    def failed(self) -> bool:
        """True if the worker delivers no more items."""
        return self.error is not None or self.stop_requested.is_set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if kind is not None:
            self.clear()
        with self._room:
            self._closing = True
        self._work.set()
        join(self._thread)

    def clear(self) -> None:
        """Drop all queued items."""
        with self._room:
            items = self._queue.clear()
            self.dropped += sum(map(self._counted, items))
            self._room.notify_all()
        for item in items:
            self._on_outcome(item, Outcome.CLOSED)

    def forget(self, key: str) -> None:
        """Remove the state of a camera after its queued items are handled."""
        with self._room:
            if not self._ended:
                self._to_forget.append(key)
        self._work.set()

    def put(self, item: T, overflow: Overflow = "drop-oldest") -> None:
        """Queue an item; a worker that has failed drops it.

        Args:
            item: the item.
            overflow: action when the queue is full: wait for space, or drop the oldest items.
        """
        removed: list[T] = []
        with self._room:
            if overflow == "wait":
                self._room.wait_for(lambda: self._queue.has_room(item) or self._ended)
            closed = self._ended
            if not closed:
                while not self._queue.has_room(item):
                    removed.append(self._queue.drop_oldest(item))
                self._queue.add(item)
            self.dropped += sum(map(self._counted, [*removed, item] if closed else removed))
        self._work.set()
        for old in removed:
            self._on_outcome(old, Outcome.QUEUE_FULL)
        if closed:
            self._on_outcome(item, Outcome.CLOSED)

    def _run(self) -> None:
        try:
            self._handle_items()
        except StopRequested:
            self.stop_requested.set()
        except Exception as error:  # noqa: BLE001 - kept in `error`: a failed sink ends only itself
            self.error = error
            log.warning("%s failed and is closed: %s", self.name, error)
        finally:
            with self._room:
                self._ended = True
            self.clear()

    def _handle_items(self) -> None:
        timeout_seconds = None if self._idle is None else POLL_SECONDS
        item, used_seconds = None, 0.0
        while True:
            with self._room:
                if item is not None:
                    self._queue.used(item, used_seconds)
                forgotten = self._take_forgotten() if self._to_forget else ()
                item, is_closing = self._queue.take(), self._closing
                self._room.notify_all()
            for key in forgotten:
                self._call_idle(partial(self._on_forget, key))
            if item is not None:
                started_at = self._clock()
                self._handle(item)
                used_seconds = self._clock() - started_at
            elif is_closing:
                return
            elif not self._work.wait(timeout_seconds) and self._idle is not None:
                self._call_idle(self._idle)

    def _take_forgotten(self) -> list[str]:
        """Return the cameras that left the run and have no more queued items."""
        forgotten = [key for key in self._to_forget if self._queue.forget(key)]
        self._to_forget = [key for key in self._to_forget if key not in forgotten]
        return forgotten

    def _handle(self, item: T) -> None:
        outcome = Outcome.FAILED
        try:
            self._handler(item)
        except StopRequested:
            raise
        except Exception as error:  # noqa: BLE001 - an error of one item does not close the worker
            self._refuse(error, counted=self._counted(item))
            outcome = Outcome.REFUSED
        else:
            self.delivered += self._counted(item)
            self._failures = 0
            outcome = Outcome.DELIVERED
        finally:
            if outcome is Outcome.FAILED:
                with self._room:
                    self.dropped += self._counted(item)
            self._on_outcome(item, outcome)

    def _call_idle(self, idle: Callable[[], None]) -> None:
        try:
            idle()
        except StopRequested:
            raise
        except Exception as error:  # noqa: BLE001 - an error of one item does not close the worker
            self._refuse(error)

    def _refuse(self, error: Exception, *, counted: bool = True) -> None:
        """Count a refused item and log each reason once; raise ``error`` if it closes the worker."""
        if not self._skips(error):
            raise error
        if not isinstance(error, ReciproStreamError):
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise error
            self.fault = self.fault or (None if isinstance(error, OSError) else error)
        self.refused += counted
        if (reason := str(error) or type(error).__name__) != self.refusal:
            level = logging.DEBUG if self.refused > MAX_WARNINGS else logging.WARNING
            log.log(level, "%s: a frame is left out: %s", self.name, reason)
        self.refusal = reason

"""A thread with a bounded queue in front of something slow: a sink, the drawing of a camera's frames."""

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
"""A worker closes after this many items in a row that fail with an error outside ``ReciproStreamError``."""
MAX_WARNINGS: Final = 20
"""After this many refused items further ones are logged at debug level only."""


class Outcome(Enum):
    """Result of an item in a worker."""

    DELIVERED = "delivered"
    QUEUE_FULL = "queue full"
    """Removed from a full queue in favour of a newer item."""
    REFUSED = "refused"
    """The handler raised an error that concerns this item alone."""
    FAILED = "failed"
    """The handler raised an error that closed the worker."""
    CLOSED = "closed"
    """The worker had failed, or the queue was cleared."""


class QueueWorker(Generic[T]):
    """Calls a handler with queued items in a thread of its own, so that ``put`` need not wait for the handler.

    Leaving the ``with`` block handles what is queued; after ``clear`` or an exception in the block it does not. Each
    item has exactly one ``Outcome``.
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
            depth: how many items of a camera may be queued.
            idle: called every ``POLL_SECONDS`` while nothing is queued: a window handles keys, a new viewer gets the
                last image.
            size_of: the bytes an item holds; None: items are only counted.
            key: the camera of an item: each camera has a queue and a share of the thread's time; None: all items belong
                to one camera.
            max_bytes: limit of the bytes of all queued items; one item of each camera may always be queued.
            skips: whether an exception of ``handler`` or ``idle`` concerns that item alone: the item is then refused
                and the thread continues. None: every exception closes the worker.
            on_outcome: called once for each item, from the thread that decides; must not block.
            counted: whether ``delivered``, ``dropped`` and ``refused`` count an item.
            on_forget: called in the thread, after the last item of a camera that ``forget`` names.
            clock: monotonic seconds, for the share of the time.
        """
        self.name = name
        self.error: BaseException | None = None
        """The error that closed the worker; None while it works."""
        self.fault: Exception | None = None
        """The first error outside ``ReciproStreamError`` that concerned one item alone: a bug."""
        self.delivered = 0
        self.dropped = 0
        """Items removed from a full queue, or lost because the worker had closed."""
        self.refused = 0
        """Items for which the handler raised an error that concerns them alone."""
        self.refusal = ""
        """The text of the last such error."""
        self.counts_all = False
        """True if a refused item is an error of the run."""
        self.stop_requested = threading.Event()
        """Set when the handler asked for the end of the run: the window was closed."""
        self._handler = handler
        self._idle = idle
        self._clock = clock
        self._skips = skips or (lambda _error: False)
        self._on_outcome = on_outcome or (lambda _item, _outcome: None)
        self._counted = counted
        self._on_forget = on_forget or (lambda _key: None)
        self._to_forget: list[str] = []
        """Cameras that left the run, of which items may be queued."""
        self._failures = 0
        """Items in a row that failed with an error outside ``ReciproStreamError``."""
        # Guards the queue, the counters and the flags; the handler and on_outcome run without it. Notified when items
        # were taken, for ``put`` that waits.
        self._room = threading.Condition(threading.Lock())
        self._work = Wakeup()
        """Set when there is something to do for the thread."""
        self._queue: FairQueue[T] = FairQueue(
            depth, key=key or (lambda _item: ""), size_of=size_of or (lambda _item: 0), max_bytes=max_bytes
        )
        self._closing = False
        self._ended = False
        """True if the thread takes no more items."""
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
        """Release a camera once its queued items are handled."""
        with self._room:
            if not self._ended:
                self._to_forget.append(key)
        self._work.set()

    def put(self, item: T, overflow: Overflow = "drop-oldest") -> None:
        """Queue an item: wait for room, or make room by dropping the oldest items. Drops it once the worker failed."""
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
            log.warning("%s closed: %s", self.name, error)
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
        """Return the cameras to release that have no queued items."""
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
        """Count an item that failed alone and log each reason once; raise an error that closes the worker."""
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

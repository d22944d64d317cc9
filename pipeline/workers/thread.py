"""A thread for one long call, and the wake-up and time limits of all workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
"""Interval at which a waiting thread checks whether the run ends, because a signal handler cannot notify it."""

JOIN_SECONDS: Final = 10.0
"""Time that a stopped thread has to end; a thread that takes longer is abandoned (all are daemon threads)."""


class Wakeup:
    """Wakes the one thread that waits. Several calls of ``set`` before a ``wait`` count as one.

    Used in place of ``threading.Condition``, which creates a lock for each wait and takes three times as long: that
    was most of the time per frame in these threads. After each ``wait`` the thread must check its condition.
    """

    def __init__(self) -> None:
        """Create it unset."""
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        """Wake the waiting thread, or let the next ``wait`` return at once."""
        if self._unset.locked():
            with suppress(RuntimeError):  # another thread has just released it
                self._unset.release()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for ``set``; return False after ``timeout_seconds`` (None = never)."""
        return self._unset.acquire(timeout=-1 if timeout_seconds is None else max(timeout_seconds, 0.0))


class ThreadWorker:
    """Runs one long call in a thread: a server with its own event loop, or an encoder.

    The end of the ``with`` block stops the call and joins the thread. An exception of the call is stored in ``error``.
    """

    def __init__(self, name: str, run: Callable[[], None], stop: Callable[[], None]) -> None:
        """Create the thread; entering starts it.

        Args:
            name: for messages.
            run: called once.
            stop: makes ``run`` return soon; called by another thread, possibly after ``run`` has returned.
        """
        self.name = name
        self.error: BaseException | None = None
        self.ended = False
        """True if ``run`` has returned or raised."""
        self._call = run
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name=f"worker {name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        join(self._thread)

    def _run(self) -> None:
        try:
            self._call()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - kept in `error`; a server may end by SystemExit
            self.error = error
            log.warning("%s ended with an error: %s", self.name, error)
        finally:
            self.ended = True


class WorkerOwner:
    """Base class of a context manager that runs one ``ThreadWorker`` during its block."""

    _worker: ThreadWorker
    """Set by the subclass in ``__init__``."""

    def __enter__(self) -> Self:
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._worker.__exit__(kind, error, trace)


def join(thread: threading.Thread) -> None:
    """Wait at most ``JOIN_SECONDS`` for a thread to end; log an error if it does not."""
    if thread.ident is None:  # it was never started
        return
    thread.join(JOIN_SECONDS)
    if thread.is_alive():
        log_abandoned(thread)


def log_abandoned(thread: threading.Thread) -> None:
    """Log an error: a thread did not end within ``JOIN_SECONDS``."""
    log.error("%s did not end within %.0f s after it was stopped; it is abandoned", thread.name, JOIN_SECONDS)

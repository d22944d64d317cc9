"""Ctrl-C, SIGTERM and SIGHUP as a shutdown event."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

SAME_REQUEST_SECONDS: Final = 1.0
"""Signals of different kinds within this time are one request."""


class ShutdownEvent(threading.Event):
    """Set when a signal requests the end of the run."""

    signals: frozenset[int] = frozenset()
    """Numbers of the signals received."""
    requested_at: float = 0.0
    """``time.monotonic()`` of the first signal."""

    @property
    def other_signal(self) -> signal.Signals:
        """A signal of another kind, for child processes that may have received the first one already."""
        return signal.SIGINT if signal.SIGTERM in self.signals else signal.SIGTERM


@contextmanager
def shutdown_on_signal(started: threading.Event) -> Iterator[ShutdownEvent]:
    """Yield an event that Ctrl-C, SIGTERM and SIGHUP set; a second signal ends the process at once.

    Signals of two kinds within a second are one request: a terminal or a supervisor signals every process of a run, and
    the parent process (``commands.multi_device``) signals its children too. A SIGHUP that is ignored (``nohup``) stays
    ignored.

    Until ``started`` is set nothing needs an orderly shutdown, and the first signal ends the process at once: an
    exception raised in a handler would pass through compilers that do not expect it.
    """
    stop = ShutdownEvent()

    def end(number: int, _frame: object) -> None:
        if stop.is_set():
            if number in stop.signals or time.monotonic() - stop.requested_at > SAME_REQUEST_SECONDS:
                os._exit(128 + number)
            stop.signals |= {number}
            return
        stop.signals, stop.requested_at = frozenset({number}), time.monotonic()
        stop.set()
        if not started.is_set():
            _write_stderr(b"\nStopped before the first frame; nothing was written.\n")
            os._exit(0)
        _write_stderr(b"\nShutting down; repeat to end at once.\n")

    before = {number: signal.signal(number, end) for number in _handled_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handled_signals() -> list[signal.Signals]:
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    always = [signal.SIGINT, signal.SIGTERM]
    return always if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN else [*always, hangup]


def _write_stderr(message: bytes) -> None:
    """Write to standard error. Not by ``print``: the signal may have interrupted a ``print``."""
    with suppress(OSError):
        os.write(2, message)

"""Turns Ctrl-C, SIGTERM and SIGHUP into a shutdown event."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

SAME_REQUEST_SECONDS: Final = 1.0
"""Signals of different kinds within this time, in seconds, count as one request."""


class ShutdownEvent(threading.Event):
    """Event that is set when a signal requests the end of the run."""

    signals: frozenset[int] = frozenset()
    """Numbers of the received signals."""
    requested_at: float = 0.0
    """``time.monotonic()`` of the first signal."""

    @property
    def other_signal(self) -> signal.Signals:
        """A signal of another kind, for child processes that may already have received the first signal."""
        return signal.SIGINT if signal.SIGTERM in self.signals else signal.SIGTERM


@contextmanager
def shutdown_on_signal(started: threading.Event) -> Iterator[ShutdownEvent]:
    """Yield an event that Ctrl-C, SIGTERM and SIGHUP set; a second signal ends the process at once.

    Signals of two kinds within a second count as one request. A terminal or a supervisor signals every process of a
    run, and the parent process (``commands.multi_device``) signals its children, too. SIGHUP stays ignored if it was
    ignored before, as under ``nohup``.

    Before ``started`` is set, no orderly shutdown is needed, and the first signal ends the process at once. An
    exception from the handler would be unsafe, because it could interrupt a compiler.
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
    """Write to standard error with ``os.write``, because the signal may have interrupted a ``print``."""
    with suppress(OSError):
        os.write(2, message)

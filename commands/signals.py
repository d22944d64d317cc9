"""Ctrl-C, SIGTERM and a lost terminal as an event."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

TOGETHER_SECONDS: Final = 1.0


class ShutdownEvent(threading.Event):
    """Set once somebody wishes the end."""

    signals: frozenset[int] = frozenset()
    """What it was wished by."""
    requested_at: float = 0.0
    """``time.monotonic()`` at the first."""

    @property
    def other_signal(self) -> signal.Signals:
        """One that says the same to a process that may have been told already: another kind is no second wish."""
        return signal.SIGINT if signal.SIGTERM in self.signals else signal.SIGTERM


@contextmanager
def shutdown_on_signal(begun: threading.Event) -> Iterator[ShutdownEvent]:
    """Give an event that Ctrl-C, SIGTERM and SIGHUP set; a second one ends the process at once.

    Two of different kinds that come together are one wish: a terminal or a supervisor sends its own to every process of
    a run, and the process that started the others (``commands.multi_device``) asks them too. Who was started to outlive
    its terminal (``nohup``) does.

    Until ``begun`` is set there is nothing to be ended in order, and the first one ends the process at once, too: an
    exception out of a handler would go through compilers that do not expect it, and abort.
    """
    stop = ShutdownEvent()

    def end(number: int, _frame: object) -> None:
        if stop.is_set():
            if number in stop.signals or time.monotonic() - stop.requested_at > TOGETHER_SECONDS:
                os._exit(128 + number)
            stop.signals |= {number}
            return
        stop.signals, stop.requested_at = frozenset({number}), time.monotonic()
        stop.set()
        if not begun.is_set():
            _say(b"\nStopped before the first frame; nothing was written.\n")
            os._exit(0)
        _say(b"\nEnding in order; once more ends at once.\n")

    before = {number: signal.signal(number, end) for number in _heard()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard() -> list[signal.Signals]:
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    ended_by = [signal.SIGINT, signal.SIGTERM]
    return ended_by if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN else [*ended_by, hangup]


def _say(words: bytes) -> None:
    """Write to standard error, where there is one yet. No print: the signal may have come within one."""
    with suppress(OSError):
        os.write(2, words)

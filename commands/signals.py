"""Ctrl-C and SIGTERM as an event."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TOGETHER_SECONDS: Final = 1.0


@contextmanager
def until_interrupted(begun: threading.Event) -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set; a second one ends the process at once.

    Signals that come together are one wish: a terminal or a supervisor sends its own to every process of a run, and the
    process that started the others (``commands.shards``) asks them too.

    Until ``begun`` is set there is nothing to be ended in order, and the first one ends the process at once, too: an
    exception out of a handler would go through compilers that do not expect it, and abort.
    """
    stop = threading.Event()
    asked_at = 0.0

    def end(number: int, _frame: object) -> None:
        nonlocal asked_at
        if stop.is_set():
            if time.monotonic() - asked_at > TOGETHER_SECONDS:
                os._exit(128 + number)
            return
        asked_at = time.monotonic()
        stop.set()
        if not begun.is_set():
            os.write(2, b"\nStopped before the first frame; nothing was written.\n")
            os._exit(0)
        # No print: the signal may have come within one.
        os.write(2, b"\nEnding in order; once more ends at once.\n")

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

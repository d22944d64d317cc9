"""Ends a process when its parent has ended, even after ``kill -9``.

The parent keeps the writing end of a pipe open and writes nothing. When the parent ends, the system closes this end,
and the child's reading end becomes readable. This works on every POSIX system, and before the child has installed
signal handlers.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from pipeline.workers.thread import ThreadWorker

log = logging.getLogger("recipro-stream")

VARIABLE: Final = "RECIPRO_STREAM_PARENT"
"""Environment variable with the file descriptor of the pipe's reading end."""
_POLL_SECONDS: Final = 0.5
_END_SECONDS: Final = 15.0
"""Time limit for an orderly end in seconds; afterwards the process exits at once."""


@contextmanager
def ends_with_parent(environment: Mapping[str, str]) -> Iterator[None]:
    """Send SIGTERM to this process when its parent ends; without the environment variable, do nothing."""
    descriptor = environment.get(VARIABLE, "")
    if not (descriptor.isascii() and descriptor.isdigit() and len(descriptor) < 10):
        yield
        return
    reading, stop = int(descriptor), threading.Event()
    os.set_inheritable(reading, False)

    def watch() -> None:
        while not stop.is_set():
            ready, _, _ = select.select([reading], [], [], _POLL_SECONDS)
            if ready:
                log.warning("the parent process has ended; this process ends, too")
                os.kill(os.getpid(), signal.SIGTERM)
                if not stop.wait(_END_SECONDS):
                    os._exit(1)
                return

    with ThreadWorker("parent", watch, stop.set):
        yield
    os.close(reading)

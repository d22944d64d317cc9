"""Ends a process when its parent is gone, even after ``kill -9``.

The parent holds one end of a pipe and writes nothing. When the parent ends, the system closes that end, and reading the
other end returns. This works on every POSIX system, and before the child has installed signal handlers.
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
"""Environment variable with the descriptor of the pipe's reading end."""
_POLL_SECONDS: Final = 0.5
_END_SECONDS: Final = 15.0
"""Time for an orderly end in seconds; then the process ends at once."""


@contextmanager
def ends_with_parent(environment: Mapping[str, str]) -> Iterator[None]:
    """End this process by SIGTERM once its parent is gone; do nothing without the environment variable."""
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
                log.warning("the parent process is gone; ending in order")
                os.kill(os.getpid(), signal.SIGTERM)
                if not stop.wait(_END_SECONDS):
                    os._exit(1)
                return

    with ThreadWorker("parent", watch, stop.set):
        yield
    os.close(reading)

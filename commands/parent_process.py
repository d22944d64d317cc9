"""A process that ends when the one that started it is gone, however that ended: ``kill -9`` tells nobody.

The parent holds one end of a pipe and writes nothing. When it is gone the system closes that end, and reading the other
one returns. This holds on every POSIX system, and before the child is ready to hear a signal.
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
"""Names the descriptor of the pipe's reading end in the child's environment."""
_POLL_SECONDS: Final = 0.5
_END_SECONDS: Final = 15.0
"""How long ending in order may take; then the process ends at once."""


@contextmanager
def ends_with_parent(environment: Mapping[str, str]) -> Iterator[None]:
    """End this process in order, by SIGTERM, once its parent is gone; do nothing where no parent asks for that."""
    told = environment.get(VARIABLE, "")
    if not (told.isascii() and told.isdigit() and len(told) < 10):
        yield
        return
    reading, stop = int(told), threading.Event()
    os.set_inheritable(reading, False)

    def watch() -> None:
        while not stop.is_set():
            ready, _, _ = select.select([reading], [], [], _POLL_SECONDS)
            if ready:
                log.warning("the process that started this one is gone; ending in order")
                os.kill(os.getpid(), signal.SIGTERM)
                if not stop.wait(_END_SECONDS):
                    os._exit(1)
                return

    with ThreadWorker("parent", watch, stop.set):
        yield
    os.close(reading)

"""Runs an asyncio server in its own thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from pipeline.workers.thread import ThreadWorker

_WRITE_TO_CLOSED: Final = "socket.send() raised exception."
"""What asyncio logs, without a name, when a library goes on writing to a client that has gone."""
logging.getLogger("asyncio").addFilter(lambda record: record.getMessage() != _WRITE_TO_CLOSED)


class LoopThread:
    """Runs a coroutine in a thread with its own event loop, until ``stop``."""

    def __init__(self, name: str, serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Set the name of the thread and the coroutine function, which is called with the event that ends it."""
        self._serve = serve
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._lock = threading.Lock()
        self._is_stopped = False
        self._worker = ThreadWorker(name, lambda: asyncio.run(self._run()), self._request_end)

    @property
    def ended(self) -> bool:
        """True if the coroutine has returned or raised."""
        return self._worker.ended

    @property
    def error(self) -> BaseException | None:
        """The error that the coroutine raised."""
        return self._worker.error

    def start(self) -> None:
        """Start the thread."""
        self._worker.__enter__()

    def call(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` in the event loop; do nothing after the loop has ended."""
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Set the event that ends the coroutine, and wait for the thread."""
        self._worker.__exit__(None, None, None)

    def _request_end(self) -> None:
        with self._lock:
            self._is_stopped = True
        if self._end is not None:
            self.call(self._end.set)

    async def _run(self) -> None:
        end = asyncio.Event()
        with self._lock:
            self._end, self._loop = end, asyncio.get_running_loop()
            if self._is_stopped:
                end.set()
        try:
            await self._serve(end)
        finally:
            with self._lock:
                self._loop = None

"""An asyncio server in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from pipeline.workers.thread import ThreadWorker


class LoopThread:
    """Runs a coroutine with an event loop of its own until it is asked to end."""

    def __init__(self, name: str, serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Set the coroutine: it is called with the event that asks it to end."""
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
        """Call ``callback`` in the loop; after its end do nothing."""
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Ask the coroutine to end, and wait for its thread."""
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

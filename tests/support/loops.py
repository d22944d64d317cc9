"""An asyncio loop in its own thread, controlled by a test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from tests.support.limits import LIMIT_SECONDS

T = TypeVar("T")


class LoopThread:
    """Runs a loop until the block is left, then closes it."""

    def __init__(self, name: str) -> None:
        """Create a loop thread with a name."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait_for(self._settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` in the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT_SECONDS)

    def call(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the loop and return its result."""

        async def called() -> T:
            return function()

        return self.wait_for(called())

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call ``function`` in the loop, some time; does nothing once the loop is closed."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *arguments)

    @staticmethod
    async def _settle() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the loop's next rounds
        await asyncio.sleep(0)

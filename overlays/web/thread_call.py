"""Runs calls that would block the event loop, each in its own thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pipeline.workers.thread import ThreadWorker

T = TypeVar("T")


async def call_in_thread(name: str, call: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """Run ``call`` in a new thread and return its result, or raise its exception.

    Args:
        name: name of the thread, for messages.
        call: the function to run, called once.
        stop: called when the thread is no longer needed, for instance after a cancellation; must make ``call`` return.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(set_outcome: Callable[[], None]) -> None:
        if not done.done():
            set_outcome()

    def run() -> None:
        try:
            value = call()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            loop.call_soon_threadsafe(finish, lambda error=error: done.set_exception(error))
        else:
            loop.call_soon_threadsafe(finish, lambda: done.set_result(value))

    with ThreadWorker(name, run, stop):
        return await done

"""Calls that would block the event loop, each in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pipeline.workers.thread import ThreadWorker

T = TypeVar("T")


async def call_in_thread(name: str, call: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """Return what ``call`` returns, or raise what it raises.

    Args:
        name: of the thread, for messages.
        call: called once, in the thread.
        stop: makes ``call`` return soon; called when nobody waits for it any more.
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

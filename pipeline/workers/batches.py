"""Forms batches of frames from many cameras, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pipeline.frames import Frame
from pipeline.workers.source import Arrivals, SourceWorker
from pipeline.workers.thread import POLL_SECONDS

IDLE_SECONDS: Final = 0.25
"""Maximum time between two calls of ``idle`` by ``iter_batches``."""


def iter_batches(
    workers: Sequence[SourceWorker],
    arrivals: Arrivals,
    is_over: Callable[[], bool],
    *,
    limit: int,
    window_seconds: float = 0.0,
    deadline: float | None = None,
    is_ready: Callable[[SourceWorker], bool] = lambda _worker: True,
    idle: Callable[[], None] = lambda: None,
    has_appeared: Callable[[], bool] | None = None,
) -> Iterator[list[Frame]]:
    """Yield batches of frames, one frame of each camera in turn, until all cameras have ended or ``is_over()``.

    A batch is yielded when it is full, when it has a frame of every running camera, or ``window_seconds`` after its
    first frame, so that a slow camera does not delay it longer. The cameras of a batch come last in the next batch. A
    camera with ``overflow="wait"`` (a file) may fill the rest of a batch.

    Args:
        workers: the running source workers, all created with ``arrivals``; ``idle`` may append and remove some.
        arrivals: the object that all workers notify.
        is_over: called at least every ``POLL_SECONDS``; True ends the batches.
        limit: maximum number of frames in a batch.
        window_seconds: maximum time that a batch waits for more cameras.
        deadline: ``time.monotonic()`` at which the batches end; None = never.
        is_ready: returns whether a frame of a camera may be taken now; other cameras are skipped. Notify ``arrivals``
            when the result becomes True.
        idle: called about every ``IDLE_SECONDS``, with or without frames, and without the lock of ``arrivals``.
        has_appeared: returns whether ``idle`` has workers to append; ``idle`` is then called at once. Notify
            ``arrivals`` when the result becomes True. If it is given, the batches continue when all cameras have ended.
    """
    idle_at = time.monotonic()
    while _wait_for_frames(workers, arrivals, is_over, deadline, is_ready, idle_at=idle_at, has_appeared=has_appeared):
        if time.monotonic() >= idle_at or (has_appeared is not None and has_appeared()):
            idle()
            idle_at = time.monotonic() + IDLE_SECONDS
        if window_seconds:
            ready = [worker for worker in workers if is_ready(worker)]
            _wait_for_more(ready, arrivals, is_over, limit, time.monotonic() + window_seconds)
        if batch := _take_batch(arrivals, limit, is_ready):
            yield batch


def _take_batch(arrivals: Arrivals, limit: int, is_ready: Callable[[SourceWorker], bool]) -> list[Frame]:
    """Return at most ``limit`` frames: one of each camera in turn, then more of cameras with ``overflow="wait"``."""
    batch: list[Frame] = []
    served: list[SourceWorker] = []
    with arrivals:
        arrivals.looks += 1
        for worker in tuple(arrivals.queued):
            if len(batch) < limit and is_ready(worker) and (frame := worker.pop()):
                batch.append(frame)
                served.append(worker)
    for worker in served:
        while len(batch) < limit and worker.overflow == "wait" and (frame := worker.pop()):
            batch.append(frame)
    return batch


def _wait_for_frames(
    workers: Sequence[SourceWorker],
    arrivals: Arrivals,
    is_over: Callable[[], bool],
    deadline: float | None,
    is_ready: Callable[[SourceWorker], bool],
    *,
    idle_at: float,
    has_appeared: Callable[[], bool] | None,
) -> bool:
    """Wait for a frame that may be taken, at most until ``idle_at``; return False if the batches end."""
    while not is_over() and (deadline is None or time.monotonic() < deadline):
        with arrivals:
            if any(map(is_ready, arrivals.queued)):
                return True
            is_empty = not arrivals.queued
        if has_appeared is None and is_empty and all(worker.finished for worker in workers):
            return False
        if time.monotonic() >= idle_at or (has_appeared is not None and has_appeared()):
            return True
        arrivals.wait(POLL_SECONDS)
    return False


def _wait_for_more(
    workers: Sequence[SourceWorker],
    arrivals: Arrivals,
    is_over: Callable[[], bool],
    limit: int,
    deadline: float,
) -> None:
    """Wait until each running camera has a frame, the batch is full, or the deadline has passed."""
    waited_for, ended, running = set(workers), -1, 0
    while not is_over():
        with arrivals:
            if arrivals.ended != ended:
                ended, running = arrivals.ended, sum(not worker.finished for worker in workers)
            left_seconds = deadline - time.monotonic()
            missing = min(limit, running) - sum(map(waited_for.__contains__, arrivals.queued))
            is_enough = left_seconds <= 0 or missing <= 0
            arrivals.wanted = 1 if is_enough else len(arrivals.queued) + missing
        if is_enough:
            return
        arrivals.wait(min(left_seconds, POLL_SECONDS))

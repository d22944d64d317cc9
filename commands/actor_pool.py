"""A pool of worker processes on this machine, started by Ray for one run."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from commands.ray_settings import LOOPBACK_SETTINGS, QUIET_SETTINGS, REMOVED, SETTINGS, restore_threads, thread_settings
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError

T = TypeVar("T")
L = TypeVar("L")

_POLL_SECONDS: Final = 0.5
_RETRIES: Final = 2
"""Number of retries of a task whose worker was killed; then the task is lost."""
_START_ATTEMPTS: Final = 4
"""Number of attempts to start Ray; each waits up to 30 s for Ray's processes."""
_STORE_BYTES: Final = 100 << 20
"""Size of Ray's object store in bytes; images do not go through it."""


def with_own_threads(engine: EngineConfig, workers: int) -> EngineConfig:
    """Return the settings of one of ``workers`` processes; divide the CPU cores unless ``threads`` is set."""
    threads = engine.threads or max(1, (os.cpu_count() or 1) // workers)
    return engine.model_copy(update={"threads": threads})


class ActorPool:
    """Worker processes on this machine; each runs one task at a time."""

    def __init__(self, ray: Any, workers: Sequence[Any]) -> None:  # noqa: ANN401 - a module
        self._ray, self._workers = ray, workers

    def run(
        self, submit: Callable[[Any, T], Any], waiting: deque[T], stop: threading.Event, lost: Callable[[T, str], L]
    ) -> Iterator[Any]:
        """Yield the results of tasks in the order of completion, until none is left or ``stop`` is set.

        Args:
            submit: starts a task on a worker and returns its reference.
            waiting: the tasks; the caller may add tasks during the iteration.
            stop: ends the iteration; running tasks are abandoned.
            lost: returns the result of a task whose workers ended repeatedly, from the task and the reason.

        Raises:
            ReciproStreamError: a task raised this error.
        """
        idle = list(self._workers)
        running: dict[Any, tuple[Any, T]] = {}
        while (waiting or running) and not stop.is_set():
            while waiting and idle:
                worker, task = idle.pop(), waiting.popleft()
                running[submit(worker, task)] = (worker, task)
            ready, _ = self._ray.wait(list(running), timeout=_POLL_SECONDS)
            for reference in ready:
                worker, task = running.pop(reference)
                idle.append(worker)
                yield self._result(reference, task, lost)

    def _result(self, reference: Any, task: T, lost: Callable[[T, str], L]) -> Any:  # noqa: ANN401 - a task's result
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the same error as without Ray
        except self._ray.exceptions.RayError as error:
            return lost(task, f"its worker ended {_RETRIES + 1} times ({str(error).splitlines()[0]})")


@contextmanager
def actor_pool(kind: type, arguments: tuple[Any, ...], workers: int) -> Iterator[ActorPool]:
    """Start Ray and a pool of worker processes, and end them with the block.

    Args:
        kind: class of the workers.
        arguments: arguments of its constructor.
        workers: number of processes.
    """
    ray = _started_ray(workers)
    try:
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_RETRIES)(kind)
        yield ActorPool(ray, [actor.remote(*arguments) for _ in range(workers)])
    finally:
        ray.shutdown()


def _started_ray(workers: int) -> Any:  # noqa: ANN401 - a module
    """Start Ray for this run only: on the loopback, with a new token, without usage statistics; return the module."""
    for name in REMOVED:
        os.environ.pop(name, None)
    settings = SETTINGS | LOOPBACK_SETTINGS | QUIET_SETTINGS | thread_settings(os.environ)
    os.environ.update(settings, RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    for attempt in range(_START_ATTEMPTS):
        try:
            ray.init(
                address="local", num_cpus=workers, include_dashboard=False, object_store_memory=_STORE_BYTES,
                logging_level=logging.ERROR, log_to_driver=False,
            )  # fmt: skip
        except (
            Exception
        ) as error:  # Ray has no specific exception for processes that start too slowly on a busy machine
            ray.shutdown()
            if attempt == _START_ATTEMPTS - 1:
                raise ConfigError(f"--workers {workers}: Ray does not start ({error}); omit --workers") from error
        else:
            break
    restore_threads(os.environ)
    return ray

"""Runs the shards of an archive: in this process, or in several by Ray."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from commands.archive.inputs import Shard
from commands.archive.worker import ArchiveSettings, Division, Interrupted, ShardResult, ShardWorker
from commands.ray_settings import LOOPBACK_SETTINGS, REMOVED, SETTINGS
from pipeline.errors import ConfigError

log = logging.getLogger("recipro-stream")

T = TypeVar("T")
L = TypeVar("L")

_POLL_SECONDS: Final = 0.5
_RETRIES: Final = 2
"""A shard whose worker is killed is tried again so often; then its files count as failed."""
_START_ATTEMPTS: Final = 4
"""Ray waits 30 s for its own processes."""
_STORE_BYTES: Final = 100 << 20
"""Memory of Ray's object store; images do not go through it."""


@dataclass(frozen=True, slots=True)
class LostShard:
    """A shard that no worker completed."""

    shard: Shard
    reason: str


Outcome = ShardResult | LostShard | Division


def explain_here(settings: ArchiveSettings, waiting: deque[Shard], stop: threading.Event) -> Iterator[Outcome]:
    """Explain shards in this process, until all are done or ``stop`` is set; the caller may add shards meanwhile."""
    worker = ShardWorker(settings, stop)
    log.info("%s", worker.network)
    while waiting and not stop.is_set():
        try:
            yield worker.explain(waiting.popleft())
        except Interrupted:
            return


def explain_by_ray(
    settings: ArchiveSettings, waiting: deque[Shard], stop: threading.Event, *, workers: int
) -> Iterator[Outcome]:
    """Explain shards in ``workers`` processes of this machine, until all are done or ``stop`` is set.

    The caller may add shards meanwhile. A killed worker is replaced, and its shard is tried again. Ray carries names of
    files and settings only: each worker reads its files and writes its partitions itself. Plain actors are used, not
    Ray Data, which needs pandas and moves blocks of data: here a task is a name, and its result a few numbers.
    """
    engine = settings.config.engine
    threads = engine.threads or max(1, (os.cpu_count() or 1) // workers)
    config = settings.config.model_copy(update={"engine": engine.model_copy(update={"threads": threads})})
    settings = replace(settings, config=config)
    with actor_pool(ShardWorker, (settings,), workers) as pool:
        yield from pool.run(lambda worker, shard: worker.explain.remote(shard), waiting, stop, LostShard)


class ActorPool:
    """Processes of this machine that do one task each at a time."""

    def __init__(self, ray: Any, workers: Sequence[Any]) -> None:  # noqa: ANN401 - a module
        self._ray, self._workers = ray, workers

    def run(
        self, submit: Callable[[Any, T], Any], waiting: deque[T], stop: threading.Event, lost: Callable[[T, str], L]
    ) -> Iterator[Any]:
        """Yield the results of tasks as they end, until all are done or ``stop`` is set.

        Args:
            submit: starts a task on a worker.
            waiting: tasks; the caller may add some meanwhile.
            stop: ends the iteration; tasks in progress are given up.
            lost: makes the result of a task whose workers ended again and again, from the task and the reason.

        Raises:
            ReciproStreamError: as a task raised it.
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
            raise error.cause from None  # as in this process
        except self._ray.exceptions.RayError as error:
            return lost(task, f"its worker ended {_RETRIES + 1} times ({str(error).splitlines()[0]})")


@contextmanager
def actor_pool(kind: type, arguments: tuple[Any, ...], workers: int) -> Iterator[ActorPool]:
    """Start Ray for this run, and ``workers`` processes with an object of ``kind`` each; end all with the block."""
    ray = _started_ray(workers)
    try:
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_RETRIES)(kind)
        yield ActorPool(ray, [actor.remote(*arguments) for _ in range(workers)])
    finally:
        ray.shutdown()


def _started_ray(workers: int) -> Any:  # noqa: ANN401 - a module
    """Start Ray on this machine for this run alone: on loopback, with a token of its own, without usage statistics."""
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update(SETTINGS | LOOPBACK_SETTINGS, RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    for attempt in range(_START_ATTEMPTS):
        try:
            ray.init(
                address="local", num_cpus=workers, include_dashboard=False, object_store_memory=_STORE_BYTES,
                logging_level=logging.ERROR, log_to_driver=False,
            )  # fmt: skip
        except (
            Exception
        ) as error:  # Ray raises no class of its own where a busy machine starts its processes too slowly
            ray.shutdown()
            if attempt == _START_ATTEMPTS - 1:
                raise ConfigError(f"--workers {workers}: Ray does not start ({error}); omit --workers") from error
        else:
            break
    return ray

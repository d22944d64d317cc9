"""Runs the shards of an archive: in this process, or in several by Ray."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from commands.archive.inputs import Shard
from commands.archive.worker import Interrupted, ShardResult, ShardWorker
from commands.ray_settings import LOOPBACK_SETTINGS, REMOVED, SETTINGS
from pipeline.config import Config
from pipeline.errors import ConfigError

log = logging.getLogger("recipro-stream")

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


def explain_here(
    config: Config, folder: Path, every: int, shards: Sequence[Shard], stop: threading.Event
) -> Iterator[ShardResult]:
    """Explain shards in this process, until all are done or ``stop`` is set."""
    worker = ShardWorker(config, folder, every, stop)
    log.info("%s", worker.network)
    for shard in shards:
        if stop.is_set():
            return
        try:
            yield worker.explain(shard)
        except Interrupted:
            return


def explain_by_ray(
    config: Config, folder: Path, every: int, shards: Sequence[Shard], stop: threading.Event, *, workers: int
) -> Iterator[ShardResult | LostShard]:
    """Explain shards in ``workers`` processes of this machine, until all are done or ``stop`` is set.

    A killed worker is replaced, and its shard is tried again. Ray carries names of files and settings only: each worker
    reads its files and writes its partitions itself. Plain actors are used, not Ray Data, which needs pandas and moves
    blocks of data: here a task is a name, and its result a few numbers.
    """
    ray = _started_ray(workers)
    threads = config.engine.threads or max(1, (os.cpu_count() or 1) // workers)
    settings = config.model_copy(update={"engine": config.engine.model_copy(update={"threads": threads})})
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_RETRIES)(ShardWorker)
    try:
        pool = [actor.remote(settings, folder, every) for _ in range(workers)]
        waiting = list(reversed(shards))
        running: dict[Any, tuple[Any, Shard]] = {}
        while (waiting or running) and not stop.is_set():
            for worker in pool:
                if waiting and worker not in (busy for busy, _ in running.values()):
                    shard = waiting.pop()
                    running[worker.explain.remote(shard)] = (worker, shard)
            ready, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
            for task in ready:
                _, shard = running.pop(task)
                yield _result(ray, task, shard)
    finally:
        ray.shutdown()


def _result(ray: Any, task: Any, shard: Shard) -> ShardResult | LostShard:  # noqa: ANN401 - Ray's own types
    try:
        result: ShardResult = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as in this process
    except ray.exceptions.RayError as error:
        return LostShard(shard, f"its worker ended {_RETRIES + 1} times ({str(error).splitlines()[0]})")
    return result


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

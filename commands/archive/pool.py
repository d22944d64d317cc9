"""Explains the shards of an archive in this process, or in several processes started by Ray."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from commands.actor_pool import actor_pool, with_own_threads
from commands.archive.inputs import Shard
from commands.archive.worker import ArchiveSettings, Division, Interrupted, ShardResult, ShardWorker

log = logging.getLogger("recipro-stream")


@dataclass(frozen=True, slots=True)
class LostShard:
    """A shard that was not explained, because its workers ended repeatedly."""

    shard: Shard
    reason: str


Outcome = ShardResult | LostShard | Division


def explain_here(settings: ArchiveSettings, waiting: deque[Shard], stop: threading.Event) -> Iterator[Outcome]:
    """Explain shards in this process until none is left or ``stop`` is set.

    The caller may add shards to ``waiting`` during the iteration.
    """
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
    """Explain shards in ``workers`` processes of this machine until none is left or ``stop`` is set.

    The caller may add shards to ``waiting`` during the iteration. A killed worker is replaced; its shard is retried.
    Only file names, settings and counts go through Ray: each worker reads its files and writes its partitions itself.
    So plain actors suffice; Ray Data would need pandas and would move blocks of data.
    """
    engine = with_own_threads(settings.config.engine, workers)
    settings = replace(settings, config=settings.config.model_copy(update={"engine": engine}))
    with actor_pool(ShardWorker, (settings,), workers) as pool:
        yield from pool.run(lambda worker, shard: worker.explain.remote(shard), waiting, stop, LostShard)

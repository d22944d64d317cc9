"""Explains the shards of an archive, one at a time, with a network that is built once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from commands.archive.inputs import ArchiveFile, Shard
from commands.archive.partitions import PartitionWriter
from pipeline.config import Config
from pipeline.errors import ReciproStreamError, SourceError
from pipeline.frames import Frame

log = logging.getLogger("recipro-stream")

AS_MANY_AS: Final = 8
"""Batches are as large as for so many cameras."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The result of one shard."""

    name: str
    files: int
    explained: int
    """Number of explained photos and frames."""
    failed: int
    """Number of files that were not read, or not to their end."""
    seconds: float
    """Wall-clock time."""
    cpu_seconds: float
    """Processor time of the process."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user stopped the run; the shard in progress is not written."""


class ShardWorker:
    """Explains shards. The network is built by the first one."""

    def __init__(self, config: Config, folder: Path, every: int = 1, stop: threading.Event | None = None) -> None:
        """Store the settings.

        Args:
            config: network and engine.
            folder: receives the partitions.
            every: one of so many frames of a video is explained.
            stop: ends a shard with ``Interrupted``.
        """
        from commands.images import open_images
        from commands.wiring.run import choose_batch_size, make_explainer

        self._folder, self._every = folder, every
        self._stop = stop or threading.Event()
        self._explainer = make_explainer(config, AS_MANY_AS)
        self._batch = choose_batch_size(config, self._explainer, AS_MANY_AS)
        _, self._read, _ = open_images("")

    @property
    def network(self) -> str:
        """The network, its device and backend, as text."""
        return str(self._explainer.info)

    def explain(self, shard: Shard) -> ShardResult:
        """Explain a shard and write its partition; files that cannot be read become rows with the reason.

        Raises:
            Interrupted: ``stop`` was set.
            SinkError: the partition cannot be written.
            EngineError: the network fails on a readable image.
        """
        started, cpu_started = time.perf_counter(), time.process_time()
        explained = 0
        with PartitionWriter(self._folder, shard) as writer:
            for batch in self._batches(shard.files, writer):
                explained += len(batch)
                self._explain(batch, writer)
                if self._stop.is_set():
                    raise Interrupted
        return ShardResult(
            shard.name, len(shard.files), explained, len(writer.failures), time.perf_counter() - started,
            time.process_time() - cpu_started,
        )  # fmt: skip

    def _explain(self, frames: Sequence[Frame], writer: PartitionWriter) -> None:
        from overlays.wire.message import explanation_record

        for explanation in self._explainer.explain(frames):
            writer.add(explanation_record(explanation, sent_at_unix=time.time(), now_monotonic=time.monotonic()))

    def _batches(self, files: Sequence[ArchiveFile], writer: PartitionWriter) -> Iterator[list[Frame]]:
        """Yield the frames of the files in batches; give what cannot be read to ``writer``."""
        batch: list[Frame] = []
        for file in files:
            try:
                for frame in self._frames(file):
                    batch.append(frame)
                    if len(batch) >= self._batch:
                        yield batch
                        batch = []
            except (ReciproStreamError, OSError) as error:
                if batch:
                    yield batch
                    batch = []
                log.warning("%s", error)
                writer.add_failure(file, _camera(file), str(error))
        if batch:
            yield batch

    def _frames(self, file: ArchiveFile) -> Iterator[Frame]:
        from stream.paths import kind_of, shown

        if (kind := kind_of(file.path)) != "file":  # a pipe would be waited for
            found = "is not there, or is a link to nothing" if kind == "missing" else f"is a {kind}, not a file"
            raise SourceError(f"{shown(file.path)}: {found}; check the archive")
        if not file.is_video:
            yield Frame(self._read(Path(file.path)), _camera(file), 0, time.monotonic(), source_name=file.path)
            return
        from dataclasses import replace

        from stream.sources import build_source

        with build_source(Path(file.path).as_uri(), camera=_camera(file)) as source:
            for number, frame in enumerate(source.frames(self._stop)):
                if number % self._every == 0:
                    yield replace(frame, source_name=file.path)


def _camera(file: ArchiveFile) -> str:
    """Return the name of a video, or of a photo's folder."""
    path = Path(file.path)
    return (path.stem if file.is_video else path.parent.name) or "archive"

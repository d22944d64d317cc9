"""Explains the shards of an archive one after another, with a network that is built once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from commands.archive.folders import open_folder
from commands.archive.inputs import ArchiveFile, Shard, shards_of, shards_of_video
from commands.archive.overlays import ShardOverlays
from commands.archive.partitions import ARCHIVE_SCHEMA, OVERLAY_SCHEMA, PartitionWriter
from commands.archive.stores import is_address, open_address, read_address
from commands.ray_settings import restore_threads
from pipeline.config import Config
from pipeline.errors import ReciproStreamError, SourceError
from pipeline.frames import Frame, Image

if TYPE_CHECKING:
    from stream.file_part import PartSource, VideoPart

log = logging.getLogger("recipro-stream")

AS_MANY_AS: Final = 8
"""Number of cameras for which the batch size is chosen."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """Counts and times of an explained shard."""

    name: str
    files: int
    explained: int
    """Number of explained photos and frames."""
    failed: int
    """Number of files that could not be read completely."""
    seconds: float
    """Wall-clock time in seconds."""
    cpu_seconds: float
    """CPU time of the process in seconds."""
    part_of: str = ""
    """Path of the video if the shard is a part of a video; empty for whole files."""


@dataclass(frozen=True, slots=True)
class Division:
    """A video that was not explained yet, and the new shards that explain it."""

    file: ArchiveFile
    shards: tuple[Shard, ...]
    is_whole: bool = False
    """True if the parts are not exact: the video is explained as a whole, and the partitions of its parts are
    removed."""


@dataclass(frozen=True, slots=True)
class ArchiveSettings:
    """Settings of a worker: the network and engine, and the output folder."""

    config: Config
    output: str
    """An absolute path, or an address of a store."""
    identity: str
    """Text of all settings that change an explanation."""
    every: int = 1
    """N, at least 1: every Nth frame of a video is explained."""
    part_seconds: float = 0.0
    """Length of the parts of long videos in seconds; 0 disables the division."""
    draws: bool = False
    """Whether overlays are written."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user stopped the run; the shard in progress is not written."""


class ShardWorker:
    """Builds a network once and explains shards with it."""

    def __init__(self, settings: ArchiveSettings, stop: threading.Event | None = None) -> None:
        """Build the network.

        Args:
            settings: network, engine and output folder.
            stop: if set, ``explain`` raises ``Interrupted``.
        """
        restore_threads(os.environ)
        from commands.wiring.run import choose_batch_size, make_explainer
        from stream.image_file import ImageReader

        self._settings = settings
        self._folder = open_folder(settings.output)
        self._stop = stop or threading.Event()
        self._explainer = make_explainer(settings.config, AS_MANY_AS)
        self._batch = choose_batch_size(settings.config, self._explainer, AS_MANY_AS)
        self._reader = ImageReader()

    @property
    def network(self) -> str:
        """The network, its device and backend, as text."""
        return str(self._explainer.info)

    def explain(self, shard: Shard) -> ShardResult | Division:
        """Explain a shard and write its partition; an unreadable file becomes a row with the reason.

        Returns:
            The result, or a ``Division`` if the video is to be explained by other shards.

        Raises:
            Interrupted: ``stop`` was set.
            SinkError: the partition cannot be written.
            EngineError: the network fails on a readable image.
        """
        from stream.file_part import InexactPartError

        if shard.is_dividable and (parts := self._parts(shard.files[0])):
            return Division(shard.files[0], tuple(shards_of_video(shard.files[0], self._settings.identity, parts)))
        try:
            return self._explain_shard(shard)
        except InexactPartError as error:
            log.warning("%s", error)
            (whole,) = shards_of(shard.files, self._settings.identity, 1)
            return Division(shard.files[0], (replace(whole, is_dividable=False),), is_whole=True)

    def _parts(self, file: ArchiveFile) -> list[VideoPart]:
        """Return the parts of a long video; an empty list if the video is short, or cannot be divided or read."""
        if not self._settings.part_seconds or _refusal(file):
            return []
        try:
            return _video(file).divide(self._settings.part_seconds, self._stop)
        except (ReciproStreamError, OSError):  # the whole video is tried next, and its row contains the reason
            return []

    def _explain_shard(self, shard: Shard) -> ShardResult:
        started, cpu_started = time.perf_counter(), time.process_time()
        explained = 0
        schema = OVERLAY_SCHEMA if self._settings.draws else ARCHIVE_SCHEMA
        with PartitionWriter(self._folder, shard, schema) as writer, self._drawing(shard) as overlays:
            for batch in self._batches(shard, writer):
                explained += len(batch)
                self._explain(batch, writer, overlays)
                if self._stop.is_set():
                    raise Interrupted
        return ShardResult(
            shard.name, len(shard.files), explained, len(writer.failures), time.perf_counter() - started,
            time.process_time() - cpu_started, shard.files[0].path if shard.part else "",
        )  # fmt: skip

    def _drawing(self, shard: Shard) -> AbstractContextManager[ShardOverlays | None]:
        draws = self._settings.draws
        return ShardOverlays(self._folder, shard, self._settings.config.overlay) if draws else nullcontext()

    def _explain(self, frames: Sequence[Frame], writer: PartitionWriter, overlays: ShardOverlays | None) -> None:
        from overlays.wire.message import explanation_record

        for explanation in self._explainer.explain(frames):
            record = explanation_record(explanation, sent_at_unix=time.time(), now_monotonic=time.monotonic())
            writer.add(record, None if overlays is None else overlays.add(explanation))

    def _batches(self, shard: Shard, writer: PartitionWriter) -> Iterator[list[Frame]]:
        """Yield the frames of the files in batches; add failures to ``writer``."""
        from stream.file_part import InexactPartError

        batch: list[Frame] = []
        for file in shard.files:
            try:
                for frame in self._frames(file, shard.part):
                    batch.append(frame)
                    if len(batch) >= self._batch:
                        yield batch
                        batch = []
            except InexactPartError:
                raise
            except (ReciproStreamError, OSError) as error:
                if batch:
                    yield batch
                    batch = []
                log.warning("%s", error)
                writer.add_failure(file, _camera(file), str(error))
        if batch:
            yield batch

    def _frames(self, file: ArchiveFile, part: VideoPart | None) -> Iterator[Frame]:
        if refusal := _refusal(file):
            raise SourceError(refusal)
        if not file.is_video:
            yield Frame(self._image(file), _camera(file), 0, time.monotonic(), source_name=file.path)
            return
        with _video(file, part) as source:
            for frame in source.frames(self._stop):
                if frame.index % self._settings.every == 0:
                    yield replace(frame, source_name=file.path)

    def _image(self, file: ArchiveFile) -> Image:
        if not is_address(file.path):
            return self._reader.read(file.path)
        try:
            return self._reader.decode(read_address(file.path))
        except SourceError as error:
            raise SourceError(f"{file.path}: {str(error).removeprefix(f'{file.path}: ')}") from None


def _video(file: ArchiveFile, part: VideoPart | None = None) -> PartSource:
    from stream.file import FileOptions
    from stream.file_part import PartSource
    from stream.hwaccel import DecoderSelector
    from stream.limits import FILE_MAX_PIXELS

    is_stored = is_address(file.path)
    reading = FileOptions(open_remote=(lambda _stop: open_address(file.path)) if is_stored else None)
    decoder = DecoderSelector(max_pixels=FILE_MAX_PIXELS)
    return PartSource(file.path, camera=_camera(file), remote=is_stored, reading=reading, decoder=decoder, part=part)


def _refusal(file: ArchiveFile) -> str:
    """Return the reason not to open a file, else an empty string; opening a pipe would block."""
    from stream.paths import kind_of, shown

    if is_address(file.path) or (kind := kind_of(file.path)) == "file":
        return ""
    found = "does not exist, or is a broken link" if kind == "missing" else f"is a {kind}, not a file"
    return f"{shown(file.path)}: {found}; check the archive"


def _camera(file: ArchiveFile) -> str:
    """Return the camera name of a file: the stem of a video, or the name of a photo's folder."""
    path = PurePath(file.path)
    return (path.stem if file.is_video else path.parent.name) or "archive"

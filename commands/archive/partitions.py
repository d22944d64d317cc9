"""Writes and reads partitions: one Parquet file for each shard, which is either complete or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from commands.archive.folders import OutputFolder
from commands.archive.inputs import ArchiveFile, Shard
from overlays.records.arrow_schema import SCHEMA, to_row
from overlays.wire.text import escaped
from pipeline.errors import ConfigError, SinkError

METADATA_KEY: Final = b"recipro_archive"
"""Metadata key of a partition; the value is JSON with its files, failures and part."""
ARCHIVE_SCHEMA: Final = pa.schema([field.with_nullable(True) for field in SCHEMA] + [pa.field("error", pa.string())])
"""The columns of a log plus ``error``: the reason why a file, or the rest of a video, is not explained."""
OVERLAY_SCHEMA: Final = ARCHIVE_SCHEMA.append(pa.field("overlay", pa.string()))
"""The columns of ``ARCHIVE_SCHEMA`` plus ``overlay``: the path of the drawn file, relative to the folder."""
_GROUP_ROWS: Final = 512
SUFFIX: Final = ".parquet"
_READERS: Final = 16
"""Number of partitions read in parallel, because each needs several requests to a store."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Files, counts and failures of a complete partition."""

    files: tuple[ArchiveFile, ...]
    images: int
    """Number of explained photos and frames."""
    failures: tuple[tuple[str, str], ...]
    """Path and reason of each file that could not be read completely."""
    name: str = ""
    """File name without suffix."""
    part: tuple[int, int] | None = None
    """Number of the part, and the number of parts of the video; None for whole files."""


class PartitionWriter:
    """Writes one partition to a temporary file, and stores it if the block ends without an error."""

    def __init__(self, folder: OutputFolder, shard: Shard, schema: pa.Schema = ARCHIVE_SCHEMA) -> None:
        """Store the names and columns; entering creates the temporary file."""
        self._folder = folder
        self._shard = shard
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self.failures: list[tuple[str, str]] = []
        """Path and reason of each file that could not be read completely."""

    def add(self, record: Mapping[str, Any], overlay: str | None = None) -> None:
        """Add a row for an explanation.

        Args:
            record: result of ``explanation_record``.
            overlay: path of the drawn file, relative to the folder.
        """
        self._append(to_row(record) | {"error": None, "overlay": overlay})

    def add_failure(self, file: ArchiveFile, camera: str, reason: str) -> None:
        """Add a row for a file, or the rest of a video, that cannot be read.

        Args:
            file: the file.
            camera: camera name of the file.
            reason: why the file cannot be read.
        """
        row = dict.fromkeys(self._schema.names)
        self._append(row | {"source": escaped(file.path), "camera": escaped(camera), "error": escaped(reason)})
        self.failures.append((file.path, reason))

    def _append(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        with self._folder.write_errors():
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def __enter__(self) -> Self:
        with self._folder.write_errors(), ExitStack() as stack:
            temporary = stack.enter_context(self._folder.written(self._shard.name + SUFFIX))
            file = stack.enter_context(temporary.open("wb"))
            self._writer = stack.enter_context(pq.ParquetWriter(file, self._schema, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if kind is not None:
            with suppress(OSError, SinkError):  # on a full disk, closing fails, too; the first error is raised
                self._stack.__exit__(kind, error, trace)
            return
        part = self._shard.part
        with self._folder.write_errors(), self._stack:
            self._flush()
            content = {
                "files": [asdict(file) for file in self._shard.files],
                "failures": self.failures,
                "part": part and [part.number, part.count],
            }
            self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(content)})


def read_partitions(folder: OutputFolder) -> list[Partition]:
    """Return the partitions of a folder, from the metadata at the end of each file.

    Raises:
        ConfigError: a Parquet file in the folder is not a partition, or is damaged.
    """
    names = folder.names(SUFFIX)
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda name: _read_partition(folder, name), names))


def _read_partition(folder: OutputFolder, name: str) -> Partition:
    try:
        with folder.opened(name) as file:
            metadata = pq.read_metadata(file)
        content = json.loads(metadata.metadata[METADATA_KEY])
        failures = tuple((str(path), str(reason)) for path, reason in content["failures"])
        files = tuple(ArchiveFile(**file) for file in content["files"])
        part = content.get("part")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder.location}/{name}: is no partition of explain-archive, or is damaged ({error}); move it away, or "
            "give another --output"
        ) from None
    images = metadata.num_rows - len(failures)
    return Partition(files, images, failures, name.removesuffix(SUFFIX), tuple(part) if part else None)


def complete_partitions(partitions: Sequence[Partition]) -> tuple[list[Partition], dict[str, list[Partition]]]:
    """Return the partitions of complete files, and all other partitions by the path of their video.

    A video is complete if it has one partition for the whole video, or one for each of its parts. The other partitions
    are parts of incomplete videos, and superfluous parts of videos that have a whole partition.
    """
    whole = {file.path for partition in partitions if partition.part is None for file in partition.files}
    parts: dict[str, list[Partition]] = {}
    for partition in partitions:
        if partition.part is not None:
            parts.setdefault(partition.files[0].path, []).append(partition)
    loose = {path: of for path, of in parts.items() if path in whole or not _is_complete(of)}
    return [each for each in partitions if each.part is None or each.files[0].path not in loose], loose


def _is_complete(parts: Sequence[Partition]) -> bool:
    numbers = {each.part for each in parts if each.part is not None}
    counts = {count for _, count in numbers}
    return len(counts) == 1 and len(parts) == len(numbers) == counts.pop() and len({each.files for each in parts}) == 1

"""Partitions of an explained archive: one Parquet file for each shard, complete or not there."""

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
"""Key of the metadata of a partition: its files and its failures, as JSON."""
ARCHIVE_SCHEMA: Final = pa.schema([field.with_nullable(True) for field in SCHEMA] + [pa.field("error", pa.string())])
"""The columns of a log, and the reason why a file, or the rest of a video, is not explained."""
OVERLAY_SCHEMA: Final = ARCHIVE_SCHEMA.append(pa.field("overlay", pa.string()))
"""The same, and the drawn image or video, relative to the folder."""
_GROUP_ROWS: Final = 512
SUFFIX: Final = ".parquet"
_READERS: Final = 16
"""Partitions read at once: each costs a store some requests."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The content of a complete partition."""

    files: tuple[ArchiveFile, ...]
    images: int
    """Number of explained photos and frames."""
    failures: tuple[tuple[str, str], ...]
    """Path and reason of each file that was not read, or not to its end."""
    name: str = ""
    """Name of the file, without its suffix."""
    part: tuple[int, int] | None = None
    """Number of the part of a video, and their count; None: whole files."""


class PartitionWriter:
    """Writes one partition to a hidden file, synced and renamed when the block ends without an error."""

    def __init__(self, folder: OutputFolder, shard: Shard, schema: pa.Schema = ARCHIVE_SCHEMA) -> None:
        """Store the names and columns; entering creates the hidden file."""
        self._folder = folder
        self._shard = shard
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self.failures: list[tuple[str, str]] = []
        """Path and reason of each file that was not read, or not to its end."""

    def add(self, record: Mapping[str, Any], overlay: str | None = None) -> None:
        """Add an explanation: the result of ``explanation_record``, and its drawn file."""
        self._append(to_row(record) | {"error": None, "overlay": overlay})

    def add_failure(self, file: ArchiveFile, camera: str, reason: str) -> None:
        """Add a file that cannot be read, or the end of a video that cannot be read any further."""
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
            with suppress(OSError, SinkError):  # of a full disk: the first error is the one to raise
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
    """Return the partitions of a folder; only their last bytes are read.

    Raises:
        ConfigError: a file in it is not a partition, or is damaged.
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
    """Return the partitions of completely explained files, and by path those of incomplete or superfluous parts.

    A video is complete if it has a partition as a whole, or one of each of its parts.
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

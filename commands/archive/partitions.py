"""Partitions of an explained archive: one Parquet file for each shard, complete or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from commands.archive.inputs import ArchiveFile, Shard
from commands.console import write_text
from overlays.records.arrow_schema import SCHEMA, to_row
from overlays.wire.text import escaped
from pipeline.errors import ConfigError, SinkError

METADATA_KEY: Final = b"recipro_archive"
"""Key of the metadata of a partition: its files and its failures, as JSON."""
ARCHIVE_SCHEMA: Final = pa.schema([field.with_nullable(True) for field in SCHEMA] + [pa.field("error", pa.string())])
"""The columns of a log, and the reason why a file, or the rest of a video, is not explained."""
_GROUP_ROWS: Final = 512
_SUFFIX: Final = ".parquet"
_TEMPORARY: Final = ".tmp"


@dataclass(frozen=True, slots=True)
class Partition:
    """The content of a complete partition."""

    files: tuple[ArchiveFile, ...]
    images: int
    """Number of explained photos and frames."""
    failures: tuple[tuple[str, str], ...]
    """Path and reason of each file that was not read, or not to its end."""


class PartitionWriter:
    """Writes one partition to a hidden file, synced and renamed when the block ends without an error."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Store the names; entering creates the hidden file."""
        self._path = folder / (shard.name + _SUFFIX)
        self._hidden = folder / f".{shard.name}.{os.getpid()}{_TEMPORARY}"
        self._shard = shard
        self._rows: list[dict[str, Any]] = []
        self.failures: list[tuple[str, str]] = []
        """Path and reason of each file that was not read, or not to its end."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Add an explanation: the result of ``explanation_record``."""
        self._append(to_row(record) | {"error": None})

    def add_failure(self, file: ArchiveFile, camera: str, reason: str) -> None:
        """Add a file that cannot be read, or the end of a video that cannot be read any further."""
        row = dict.fromkeys(ARCHIVE_SCHEMA.names)
        self._append(row | {"source": escaped(file.path), "camera": escaped(camera), "error": escaped(reason)})
        self.failures.append((file.path, reason))

    def _append(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        with _disk_errors(self._path.parent):
            self._writer.write_table(pa.Table.from_pylist(self._rows, ARCHIVE_SCHEMA))
        self._rows = []

    def __enter__(self) -> Self:
        with _disk_errors(self._path.parent):
            self._file = self._hidden.open("wb")
            self._writer = pq.ParquetWriter(self._file, ARCHIVE_SCHEMA, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            for opened in (self._writer, self._file):
                with suppress(OSError):  # of a full disk: the first error is the one to raise
                    opened.close()
            self._hidden.unlink(missing_ok=True)

    def _complete(self) -> None:
        self._flush()
        content = {"files": [asdict(file) for file in self._shard.files], "failures": self.failures}
        with _disk_errors(self._path.parent):
            self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(content)})
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._hidden.replace(self._path)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SinkError(
            f"{folder}: cannot be written ({error.strerror or error}); free space there, and give the same command "
            "again"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Write a text file that is complete or not there."""
    hidden = path.with_name(f".{path.name}{_TEMPORARY}")
    write_text(hidden, text)
    hidden.replace(path)


def remove_unfinished(folder: Path) -> None:
    """Delete the hidden files of killed runs; the folder must be locked."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def read_partitions(folder: Path) -> list[Partition]:
    """Return the partitions of a folder; only their last bytes are read.

    Raises:
        ConfigError: a file in it is not a partition, or is damaged.
    """
    partitions = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            metadata = pq.read_metadata(path)
            content = json.loads(metadata.metadata[METADATA_KEY])
            failures = tuple((str(file), str(reason)) for file, reason in content["failures"])
            files = tuple(ArchiveFile(**file) for file in content["files"])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}: is no partition of explain-archive, or is damaged ({error}); move it away, or give another "
                "--output"
            ) from None
        partitions.append(Partition(files, metadata.num_rows - len(failures), failures))
    return partitions


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this run; raises ``SinkError`` if another run writes into it."""
    from overlays.sinks.locks import claimed

    with claimed([folder]):
        yield

"""Partitions of an explained archive: one Parquet file for each shard, complete or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from commands.archive.inputs import ArchiveFile, Shard
from overlays.records.arrow_schema import SCHEMA, to_row
from overlays.wire.text import escaped
from pipeline.atomic import atomic_write
from pipeline.errors import ConfigError, SinkError

METADATA_KEY: Final = b"recipro_archive"
"""Key of the metadata of a partition: its files and its failures, as JSON."""
ARCHIVE_SCHEMA: Final = pa.schema([field.with_nullable(True) for field in SCHEMA] + [pa.field("error", pa.string())])
"""The columns of a log, and the reason why a file, or the rest of a video, is not explained."""
_GROUP_ROWS: Final = 512
_SUFFIX: Final = ".parquet"


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
        with _disk_errors(self._path.parent), ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self._path))
            file = stack.enter_context(temporary.open("wb"))
            self._writer = stack.enter_context(pq.ParquetWriter(file, ARCHIVE_SCHEMA, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if kind is not None:
            with suppress(OSError):  # of a full disk: the first error is the one to raise
                self._stack.__exit__(kind, error, trace)
            return
        with _disk_errors(self._path.parent), self._stack:
            self._flush()
            content = {"files": [asdict(file) for file in self._shard.files], "failures": self.failures}
            self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(content)})


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SinkError(
            f"{folder}: cannot be written ({error.strerror or error}); free space there, and give the same command "
            "again"
        ) from error


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

"""Reads logs in JSON Lines and Parquet.

A log is scanned once for the keys of its records. A complete record is read only when it is needed, so that an hour of
log needs only a few megabytes of memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from overlays.wire.fields import Index, SourcePath, Text, Version, WireModel, check_version
from overlays.wire.header import MAX_HEADER_BYTES, Header, decode_header
from overlays.wire.message import record_bytes
from pipeline.errors import SourceError, WireError, WireVersionError

if TYPE_CHECKING:
    import pyarrow as pa

_TABLE: Final = ".parquet"
_BATCH_ROWS: Final = 256
_MAX_RUN_ID_LENGTH: Final = 4096
_KEY_COLUMNS: Final = ("camera", "index", "pts_seconds", "version", "source")


@dataclass(frozen=True, slots=True)
class RecordKey:
    """Key of a record: camera, frame index, time in seconds, and position in the log."""

    camera: str
    index: int
    seconds: float | None
    offset: int
    run: int = 1
    """Number of the run that wrote the record, from 1. Records before the first run record count as one run."""
    source: str = ""
    """The file from which the frame was read; empty for a live source."""
    clip_seconds: float | None = None
    """Time of the frame in the log's clip in seconds; None if the log belongs to no clip."""


class LogReader(Protocol):
    """Interface of log readers, which are context managers.

    Entering raises ``SourceError`` if the log cannot be read.
    """

    def iter_keys(self) -> Iterator[RecordKey | WireError]:
        """Yield the key of each record, or the error of a damaged record.

        Raises:
            WireVersionError: the log was written by a newer version.
        """
        ...

    def read_header(self, offset: int) -> Header:
        """Return the record at ``RecordKey.offset``; raises ``WireError`` if the record is damaged."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def open_log(path: Path) -> LogReader:
    """Return a reader for a log: a Parquet file, a folder of Parquet files, or JSON Lines.

    Raises:
        SourceError: the log is in Parquet, but pyarrow is not installed.
    """
    if path.suffix.lower() != _TABLE and not path.is_dir():
        return JsonlReader(path)
    if find_spec("pyarrow") is None:
        raise SourceError(f"{path}: a table needs pyarrow: uv sync --inexact --extra parquet")
    return ParquetReader(path)


class _LogLine(WireModel):
    """The key fields of a line: a run record, or the record of a frame."""

    version: Version
    run: Any = None
    camera: Text | None = None
    index: Index | None = None
    pts_seconds: float | None = None
    source: SourcePath = ""
    clip_seconds: float | None = None

    @property
    def is_run(self) -> bool:
        """True if the line is a run record."""
        return "run" in self.model_fields_set and "camera" not in self.model_fields_set

    @property
    def run_id(self) -> str:
        """Identifier of the run in a run record; "" if there is none."""
        return str(self.run.get("id", ""))[:_MAX_RUN_ID_LENGTH] if isinstance(self.run, dict) else ""

    def key(self, offset: int, run: int) -> RecordKey:
        """Return the key of a frame's record; raises ``WireError`` if camera or index is missing."""
        if self.camera is None or self.index is None:
            key = "camera" if self.camera is None else "index"
            raise WireError(f"{key}: missing; the record of a frame has a camera and an index")
        return RecordKey(self.camera, self.index, self.pts_seconds, offset, run, self.source, self.clip_seconds)


class JsonlReader:
    """Reads a log in JSON Lines; an offset is the position of a line in bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BufferedReader | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise _unreadable(self._path, error.strerror or str(error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def iter_keys(self) -> Iterator[RecordKey | WireError]:
        """Yield the key of each line; see ``LogReader.iter_keys``."""
        assert self._file is not None  # noqa: S101 - entered
        offset, number, runs, has_content = 0, 1, {"": 1}, False
        while packed := self._file.readline(MAX_HEADER_BYTES):
            try:
                if packed.strip():
                    line = _LogLine.parse(packed)
                    if line.is_run:
                        if not has_content:
                            runs.clear()  # the log starts with a run record, so it has no earlier run
                        number = runs.setdefault(line.run_id, len(runs) + 1)
                    else:
                        yield line.key(offset, number)
                    has_content = True
            except WireVersionError:
                raise
            except WireError as error:
                yield error
            offset += len(packed)

    def read_header(self, offset: int) -> Header:
        """Return the header in the line that starts at ``offset``."""
        assert self._file is not None  # noqa: S101 - entered
        self._file.seek(offset)
        return decode_header(self._file.readline(MAX_HEADER_BYTES))


class ParquetReader:
    """Reads a Parquet file, or the parts that a killed run left; an offset is a row number over all parts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: list[tuple[Path, int]] = []
        """File and number of each row group."""
        self._first_rows: list[int] = []
        """Number of the first row of each row group."""
        self._damaged: list[str] = []
        """Errors of the parts that cannot be read."""
        self._buffer: _RowBuffer | None = None

    def __enter__(self) -> Self:
        is_folder = self._path.is_dir()
        files = sorted(self._path.glob(f"*{_TABLE}")) if is_folder else [self._path]
        rows = 0
        for file in files:
            try:
                sizes = _group_rows(file)
            except SourceError as error:
                # A killed run leaves its last part truncated; its other parts are complete.
                if not is_folder or len(files) == len(self._damaged) + 1:
                    raise
                self._damaged.append(str(error))
                continue
            for group, size in enumerate(sizes):
                self._groups.append((file, group))
                self._first_rows.append(rows)
                rows += size
        return self

    def __exit__(self, *_: object) -> None:
        self._buffer = None

    def iter_keys(self) -> Iterator[RecordKey | WireError]:
        """Yield the key of each row, reading only the key columns; see ``LogReader.iter_keys``."""
        for number, first in enumerate(self._first_rows):
            offset = first
            for batch in self._batches(number, self._key_columns(number)):
                for row in batch.to_pylist():
                    yield _row_key(row, offset)
                    offset += 1
        yield from map(WireError, self._damaged)

    def read_header(self, offset: int) -> Header:
        """Return the header in the row with the number ``offset``."""
        from overlays.records.arrow_schema import from_row

        number = bisect.bisect_right(self._first_rows, offset) - 1
        row = self._row(number, offset - self._first_rows[number])
        try:
            record = from_row(row)
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise WireError(f"row {offset}: was not written by --sink FILE.parquet ({error})") from None
        return decode_header(record_bytes(record))

    def _row(self, number: int, row: int) -> dict[str, Any]:
        """Return a row of a group, and buffer the rows that follow, because frames are read in order."""
        if self._buffer is None or self._buffer.number != number or row < self._buffer.first:
            self._buffer = _RowBuffer(number, self._batches(number))
        while row >= self._buffer.first + len(self._buffer.rows):
            self._buffer.advance()
        return self._buffer.rows[row - self._buffer.first]

    def _key_columns(self, number: int) -> list[str]:
        """Return the key columns that a group's file has."""
        import pyarrow.parquet as pq

        with self._groups[number][0].open("rb") as raw, pq.ParquetFile(raw) as opened:
            names = set(opened.schema_arrow.names)
        return [name for name in _KEY_COLUMNS if name in names]

    def _batches(self, number: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a group in batches, because even a small file can declare many rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group = self._groups[number]
        try:
            with file.open("rb") as raw, pq.ParquetFile(raw) as opened:
                yield from opened.iter_batches(_BATCH_ROWS, [group], columns, use_threads=False)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise _unreadable(file, str(error)) from None


class _RowBuffer:
    """The last batch of rows read from a group."""

    def __init__(self, number: int, batches: Iterator[pa.RecordBatch]) -> None:
        self.number = number
        self.first = 0
        self.rows: list[dict[str, Any]] = []
        self._batches = batches

    def advance(self) -> None:
        """Read the next batch; raises ``WireError`` if the group has no more rows."""
        self.first += len(self.rows)
        batch = next(self._batches, None)
        if batch is None:
            raise WireError(f"row {self.first} of a group: is missing; the file has fewer rows than it declares")
        self.rows = batch.to_pylist()


def _row_key(row: Mapping[str, Any], offset: int) -> RecordKey | WireError:
    camera, index, version = row["camera"], row["index"], row["version"]
    if not (isinstance(camera, str) and isinstance(index, int) and isinstance(version, int)):
        return WireError(
            f"row {offset}: camera {camera!r}, index {index!r}, version {version!r}: must be a text and two integers"
        )
    check_version(version)
    return RecordKey(camera, index, row["pts_seconds"], offset, source=row.get("source") or "")


def _group_rows(file: Path) -> list[int]:
    """Return the number of rows of each row group; raises ``SourceError`` if the file is not a log."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from overlays.records.arrow_schema import ADDED, SCHEMA

    try:
        with file.open("rb") as raw, pq.ParquetFile(raw) as opened:
            missing = set(SCHEMA.names) - ADDED - set(opened.schema_arrow.names)
            if missing:
                raise _unreadable(file, f"it has no column {min(missing)!r}")
            return [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, getattr(error, "strerror", None) or str(error)) from None


def _unreadable(path: Path, why: str) -> SourceError:
    return SourceError(f"{path}: cannot be read ({why}); name a file written by --sink FILE.jsonl or FILE.parquet")

"""Reading logs of explanations, whichever way they were written: lines of JSON, or a table.

A log is walked through once for what each line is of, and a line is read again when its heat is wanted. So an hour of
it takes a few megabytes of memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from overlays.wire.json_fields import JsonFields
from overlays.wire.message import MAX_HEADER_BYTES, MAX_SOURCE, MAX_TEXT, VERSION, Header, decode_header, record_bytes
from pipeline.errors import SourceError, WireError, WireVersionError

if TYPE_CHECKING:
    import pyarrow as pa

_TABLE: Final = ".parquet"
_BATCH_ROWS: Final = 256
_GIST_COLUMNS: Final = ("camera", "index", "pts_seconds", "version", "source")


@dataclass(frozen=True, slots=True)
class RecordKey:
    """What a line is of, and where it stands."""

    camera: str
    index: int
    seconds: float | None
    offset: int
    run: int = 1
    """Which run of those in the log wrote it, from 1; all that a version without such lines wrote is one."""
    source: str = ""
    """The file its frame was read from; empty where there was none."""
    clip_seconds: float | None = None
    """When the frame is shown in the clip that the log lies beside; None where it lies beside none."""


class LogReader(Protocol):
    """An open log. A with-block; entering raises ``SourceError`` where it cannot be read."""

    def iter_keys(self) -> Iterator[RecordKey | WireError]:
        """Walk through all lines; an error stands for one that cannot be read.

        Raises:
            WireVersionError: it was written by a newer version.
        """
        ...

    def read_header(self, place: int) -> Header:
        """Read one line. Raises ``WireError`` where it is damaged."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def open_log(path: Path) -> LogReader:
    """Return the reader of a log: ``*.parquet``, a folder of such, or lines of JSON.

    Raises:
        SourceError: it is a table, and what reads tables is missing.
    """
    if path.suffix.lower() != _TABLE and not path.is_dir():
        return JsonlReader(path)
    if find_spec("pyarrow") is None:
        raise SourceError(f"{path}: a table needs pyarrow: uv sync --extra parquet")
    return ParquetReader(path)


class JsonlReader:
    """``*.jsonl``; a place is where a line begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BufferedReader | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise _unreadable(self._path, error.strerror or str(error)) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._file is not None:
            self._file.close()

    def iter_keys(self) -> Iterator[RecordKey | WireError]:
        """Walk through all lines."""
        assert self._file is not None  # noqa: S101 - entered
        place, number, runs, told = 0, 1, {"": 1}, False
        while packed := self._file.readline(MAX_HEADER_BYTES):
            try:
                if packed.strip():
                    fields = JsonFields.parse(packed)
                    _check_version(fields.integer("version", 1, 1 << 31))
                    if "run" in fields and "camera" not in fields:
                        if not told:
                            runs.clear()  # nothing stands before the first run's line
                        run_id = fields.get("run").get("id", "") if isinstance(fields.get("run"), dict) else ""
                        number = runs.setdefault(str(run_id)[:MAX_TEXT], len(runs) + 1)
                    else:
                        yield _gist(fields, place, number)
                    told = True
            except WireVersionError:
                raise
            except WireError as error:
                yield error
            place += len(packed)

    def read_header(self, place: int) -> Header:
        """Read the line that begins there."""
        assert self._file is not None  # noqa: S101 - entered
        self._file.seek(place)
        return decode_header(self._file.readline(MAX_HEADER_BYTES))


def _gist(fields: JsonFields, place: int, run: int) -> RecordKey:
    """Return what a line is of. Raises ``WireError`` where that is damaged."""
    return RecordKey(
        fields.text("camera", MAX_TEXT),
        fields.integer("index", 0, 1 << 62),
        fields.optional_number("pts_seconds"),
        place,
        run,
        fields.text("source", MAX_SOURCE) if fields.get("source") is not None else "",
        fields.optional_number("clip_seconds"),
    )


class ParquetReader:
    """``*.parquet``, or the folder of parts that a killed run left; a place is a row's number in all of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: list[tuple[Path, int]] = []
        """Each row group's file, and its number there."""
        self._firsts: list[int] = []
        """The number of each group's first row."""
        self._damaged: list[str] = []
        """Parts that cannot be read."""
        self._held: _Held | None = None

    def __enter__(self) -> Self:
        several = self._path.is_dir()
        files = sorted(self._path.glob(f"*{_TABLE}")) if several else [self._path]
        rows = 0
        for file in files:
            try:
                sizes = _group_rows(file)
            except SourceError as error:
                # A run that was killed leaves its last part torn; the others are whole.
                if not several or len(files) == len(self._damaged) + 1:
                    raise
                self._damaged.append(str(error))
                continue
            for group, size in enumerate(sizes):
                self._groups.append((file, group))
                self._firsts.append(rows)
                rows += size
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._held = None

    def iter_keys(self) -> Iterator[RecordKey | WireError]:
        """Walk through all rows, by the few columns that are needed."""
        for number, first in enumerate(self._firsts):
            place = first
            for batch in self._batches(number, self._known(number)):
                for row in batch.to_pylist():
                    yield _row_gist(row, place)
                    place += 1
        yield from map(WireError, self._damaged)

    def read_header(self, place: int) -> Header:
        """Read the row of that number."""
        from overlays.records.arrow_schema import from_row

        number = bisect.bisect_right(self._firsts, place) - 1
        row = self._row(number, place - self._firsts[number])
        try:
            record = from_row(row)
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise WireError(f"row {place}: is not what --sink FILE.parquet wrote ({error})") from None
        return decode_header(record_bytes(record))

    def _row(self, number: int, place: int) -> dict[str, Any]:
        """Return a row of a group; frames come in order, so the rows that follow it are at hand."""
        if self._held is None or self._held.number != number or place < self._held.first:
            self._held = _Held(number, self._batches(number))
        while place >= self._held.first + len(self._held.rows):
            self._held.advance()
        return self._held.rows[place - self._held.first]

    def _known(self, number: int) -> list[str]:
        """Return the columns of a group that tell what its rows are of."""
        import pyarrow.parquet as pq

        with self._groups[number][0].open("rb") as raw, pq.ParquetFile(raw) as opened:
            there = set(opened.schema_arrow.names)
        return [name for name in _GIST_COLUMNS if name in there]

    def _batches(self, number: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Give the rows of a group, few at a time: a small file may claim any number of them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group = self._groups[number]
        try:
            with file.open("rb") as raw, pq.ParquetFile(raw) as opened:
                yield from opened.iter_batches(_BATCH_ROWS, [group], columns, use_threads=False)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise _unreadable(file, str(error)) from None


class _Held:
    """The rows of a group that were read last."""

    def __init__(self, number: int, batches: Iterator[pa.RecordBatch]) -> None:
        self.number = number
        self.first = 0
        self.rows: list[dict[str, Any]] = []
        self._batches = batches

    def advance(self) -> None:
        """Read the rows that follow. Raises ``WireError`` where there are none."""
        self.first += len(self.rows)
        batch = next(self._batches, None)
        if batch is None:
            raise WireError(f"row {self.first} of a group: is missing; the file has fewer rows than it says")
        self.rows = batch.to_pylist()


def _row_gist(row: Mapping[str, Any], place: int) -> RecordKey | WireError:
    camera, index, version = row["camera"], row["index"], row["version"]
    if not (isinstance(camera, str) and isinstance(index, int) and isinstance(version, int)):
        return WireError(f"row {place}: camera {camera!r}, index {index!r}, version {version!r}: not a log's")
    _check_version(version)
    return RecordKey(camera, index, row["pts_seconds"], place, source=row.get("source") or "")


def _group_rows(file: Path) -> list[int]:
    """Return how many rows each group of a table has. Raises ``SourceError`` where it is none of ours."""
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


def _check_version(version: int) -> None:
    if version > VERSION:
        raise WireVersionError(f"version: the log is version {version}, this reader knows up to {VERSION}; update here")


def _unreadable(path: Path, why: str) -> SourceError:
    return SourceError(f"{path}: cannot be read ({why}); name what --sink FILE.jsonl or FILE.parquet wrote")

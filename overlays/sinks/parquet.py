"""Parquet sink: writes ``FILE.parquet``, one explanation per row, for tools that query large logs.

A Parquet file cannot be read before its last byte is written. Therefore rows are first written to small complete files
(parts) in the folder ``FILE.parquet.parts``, one every ten seconds. At the end the parts are joined and the folder is
deleted. A killed run leaves the folder, which Parquet readers and ``replay`` accept as a table. The next run renames
this folder, with the time of its last part, and does not overwrite it.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from overlays.records.arrow_schema import SCHEMA, to_row
from overlays.sinks.disk import DiskSink
from overlays.sinks.paths import check_writable, fresh_paths, with_infix
from overlays.sinks.settings import ParquetSettings
from pipeline.atomic import atomic_write, remove_unfinished
from pipeline.errors import DataLossError, SinkError
from pipeline.frames import Overlay
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

PARTS: Final = ".parts"
PART_SECONDS: Final = 10.0
"""Interval of parts: a killed run loses the rows of at most this time."""
_PART_ROWS: Final = 4096
_PART_BYTES: Final = 16 << 20
_GROUP_ROWS: Final = 1 << 16
_GROUP_BYTES: Final = 64 << 20
"""Limits of a row group in the joined file: large groups are read fast, but a whole group must fit into memory."""
_COMPRESSION: Final = "zstd"


class ParquetSink(DiskSink):
    """Writes ``*.parquet``, which is complete at the end of the run; a file of an earlier run is kept.

    If the disk refuses a write, the run continues: rows wait in memory, up to the size of a part; further rows are
    counted as lost.
    """

    def __init__(
        self,
        settings: ParquetSettings | Path | str,
        context: SinkContext | None = None,  # noqa: ARG002 - the same for every sink
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the options; ``__enter__`` opens the folder of parts.

        Args:
            settings: the file, and whether an existing file is kept.
            context: not used.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds; with ``wall_clock`` it converts ``captured_at`` to Unix time.
        """
        settings = ParquetSettings.of(settings)
        self._path = path = Path(settings.uri)
        super().__init__(settings.uri, path.parent, wall_clock, clock)
        self._replace = settings.mode == "replace"
        self._began_at_unix = 0.0
        self._parts = parts_of(path)
        self._rows: deque[dict[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        """Approximate size of each row in bytes."""
        self._bytes = 0
        """Sum of ``_sizes``; it is stored, because each new row needs it and a part has thousands of rows."""
        self._part_started_at = 0.0
        self._written = 0

    def __enter__(self) -> Self:
        check_writable(self._path)
        if not os.path.lexists(self._parts):  # its name is longer, perhaps too long
            check_writable(self._parts)
        self._began_at_unix = self._wall_clock()
        if self._parts.exists():
            _rename_leftover(self._path, self._parts)
        self._reserve.fill()
        return self

    def put(self, overlay: Overlay) -> None:
        """Add one row; write a part every ten seconds.

        Raises:
            WireError: the explanation cannot be written; the sink continues.
        """
        if overlay.signal_loss is not None:
            return
        record, line = self._record(overlay)
        row = to_row(record)
        if not self._rows:
            self._part_started_at = self._clock()
        self._rows.append(row)
        self._sizes.append(len(line))
        self._bytes += len(line)
        self._disk.refresh()
        self.idle()
        while len(self._rows) > _PART_ROWS or self._bytes > _PART_BYTES:
            self._rows.popleft()
            self._bytes -= self._sizes.popleft()
            self._disk.count_lost(1)

    def idle(self) -> None:
        """Write a part if it is due."""
        if not self._rows or self._disk.in_backoff:
            return
        full = len(self._rows) >= _PART_ROWS or self._bytes >= _PART_BYTES
        if self._disk.problem or (full or self._clock() - self._part_started_at >= PART_SECONDS):
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._rows:
            self._write()
        self._reserve.close()
        self._disk.count_lost(len(self._rows))
        join_error = ""
        try:
            if self._written:
                self._join()
                _remove(self._parts)
            elif self._parts.exists():  # the disk refused every part
                self._parts.rmdir()
        except OSError as failure:
            join_error = (
                f"{self._path}: the parts could not be joined ({failure.strerror or failure}); they are in "
                f"{self._parts}, a folder that Parquet readers accept as a table"
            )
            log.warning("%s", join_error)
        self._report_losses(self._path, "rows", kind)
        if join_error and kind is None:
            raise DataLossError(join_error)

    def _write(self) -> None:
        """Write a part. Its temporary file has a hidden name, which readers skip."""
        try:
            table = pa.Table.from_pylist(list(self._rows), SCHEMA)
            self._parts.mkdir(exist_ok=True)
            self._reserve.opened(lambda: _write_part(self._parts / f"{self._written:06d}.parquet", table))
        except OSError as error:
            self._disk.record_failure(error)
            return
        self._disk.record_success()
        self._written += 1
        self._rows.clear()
        self._sizes.clear()
        self._bytes = 0

    def _join(self) -> None:
        """Join the parts into one file, under an unused name unless ``replace`` is set."""
        if self._replace:
            if self._path.exists():
                log.warning("%s: ?mode=replace: the table of an earlier run is replaced", self._path)
            join(self._parts, self._path)
            return
        for path in fresh_paths(self._path, self._began_at_unix):
            with suppress(FileExistsError):
                join(self._parts, path, replace=False)
                if path != self._path:
                    log.warning("%s: exists and is kept; this run's table is %s", self._path, path.name)
                return


def parts_of(path: Path) -> Path:
    """Return the folder of a table's parts."""
    return path.with_name(path.name + PARTS)


def join(parts: Path, path: Path, *, replace: bool = True) -> None:
    """Join parts into one file, in their order; ``path`` is written completely or not at all.

    Args:
        parts: the folder of the parts.
        path: the file to write.
        replace: whether to replace an existing file.

    Raises:
        FileExistsError: ``path`` exists and ``replace`` is False.
        OSError: a part cannot be read, or the file cannot be written.
    """
    with (
        atomic_write(path, replace=replace) as temporary, temporary.open("wb") as joined,
        pq.ParquetWriter(joined, SCHEMA, compression=_COMPRESSION) as writer,
    ):  # fmt: skip
        for table in _large_tables(sorted(parts.glob("*.parquet"))):
            writer.write_table(table, row_group_size=_GROUP_ROWS)


def _write_part(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:  # Arrow accepts only paths in UTF-8
        pq.write_table(table, file, compression=_COMPRESSION)


def _large_tables(files: list[Path]) -> Iterator[pa.Table]:
    """Yield the rows of many small files in large tables."""
    tables: list[pa.Table] = []
    for file in files:
        with file.open("rb") as part:
            tables.append(pq.read_table(part, schema=SCHEMA, use_threads=False))
        if sum(t.num_rows for t in tables) >= _GROUP_ROWS or sum(t.nbytes for t in tables) >= _GROUP_BYTES:
            yield pa.concat_tables(tables)
            tables = []
    if tables:
        yield pa.concat_tables(tables)


def _rename_leftover(path: Path, parts: Path) -> None:
    """Rename the folder of parts of a killed run, so that this run does not overwrite it."""
    complete = sorted(parts.glob("*.parquet"))
    if not complete:
        _remove(parts)
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(complete[-1].stat().st_mtime))
    names = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2)))
    candidates = (with_infix(path, name) for name in names)
    target = next(candidate for candidate in candidates if not os.path.lexists(candidate))
    try:
        parts.rename(target)
    except OSError as error:
        raise SinkError(
            f"{parts}: is left from an earlier run and cannot be renamed ({error.strerror}); move it away"
        ) from error
    log.warning(
        "%s: an earlier run was killed; its rows are kept in the folder %s, which can be read as a table", path, target
    )


def _remove(parts: Path) -> None:
    remove_unfinished(parts)
    for file in parts.glob("*.parquet"):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # other programs may have put files there
        parts.rmdir()

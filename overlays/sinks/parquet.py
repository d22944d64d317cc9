"""The log as a table: ``FILE.parquet``, one explanation a row, for tools that ask questions of millions of them.

A Parquet file cannot be read before its last byte is written. So rows go into small whole files first, in a folder
``FILE.parquet.parts`` beside the file, a new one every ten seconds; at the end they are joined, and the folder goes. A
run that is killed leaves the folder, which is a table itself: every reader of Parquet takes it, and ``replay`` does. A
later run sets it aside under the time of its last part instead of writing over it.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from overlays.columns import SCHEMA, row_of
from overlays.sinks.disk import FULL, Disk
from overlays.sinks.files import check_writable
from overlays.wire import explanation_record, record_bytes
from pipeline.errors import LossError, SinkError
from pipeline.frames import Overlay
from pipeline.ports import Figure

log = logging.getLogger(__name__)

PARTS: Final = ".parts"
PART_SECONDS: Final = 10.0
"""What a killed run may lose at the most."""
_PART_ROWS: Final = 4096
_PART_BYTES: Final = 16 << 20
_GROUP_ROWS: Final = 1 << 16
_GROUP_BYTES: Final = 64 << 20
"""Of a row group of the joined file: large ones are read fast, and one is held in memory."""
_PACKED: Final = "zstd"


class ParquetSink:
    """Writes ``*.parquet``. An existing file is replaced when the run ends, by one that is whole.

    A full disk ends nothing: rows wait in memory, as many as a part may have; those that are more are counted as lost.
    """

    lossless = True

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to write, and the clocks that turn monotonic time into wall-clock time."""
        self.uri = str(path)
        self._path = path
        self._parts = parts_of(path)
        self._wall, self._clock = wall, clock
        self._rows: deque[dict[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        """Bytes that each row takes, about."""
        self._bytes = 0
        """Their sum: many cameras make a part of thousands, and every row asks for it."""
        self._begun_at = 0.0
        self._written = 0
        self._disk = Disk(self.uri, path.parent, clock)

    def __enter__(self) -> Self:
        check_writable(self._path)
        if self._parts.exists():
            _set_aside(self._path, self._parts)
        return self

    @property
    def lost(self) -> int:
        """Rows that were not written, for want of room."""
        return self._disk.lost

    @property
    def trouble(self) -> str:
        """Why nothing is written now, in words; empty while all is."""
        return self._disk.trouble

    def figures(self) -> Sequence[Figure]:
        """Return how the disk does."""
        return self._disk.figures()

    def needs_picture(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say no: a row has no picture."""
        return False

    def put(self, overlay: Overlay) -> None:
        """Take one row; every ten seconds write a part.

        Raises:
            SinkError: the disk is gone. One that is full is no reason: it is said, and tried again.
        """
        if overlay.silence is not None:
            return
        record = explanation_record(overlay.explanation, sent_at_unix=self._wall(), now_monotonic=self._clock())
        if not self._rows:
            self._begun_at = self._clock()
        self._rows.append(row_of(record))
        self._sizes.append(len(record_bytes(record)))
        self._bytes += self._sizes[-1]
        self._disk.look()
        self.idle()
        while len(self._rows) > _PART_ROWS or self._bytes > _PART_BYTES:
            self._rows.popleft()
            self._bytes -= self._sizes.popleft()
            self._disk.lose(1)

    def idle(self) -> None:
        """Write what has waited long enough.

        Raises:
            SinkError: the disk is gone.
        """
        if not self._rows or self._disk.waits:
            return
        full = len(self._rows) >= _PART_ROWS or self._bytes >= _PART_BYTES
        if self._disk.trouble or (full or self._clock() - self._begun_at >= PART_SECONDS):
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._rows:
            with suppress(SinkError):
                self._write()
        self._disk.lose(len(self._rows))
        apart = ""
        try:
            if self._written:
                join(self._parts, self._path)
                _remove(self._parts)
        except OSError as failure:
            apart = (
                f"{self._path}: the parts could not be joined ({failure.strerror or failure}); they lie in "
                f"{self._parts}, and every reader of Parquet takes that folder for a table"
            )
            log.warning("%s", apart)
        if self.lost and kind is None:
            raise LossError(
                f"{self._path}: {self.lost} rows were not written for want of room; the others are whole. Free some"
            )
        if apart and kind is None:
            raise LossError(apart)

    def _write(self) -> None:
        """Write a part under a name no reader looks at, then give it its own."""
        hidden = self._parts / f".{self._written:06d}"
        try:
            table = pa.Table.from_pylist(list(self._rows), SCHEMA)
            self._parts.mkdir(exist_ok=True)
            pq.write_table(table, hidden, compression=_PACKED)
            hidden.replace(self._parts / f"{self._written:06d}.parquet")
        except OSError as error:
            with suppress(OSError):
                hidden.unlink(missing_ok=True)
            if error.errno not in FULL:
                raise SinkError(
                    f"{self._path}: writing failed ({error.strerror or error}); the rows before it are kept in "
                    f"{self._parts}"
                ) from error
            self._disk.refused(error)
            return
        self._disk.took()
        self._written += 1
        self._rows.clear()
        self._sizes.clear()
        self._bytes = 0


def parts_of(path: Path) -> Path:
    """Return the folder in which a table grows."""
    return path.with_name(path.name + PARTS)


def join(parts: Path, path: Path) -> None:
    """Make one file of the parts, in their order; ``path`` is replaced at once or not at all."""
    hidden = path.with_name(f".{path.name}.joining")
    try:
        with pq.ParquetWriter(hidden, SCHEMA, compression=_PACKED) as writer:
            for table in _grouped(sorted(parts.glob("*.parquet"))):
                writer.write_table(table, row_group_size=_GROUP_ROWS)
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def _grouped(files: list[Path]) -> Iterator[pa.Table]:
    """Give the rows of many small files in large tables."""
    held: list[pa.Table] = []
    for file in files:
        held.append(pq.read_table(file, schema=SCHEMA, use_threads=False))
        if sum(t.num_rows for t in held) >= _GROUP_ROWS or sum(t.nbytes for t in held) >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _set_aside(path: Path, parts: Path) -> None:
    """Keep what a killed run left, under a name of its own."""
    whole = sorted(parts.glob("*.parquet"))
    if not whole:
        _remove(parts)
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(whole[-1].stat().st_mtime))
    names = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2)))
    places = (path.with_name(f"{path.stem}.{name}{path.suffix}") for name in names)
    kept = next(place for place in places if not place.exists())
    try:
        parts.rename(kept)
    except OSError as error:
        raise SinkError(f"{parts}: an earlier run left it, and it cannot be moved ({error.strerror})") from error
    log.warning("%s: an earlier run was killed; its rows are kept in %s, a folder that is a table too", path, kept)


def _remove(parts: Path) -> None:
    for file in [*parts.glob("*.parquet"), *parts.glob(".[0-9]*")]:
        file.unlink(missing_ok=True)
    with suppress(OSError):  # somebody put something else there
        parts.rmdir()

"""The log as a table: ``FILE.parquet``, one explanation a row, for tools that ask questions of millions of them.

A Parquet file cannot be read before its last byte is written. So rows go into small whole files first, in a folder
``FILE.parquet.parts`` beside the file, a new one every ten seconds; at the end they are joined, and the folder goes. A
run that is killed leaves the folder, which is a table itself: every reader of Parquet takes it, and ``replay`` does. A
later run sets it aside under the time of its last part instead of writing over it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from overlays.records.arrow_schema import SCHEMA, to_row
from overlays.sinks.disk import DiskMonitor, HandleReserve
from overlays.sinks.paths import check_writable, fresh_paths, with_infix
from overlays.sinks.settings import ParquetSettings
from overlays.wire.message import explanation_record, record_bytes
from pipeline.errors import DataLossError, SinkError
from pipeline.frames import Overlay
from pipeline.ports import MetricSample
from pipeline.settings import SinkContext

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
    """Writes ``*.parquet``, whole at once at the end. What an earlier run wrote stays: the file is put beside it.

    A disk that takes nothing ends nothing: rows wait in memory, as many as a part may have; those that are more are
    counted as lost.
    """

    lossless = True

    def __init__(
        self,
        settings: ParquetSettings | Path | str,
        context: SinkContext | None = None,  # noqa: ARG002 - the same for every sink
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to write.

        Args:
            settings: the file, and what becomes of an existing one.
            context: not used.
            wall_clock: Unix time.
            clock: monotonic seconds; the two together turn ``captured_at`` into Unix time.
        """
        settings = ParquetSettings.of(settings)
        self.uri = settings.uri
        self._path = path = Path(self.uri)
        self._replace = settings.mode == "replace"
        self._began_at_unix = 0.0
        self._parts = parts_of(path)
        self._wall_clock, self._clock = wall_clock, clock
        self._rows: deque[dict[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        """Bytes that each row takes, about."""
        self._bytes = 0
        """Their sum: many cameras make a part of thousands, and every row asks for it."""
        self._part_started_at = 0.0
        self._written = 0
        self._disk = DiskMonitor(self.uri, path.parent, clock)
        self._reserve = HandleReserve()

    def __enter__(self) -> Self:
        check_writable(self._path)
        for longer in (self._parts, _hidden(self._path)):  # their names are longer
            if not os.path.lexists(longer):
                check_writable(longer)
        self._began_at_unix = self._wall_clock()
        if self._parts.exists():
            _set_aside(self._path, self._parts)
        self._reserve.fill()
        return self

    @property
    def lost(self) -> int:
        """Rows that were not written, for want of room."""
        return self._disk.lost

    @property
    def problem(self) -> str:
        """Why nothing is written now, in words; empty while all is."""
        return self._disk.problem

    def metrics(self) -> Sequence[MetricSample]:
        """Return how the disk does."""
        return self._disk.metrics()

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say no: a row has no picture."""
        return False

    def put(self, overlay: Overlay) -> None:
        """Take one row; every ten seconds write a part.

        Raises:
            WireError: the explanation cannot be written; the table goes on.
        """
        if overlay.signal_loss is not None:
            return
        record = explanation_record(overlay.explanation, sent_at_unix=self._wall_clock(), now_monotonic=self._clock())
        size, row = len(record_bytes(record)), to_row(record)
        if not self._rows:
            self._part_started_at = self._clock()
        self._rows.append(row)
        self._sizes.append(size)
        self._bytes += self._sizes[-1]
        self._disk.refresh()
        self.idle()
        while len(self._rows) > _PART_ROWS or self._bytes > _PART_BYTES:
            self._rows.popleft()
            self._bytes -= self._sizes.popleft()
            self._disk.count_lost(1)

    def idle(self) -> None:
        """Write what has waited long enough."""
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
        apart = ""
        try:
            if self._written:
                self._join()
                _remove(self._parts)
        except OSError as failure:
            apart = (
                f"{self._path}: the parts could not be joined ({failure.strerror or failure}); they lie in "
                f"{self._parts}, and every reader of Parquet takes that folder for a table"
            )
            log.warning("%s", apart)
        if self.lost and kind is None:
            raise DataLossError(f"{self._path}: {self._disk.losses('rows')}")
        if apart and kind is None:
            raise DataLossError(apart)

    def _write(self) -> None:
        """Write a part under a name no reader looks at, then give it its own."""
        hidden = self._parts / f".{self._written:06d}"
        try:
            table = pa.Table.from_pylist(list(self._rows), SCHEMA)
            self._parts.mkdir(exist_ok=True)
            with self._reserve.opened(lambda: hidden.open("wb")) as file:  # Arrow takes no path that is not utf-8
                pq.write_table(table, file, compression=_PACKED)
            hidden.replace(self._parts / f"{self._written:06d}.parquet")
        except OSError as error:
            with suppress(OSError):
                hidden.unlink(missing_ok=True)
            self._disk.record_failure(error)
            return
        self._disk.record_success()
        self._written += 1
        self._rows.clear()
        self._sizes.clear()
        self._bytes = 0

    def _join(self) -> None:
        """Make one file of the parts, under a name that no file has unless files are to be replaced."""
        if self._replace:
            if self._path.exists():
                log.warning("%s: ?mode=replace: the table of an earlier run is replaced", self._path)
            join(self._parts, self._path)
            return
        for path in fresh_paths(self._path, self._began_at_unix):
            with suppress(FileExistsError):
                join(self._parts, path, replace=False)
                if path != self._path:
                    log.warning("%s: is there already, and stays; this run's table is %s", self._path, path.name)
                return


def parts_of(path: Path) -> Path:
    """Return the folder in which a table grows."""
    return path.with_name(path.name + PARTS)


def join(parts: Path, path: Path, *, replace: bool = True) -> None:
    """Make one file of the parts, in their order; ``path`` is whole at once or not there at all.

    Raises:
        FileExistsError: something is at ``path``, and is not to be replaced.
    """
    if not replace and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    hidden = _hidden(path)
    try:
        with hidden.open("wb") as joined, pq.ParquetWriter(joined, SCHEMA, compression=_PACKED) as writer:
            for table in _grouped(sorted(parts.glob("*.parquet"))):
                writer.write_table(table, row_group_size=_GROUP_ROWS)
        if replace:
            hidden.replace(path)
        else:
            _named(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def _hidden(path: Path) -> Path:
    """Return what a table is called while its parts are joined."""
    return path.with_name(f".{path.name}.joining")


def _named(hidden: Path, path: Path) -> None:
    """Give a file its name, which no other may have. Raises ``FileExistsError``."""
    try:
        os.link(hidden, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        hidden.replace(path)
    else:
        hidden.unlink()


def _grouped(files: list[Path]) -> Iterator[pa.Table]:
    """Give the rows of many small files in large tables."""
    held: list[pa.Table] = []
    for file in files:
        with file.open("rb") as part:
            held.append(pq.read_table(part, schema=SCHEMA, use_threads=False))
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
    places = (with_infix(path, name) for name in names)
    kept = next(place for place in places if not os.path.lexists(place))
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

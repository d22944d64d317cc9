"""The log: one explanation a line, JSON, the keys of the wire's header."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from overlays.sinks.disk import FULL, Disk
from overlays.sinks.files import check_writable, stands_at
from overlays.wire import explanation_record, record_bytes
from pipeline.errors import LossError, SinkError
from pipeline.frames import Overlay
from pipeline.ports import Figure

log = logging.getLogger(__name__)


class LogSink:
    """Writes ``*.jsonl``. Every line is handed to the system at once: a killed run loses none that was put.

    An existing file is replaced when the first explanation arrives. A full disk ends nothing: lines are whole or not
    there, those that are not are counted, and it is tried again after a second, then after up to thirty. A log that
    was moved or removed meanwhile is begun anew at its place, and one that was emptied grows from its beginning: it can
    be rotated.
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
        self._wall = wall
        self._clock = clock
        self._file: FileIO | None = None
        self._disk = Disk(self.uri, path.parent, clock)

    def __enter__(self) -> Self:
        check_writable(self._path)
        return self

    @property
    def lost(self) -> int:
        """Lines that were not written, for want of room."""
        return self._disk.lost

    @property
    def trouble(self) -> str:
        """Why nothing is written now, in words; empty while all is."""
        return self._disk.trouble

    def figures(self) -> Sequence[Figure]:
        """Return how the disk does."""
        return self._disk.figures()

    def needs_picture(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say no: a line has no picture."""
        return False

    def idle(self) -> None:
        """Do nothing: a file can wait."""

    def put(self, overlay: Overlay) -> None:
        """Write one line.

        Raises:
            SinkError: the disk is gone. One that is full is no reason: it is said, and tried again.
        """
        if overlay.silence is not None:
            return
        self._disk.look()
        if self._disk.waits:
            self._disk.lose(1)
            return
        record = explanation_record(overlay.explanation, sent_at_unix=self._wall(), now_monotonic=self._clock())
        try:
            self._write(record_bytes(record) + b"\n")
        except OSError as error:
            if error.errno not in FULL:
                raise SinkError(
                    f"{self._path}: writing failed ({error.strerror or error}); the lines before it are kept"
                ) from error
            self._disk.refused(error)
            self._disk.lose(1)
        else:
            self._disk.took()

    def _write(self, line: bytes) -> None:
        """Write a whole line, or none. Raises ``OSError``."""
        file = self._opened()
        whole_bytes = os.fstat(file.fileno()).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError:
            with suppress(OSError):  # no file, but a device or a pipe
                file.truncate(whole_bytes)
            raise

    def _opened(self) -> FileIO:
        """Return the file that stands at our path; the first one is emptied, one that came since goes on."""
        if self._file is not None and stands_at(self._path, self._file):
            return self._file
        begun = self._file is not None
        if self._file is not None:
            self._file.close()
            log.warning("%s: was moved or removed; a new one is begun there", self._path)
        anew = 0 if begun else os.O_TRUNC
        self._file = FileIO(self._path, "a", opener=lambda path, flags: os.open(path, flags | anew, 0o666))
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.lost and kind is None:
            raise LossError(
                f"{self._path}: {self.lost} lines were not written for want of room; the others are whole. Free some"
            )

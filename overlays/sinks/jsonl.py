"""JSON Lines sink: writes one explanation per line, with the keys of the wire header, after a record of the run."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from overlays.sinks.disk import DiskSink
from overlays.sinks.jsonl_runs import is_regular, mend_end, new_run_id, run_line
from overlays.sinks.locks import open_locked
from overlays.sinks.paths import check_writable, is_same_file
from overlays.sinks.settings import JsonlSettings
from pipeline.errors import SinkError
from pipeline.frames import Overlay
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)


class JsonlSink(DiskSink):
    """Writes ``*.jsonl``. Every line is passed to the operating system at once, so a killed run loses no line.

    To an existing log, the run record and the explanations are appended. If the disk refuses a write, the run
    continues: a line is written completely or not at all, missing lines are counted, and writing is tried again after
    one second, later after up to thirty seconds. Log rotation works: a log that was moved or deleted is created again,
    and a log that was emptied is written from its start.
    """

    def __init__(
        self,
        settings: JsonlSettings | Path | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the options; ``__enter__`` opens the file.

        Args:
            settings: the file, and whether an existing log is continued.
            context: the expected cameras, if known; the run record contains them.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds; with ``wall_clock`` it converts ``captured_at`` to Unix time.
        """
        settings = JsonlSettings.of(settings)
        self._path = path = Path(settings.uri)
        super().__init__(settings.uri, path.parent, wall_clock, clock)
        self._cameras = (context or SinkContext()).cameras
        self._replace = settings.mode == "replace"
        self._file: FileIO | None = None
        self._has_run_record = False
        """True if the open file has this run's record."""
        self._run_id = new_run_id()
        self._began_at_unix = 0.0

    def __enter__(self) -> Self:
        check_writable(self._path)
        self._began_at_unix = self._wall_clock()
        self._reserve.fill()
        return self

    def put(self, overlay: Overlay) -> None:
        """Write one line.

        Raises:
            SinkError: the reader of a pipe has closed it. A refused write to a disk raises no error: it is tried again
                later.
            WireError: the explanation cannot be encoded as JSON; the sink continues.
        """
        if overlay.signal_loss is not None:
            return
        line = self._record(overlay)[1] + b"\n"
        self._disk.refresh()
        if self._disk.in_backoff:
            self._disk.count_lost(1)
            return
        try:
            self._write(line)
        except OSError as error:
            if error.errno in {errno.EPIPE, errno.EBUSY}:
                raise SinkError(
                    f"{self._path}: writing failed ({error.strerror or error}); the lines before it are kept"
                ) from error
            self._disk.record_failure(error)
            self._disk.count_lost(1)
        else:
            self._disk.record_success()

    def _write(self, line: bytes) -> None:
        """Write a complete line or nothing; a new file starts with the run record. Raises ``OSError``."""
        file = self._opened()
        whole_bytes = os.fstat(file.fileno()).st_size
        if not self._has_run_record or (whole_bytes == 0 and is_regular(file)):
            line = run_line(self._run_id, self._cameras, self._began_at_unix) + line
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError:
            with suppress(OSError):  # a device or a pipe cannot be truncated
                file.truncate(whole_bytes)
            raise
        self._has_run_record = True

    def _opened(self) -> FileIO:
        """Return the open file at the path, ready for appending."""
        if self._file is not None:
            if is_same_file(self._path, self._file):
                return self._file
            self._file.close()
            self._file = None
            log.warning("%s: was moved or deleted; it is created again", self._path)
        file = self._reserve.opened(lambda: FileIO(self._path, "a", opener=open_locked))
        try:
            if is_regular(file):
                self._prepare(file)
        except BaseException:
            file.close()
            raise
        self._file, self._has_run_record, self._replace = file, False, False
        return file

    def _prepare(self, file: FileIO) -> None:
        """Repair the end of an existing file, or empty the file if ``replace`` is set."""
        size = os.fstat(file.fileno()).st_size
        if self._replace:
            file.truncate(0)
            if size:
                log.warning("%s: ?mode=replace: %d bytes of earlier runs are replaced", self._path, size)
        elif repair := self._reserve.opened(lambda: mend_end(self._path, file)):
            log.warning("%s: %s", self._path, repair)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._reserve.close()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._report_losses(self._path, "lines", kind)

"""The log: one explanation a line, JSON, the keys of the wire's header; each run begins with a line of its own."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from overlays.sinks.disk import DiskMonitor, HandleReserve
from overlays.sinks.jsonl_runs import is_regular, mend_end, new_run_id, run_line
from overlays.sinks.paths import check_writable, is_same_file
from overlays.sinks.settings import JsonlSettings
from overlays.wire.message import explanation_record, record_bytes
from pipeline.errors import DataLossError, SinkError
from pipeline.frames import Overlay
from pipeline.ports import MetricSample
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)


class JsonlSink:
    """Writes ``*.jsonl``. Every line is handed to the system at once: a killed run loses none that was put.

    An existing log is continued: the run's own line and its explanations follow what is there. A disk that takes
    nothing ends nothing: lines are whole or not there, those that are not are counted, and it is tried again after a
    second, then after up to thirty. A log that was moved or removed meanwhile is begun anew at its place, and one that
    was emptied grows from its beginning: it can be rotated.
    """

    lossless = True

    def __init__(
        self,
        settings: JsonlSettings | Path | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to write.

        Args:
            settings: the file, and what becomes of an existing log.
            context: its cameras, where they are known: the run's line names them.
            wall_clock: Unix time.
            clock: monotonic seconds; the two together turn ``captured_at`` into Unix time.
        """
        settings = JsonlSettings.of(settings)
        self.uri = settings.uri
        self._path = path = Path(self.uri)
        self._cameras = (context or SinkContext()).cameras
        self._replace = settings.mode == "replace"
        self._wall_clock = wall_clock
        self._clock = clock
        self._file: FileIO | None = None
        self._headed = False
        """Whether the open file has this run's line."""
        self._run_id = new_run_id()
        self._began_at_unix = 0.0
        self._disk = DiskMonitor(self.uri, path.parent, clock)
        self._reserve = HandleReserve()

    def __enter__(self) -> Self:
        check_writable(self._path)
        self._began_at_unix = self._wall_clock()
        self._reserve.fill()
        return self

    @property
    def lost(self) -> int:
        """Lines that were not written."""
        return self._disk.lost

    @property
    def problem(self) -> str:
        """Why nothing is written now, in words; empty while all is."""
        return self._disk.problem

    def metrics(self) -> Sequence[MetricSample]:
        """Return how the disk does."""
        return self._disk.metrics()

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say no: a line has no picture."""
        return False

    def idle(self) -> None:
        """Do nothing: a file can wait."""

    def put(self, overlay: Overlay) -> None:
        """Write one line.

        Raises:
            SinkError: the reader of a pipe is gone. A disk that takes nothing is no reason: it is tried again.
            WireError: the explanation cannot be written as JSON; the log goes on.
        """
        if overlay.signal_loss is not None:
            return
        record = explanation_record(overlay.explanation, sent_at_unix=self._wall_clock(), now_monotonic=self._clock())
        line = record_bytes(record) + b"\n"
        self._disk.refresh()
        if self._disk.in_backoff:
            self._disk.count_lost(1)
            return
        try:
            self._write(line)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise SinkError(
                    f"{self._path}: writing failed ({error.strerror or error}); the lines before it are kept"
                ) from error
            self._disk.record_failure(error)
            self._disk.count_lost(1)
        else:
            self._disk.record_success()

    def _write(self, line: bytes) -> None:
        """Write a whole line, or none; before the first one of a file the run's own. Raises ``OSError``."""
        file = self._opened()
        whole_bytes = os.fstat(file.fileno()).st_size
        if not self._headed or (whole_bytes == 0 and is_regular(file)):
            line = run_line(self._run_id, self._cameras, self._began_at_unix) + line
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError:
            with suppress(OSError):  # no file, but a device or a pipe
                file.truncate(whole_bytes)
            raise
        self._headed = True

    def _opened(self) -> FileIO:
        """Return the file that stands at our path, ready to be continued."""
        if self._file is not None:
            if is_same_file(self._path, self._file):
                return self._file
            self._file.close()
            self._file = None
            log.warning("%s: was moved or removed; a new one is begun there", self._path)
        file = self._reserve.opened(lambda: FileIO(self._path, "a"))
        try:
            if is_regular(file):
                self._prepare(file)
        except BaseException:
            file.close()
            raise
        self._file, self._headed, self._replace = file, False, False
        return file

    def _prepare(self, file: FileIO) -> None:
        """Make what is there ready to be continued, or empty it where that is asked for."""
        there = os.fstat(file.fileno()).st_size
        if self._replace:
            file.truncate(0)
            if there:
                log.warning("%s: ?mode=replace: %d bytes of earlier runs are replaced", self._path, there)
        elif told := self._reserve.opened(lambda: mend_end(self._path, file)):
            log.warning("%s: %s", self._path, told)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._reserve.close()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.lost and kind is None:
            raise DataLossError(f"{self._path}: {self._disk.losses('lines')}")

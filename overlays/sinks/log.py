"""The log: one explanation a line, JSON, the keys of the wire's header."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Self

from overlays.sinks.files import check_writable
from overlays.wire import explanation_record, record_bytes
from pipeline.errors import SinkError
from pipeline.frames import Overlay


class LogSink:
    """Writes ``*.jsonl``. Every line is handed to the system at once: a killed run loses none that was put.

    An existing file is replaced when the first explanation arrives.
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
        self._file: BufferedWriter | None = None

    def __enter__(self) -> Self:
        check_writable(self._path)
        return self

    def needs_picture(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say no: a line has no picture."""
        return False

    def idle(self) -> None:
        """Do nothing: a file can wait."""

    def put(self, overlay: Overlay) -> None:
        """Write one line.

        Raises:
            SinkError: the disk is full or gone.
        """
        if overlay.silence is not None:
            return
        record = explanation_record(overlay.explanation, sent_at_unix=self._wall(), now_monotonic=self._clock())
        line = record_bytes(record) + b"\n"
        try:
            if self._file is None:
                self._file = self._path.open("wb")
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise _unwritten(self._path, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as failure:
            if kind is None:
                raise _unwritten(self._path, failure) from failure
        finally:
            self._file = None


def _unwritten(path: Path, error: OSError) -> SinkError:
    return SinkError(
        f"{path}: writing failed ({error.strerror or error}); the lines before it are kept. Free some room"
    )

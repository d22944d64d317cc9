"""Crash-safe video files: each write is complete or fails; truncates to the last complete fragment."""

from __future__ import annotations

import logging
from contextlib import suppress
from io import FileIO
from pathlib import Path

from overlays.sinks.disk import HandleReserve
from overlays.sinks.locks import open_locked
from overlays.sinks.paths import fresh_paths, is_same_file

log = logging.getLogger(__name__)


class AllOrNothingFile:
    """A file whose writes are complete or raise an error; used in place of FFmpeg's own file output.

    FFmpeg continues after a failed write on a full disk, and then rewrites the file header as if the video were
    complete. Therefore all writes after a failed write fail, too. The file is created at the first use, so that an
    encoder that cannot be opened leaves no empty file.
    """

    def __init__(
        self,
        path: Path,
        reserve: HandleReserve | None = None,
        kept_since_unix: float | None = None,
        *,
        is_further: bool = False,
    ) -> None:
        """Set the path; the file is not opened yet.

        Args:
            path: the file.
            reserve: file handles that are reserved for this file.
            kept_since_unix: start time of the run in Unix seconds; an existing file at ``path`` is kept, and the new
                file gets a name that contains this time. None: an existing file is replaced.
            is_further: whether the run has created a file before; a name with the time is then not logged.
        """
        self.path = path
        """Path of the file; it does not change any more after the file was opened."""
        self._reserve = reserve or HandleReserve()
        self._kept_since_unix, self._is_further = kept_since_unix, is_further
        self._file: FileIO | None = None
        self._failed: OSError | None = None

    @property
    def is_open(self) -> bool:
        """True if the file was opened; also true after ``close``."""
        return self._file is not None

    def open(self) -> None:
        """Open the file if it is not open. Raises ``OSError``."""
        self._opened()

    def seek(self, position: int, whence: int = 0) -> int:
        """Set the file position in bytes and return it."""
        if self._file is None and position == 0:
            return 0  # FFmpeg tests whether the file is seekable
        return self._opened().seek(position, whence)

    def tell(self) -> int:
        """Return the file position in bytes."""
        return 0 if self._file is None else self._file.tell()

    def truncate(self, size: int) -> int:
        """Truncate the file to ``size`` bytes."""
        return self._opened().truncate(size)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, chunk: bytes) -> int:
        """Write the whole chunk. Raises ``OSError``."""
        if self._failed is not None:
            raise OSError(*self._failed.args)
        rest = memoryview(chunk)
        try:
            file = self._opened()
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError as error:
            self._failed = error.with_traceback(None)
            raise
        return len(chunk)

    def _opened(self) -> FileIO:
        if self._file is None:
            self._file = self._reserve.opened(self._create)
        return self._file

    def _create(self) -> FileIO:
        if self._kept_since_unix is None or (self.path.exists() and not self.path.is_file()):  # a device, a pipe
            return FileIO(self.path, "w", opener=open_locked)
        for path in fresh_paths(self.path, self._kept_since_unix):
            with suppress(FileExistsError):
                file = FileIO(path, "x", opener=open_locked)
                if path != self.path and not self._is_further:
                    log.warning("%s: exists and is kept; this run writes %s", self.path, path.name)
                self.path = path
                return file
        raise AssertionError  # fresh_paths is endless

    def stands_at(self, path: Path) -> bool:
        """Return whether ``path`` still leads to this open file."""
        return self._file is not None and is_same_file(path, self._file)


def truncate_to_last_fragment(path: Path) -> bool:
    """Truncate a fragmented MP4 after its last complete fragment.

    ISO/IEC 14496-12: a box is (size, type, data). A fragment is a pair of ``moof`` and ``mdat``; a finished file has
    one ``mdat`` around all fragments, followed by the index ``moov``.

    Returns:
        Whether the file has a complete fragment; if not, it is not changed.
    """
    end_of_fragment, found, position, previous = 0, False, 0, b""
    length = path.stat().st_size
    with path.open("r+b") as file:
        while position + 8 <= length:
            file.seek(position)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            if size < 8 or position + size > length:
                break
            position += size
            if (previous, kind) in {(b"moof", b"mdat"), (b"mdat", b"moov")}:
                end_of_fragment, found = position, True
            previous = kind
        if found:
            file.truncate(end_of_fragment)
    return found

"""Films on a disk that may be full: written whole or not at all, and cut back to what was written whole."""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path

from overlays.sinks.disk import HandleReserve
from overlays.sinks.paths import fresh_paths, is_same_file

log = logging.getLogger(__name__)


class AllOrNothingFile:
    """A file that takes all that is written, or raises: FFmpeg's own is left open where the disk is full.

    After a write that failed all fail: FFmpeg would go on to write over the film's head, for which there is room, that
    the film is whole. It is opened when it is needed, so that an encoder that cannot be opened leaves no empty file.
    """

    def __init__(
        self,
        path: Path,
        reserve: HandleReserve | None = None,
        kept_since_unix: float | None = None,
    ) -> None:
        """Take where to write.

        Args:
            path: the file.
            reserve: handles held back for it.
            kept_since_unix: what stands at ``path`` stays, and the file gets a name with this time in it; None: it is
                replaced.
        """
        self.path = path
        """Where it is, once it is open."""
        self._reserve = reserve or HandleReserve()
        self._kept_since_unix = kept_since_unix
        self._file: FileIO | None = None
        self._failed: OSError | None = None

    def open(self) -> None:
        """Open it, where that has not happened. Raises ``OSError``."""
        self._opened()

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to a place."""
        if self._file is None and place == 0:
            return 0  # FFmpeg looks whether it may
        return self._opened().seek(place, whence)

    def tell(self) -> int:
        """Return the place."""
        return 0 if self._file is None else self._file.tell()

    def truncate(self, size: int) -> int:
        """Cut the file off."""
        return self._opened().truncate(size)

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()

    def write(self, chunk: bytes) -> int:
        """Write all of it. Raises ``OSError``."""
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
            self._file = self._reserve.opened(self._made)
        return self._file

    def _made(self) -> FileIO:
        if self._kept_since_unix is None or (self.path.exists() and not self.path.is_file()):  # a device, a pipe
            return FileIO(self.path, "w", opener=_opened_for_one)
        for path in fresh_paths(self.path, self._kept_since_unix):
            with suppress(FileExistsError):
                file = FileIO(path, "x", opener=_opened_for_one)
                if path != self.path:
                    log.warning("%s: is there already, and stays; this run writes %s", self.path, path.name)
                self.path = path
                return file
        raise AssertionError  # there is no end of names

    def stands_at(self, path: Path) -> bool:
        """Say whether this is still the file at ``path``."""
        return self._file is not None and is_same_file(path, self._file)


def _opened_for_one(path: str, flags: int) -> int:
    """Open a film for this run alone, and empty it only then.

    Raises:
        OSError: another run writes it, whatever it is called there.
    """
    opened = os.open(path, flags & ~os.O_TRUNC, 0o666)
    try:
        if stat.S_ISREG(os.fstat(opened).st_mode):
            _lock(opened)
            if flags & os.O_TRUNC:
                os.truncate(opened, 0)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _lock(opened: int) -> None:
    """Lock an open file; where the system or the drive has no locks, do nothing."""
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another run writes it; choose another name") from None
    except (ImportError, OSError):
        return


def truncate_to_last_fragment(path: Path) -> bool:
    """Take off the end of a fragmented MP4 what was not written whole; say whether any pictures are left.

    ISO/IEC 14496-12: boxes of (size, type), among them pairs of ``moof`` and ``mdat``; in a finished file, where they
    lie within one great ``mdat``, the index ``moov`` behind it.
    """
    whole, pictures, place, last = 0, False, 0, b""
    length = path.stat().st_size
    with path.open("r+b") as file:
        while place + 8 <= length:
            file.seek(place)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size < 8 or place + size > length:
                break
            place += size
            if (last, kind) in {(b"moof", b"mdat"), (b"mdat", b"moov")}:
                whole, pictures = place, True
            last = kind
        if pictures:
            file.truncate(whole)
    return pictures

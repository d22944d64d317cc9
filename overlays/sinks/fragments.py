"""Films on a disk that may be full: written whole or not at all, and cut back to what was written whole."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

from overlays.sinks.files import stands_at


class WholeWrites:
    """A file that takes all that is written, or raises: FFmpeg's own is left open where the disk is full.

    After a write that failed all fail: FFmpeg would go on to write over the film's head, for which there is room, that
    the film is whole.
    """

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "w")
        self._failed: OSError | None = None
        self.seek = self._file.seek
        self.tell = self._file.tell
        self.truncate = self._file.truncate
        self.close = self._file.close

    def write(self, chunk: bytes) -> int:
        """Write all of it. Raises ``OSError``."""
        if self._failed is not None:
            raise OSError(*self._failed.args)
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self._failed = error.with_traceback(None)
            raise
        return len(chunk)

    def stands_at(self, path: Path) -> bool:
        """Say whether this is still the file at ``path``."""
        return stands_at(path, self._file)


def cut_to_whole_fragments(path: Path) -> bool:
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

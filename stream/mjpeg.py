"""Motion JPEG as cameras really send it, made into the regular multipart stream that FFmpeg reads.

FFmpeg wants a boundary before the first picture and a header before each. Cameras leave out the first boundary, put
dashes or quotes around it, send no length, or no headers at all. So pictures are found by their own marks (ITU-T T.81,
annex B), and by ``Content-Length`` where it is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from stream.failures import Failure, FailureError

MAX_IMAGE_BYTES: Final = 64 << 20
"""Larger pictures are refused."""
_START: Final = b"\xff\xd8\xff"
_LENGTH: Final = re.compile(rb"content-length[ \t]*:[ \t]*(\d{1,18})", re.IGNORECASE)
_MARKER: Final = re.compile(rb"\xff{1,256}([^\x00\xff\xd0-\xd7])")
"""A marker behind a header's segment, and the fill bytes before it."""
_SCAN_MARKER: Final = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""A marker in a scan's data: no stuffed zero, no restart. One byte only: a run of 0xFF would be searched from each."""
_MAX_FILL_BYTES: Final = 256
_MAX_SEGMENTS: Final = 10_000
_MAX_SCANS: Final = 100
"""Progressive pictures have about ten, and each costs the decoder a pass over the whole picture."""
_HEADER_BYTES: Final = 1 << 16
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA


class MotionJpeg:
    """A file of regular motion JPEG, made while it is read from ``read``. Knows no clock."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """Take what returns the next bytes of the camera's stream, at most so many; ``b""`` at its end."""
        self._images = images(read)
        self._ready = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end. Raises what ``read`` does."""
        if not self._ready:
            picture = next(self._images, None)
            if picture is None:
                return b""
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            self._ready = head.encode() + picture + b"\r\n"
        part, self._ready = self._ready[:size], self._ready[size:]
        return part


def images(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Give the JPEG pictures of a stream, each as soon as it is whole; what is between them is passed over.

    Raises:
        FailureError: a picture is larger than ``MAX_IMAGE_BYTES``.
    """
    waiting = bytearray()
    while True:
        begin = waiting.find(_START)
        if begin < 0:
            del waiting[:-_HEADER_BYTES]
            if not _fill(waiting, read):
                return
            continue
        told = _LENGTH.findall(waiting, 0, begin)
        del waiting[:begin]
        end = _wait_for_end(waiting, read, int(told[-1]) if told else None)
        if not end:
            return
        yield bytes(waiting[:end])
        del waiting[:end]


def _wait_for_end(waiting: bytearray, read: Callable[[int], bytes], length: int | None) -> int:
    """Read on until the picture that ``waiting`` begins with is whole; return its length, 0 where it never is."""
    walk = _Walk(waiting)
    while True:
        if (length or len(waiting)) > MAX_IMAGE_BYTES:
            told = f"of {length} bytes" if length else "without an end"
            words = f"it sends a picture {told}; at most {MAX_IMAGE_BYTES >> 20} MiB are read"
            raise FailureError(Failure(words, "slow", "corrupt"))
        if length and len(waiting) >= length:
            if waiting.count(b"\xff\xda", 0, length) > _MAX_SCANS:
                raise _too_many_parts()
            return length
        end = None if length else walk.end()
        if end is not None:
            return end
        if not _fill(waiting, read):
            return 0


def _fill(waiting: bytearray, read: Callable[[int], bytes]) -> bool:
    part = read(1 << 16)
    waiting += part
    return bool(part)


def _too_many_parts() -> FailureError:
    return FailureError(Failure("it sends a picture of more parts than any camera makes", "slow", "corrupt", hint=""))


class _Walk:
    """Walks over the segments of a JPEG that is still arriving."""

    def __init__(self, content: bytearray) -> None:
        self._content = content
        self._at = 2
        self._in_scan = False
        self._segments = self._scans = 0

    def end(self) -> int | None:
        """Return where the picture ends, None while that is not known.

        Raises:
            FailureError: it has more segments or scans than a picture may have.
        """
        content = self._content
        while True:
            marker = _SCAN_MARKER.search(content, self._at) if self._in_scan else _MARKER.match(content, self._at)
            ahead = content[self._at : self._at + _MAX_FILL_BYTES + 1]
            if marker is None and not self._in_scan and (ahead.strip(b"\xff") or len(ahead) > _MAX_FILL_BYTES):
                return self._at  # no marker where one is due: the decoder says what it thinks of it
            if marker is None:
                self._at = max(self._at, len(content) - 1) if self._in_scan else self._at
                return None
            kind = marker[1][0]
            self._segments += 1
            self._scans += kind == _START_OF_SCAN
            if self._segments > _MAX_SEGMENTS or self._scans > _MAX_SCANS:
                raise _too_many_parts()
            if kind == _END_OF_IMAGE:
                return marker.end()
            if kind == _START_OF_IMAGE:
                return marker.start()
            if kind in _BARE:
                self._at = marker.end()
                continue
            if len(content) < marker.end() + 2:
                self._at = marker.start()
                return None
            size = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
            if len(content) < marker.end() + size:
                self._at = marker.start()
                return None
            self._at, self._in_scan = marker.end() + size, kind == _START_OF_SCAN

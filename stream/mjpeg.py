"""Converts the motion JPEG of cameras to the multipart stream that FFmpeg reads.

FFmpeg needs a boundary before the first image and a header before each image. Some cameras omit the first boundary, put
dashes or quotes around it, or send no length or no headers at all. So images are found by their JPEG markers (ITU-T
T.81, annex B), and by ``Content-Length`` if the camera sends it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from stream.failures import Failure, FailureError

MAX_IMAGE_BYTES: Final = 64 << 20
"""Maximum size of an image; a larger one is an error."""
_START: Final = b"\xff\xd8\xff"
_LENGTH: Final = re.compile(rb"content-length[ \t]*:[ \t]*(\d{1,18})", re.IGNORECASE)
_MARKER: Final = re.compile(rb"\xff{1,256}([^\x00\xff\xd0-\xd7])")
"""A marker after a header segment, with the fill bytes before it."""
_SCAN_MARKER: Final = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""A marker in the data of a scan, except stuffed zeros and restart markers; one 0xFF only, for linear run time."""
_MAX_FILL_BYTES: Final = 256
_MAX_SEGMENTS: Final = 10_000
_MAX_SCANS: Final = 100
"""Progressive images have about ten scans; each costs a pass over the whole image."""
_HEADER_BYTES: Final = 1 << 16
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA


class MotionJpeg:
    """A readable file of regular motion JPEG, converted while it is read."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """Create the file; ``read(size)`` must return bytes of the camera's stream."""
        self._images = images(read)
        self._ready = b""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, ``b""`` at the end; raises the errors of ``read``."""
        if not self._ready:
            image = next(self._images, None)
            if image is None:
                return b""
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
            self._ready = head.encode() + image + b"\r\n"
        part, self._ready = self._ready[:size], self._ready[size:]
        return part


def images(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the JPEG images of a stream, each as soon as it is complete.

    Raises:
        FailureError: an image is larger than ``MAX_IMAGE_BYTES``.
    """
    buffer = bytearray()
    while True:
        begin = buffer.find(_START)
        if begin < 0:
            del buffer[:-_HEADER_BYTES]
            if not _fill(buffer, read):
                return
            continue
        lengths = _LENGTH.findall(buffer, 0, begin)
        del buffer[:begin]
        end = _wait_for_end(buffer, read, int(lengths[-1]) if lengths else None)
        if not end:
            return
        yield bytes(buffer[:end])
        del buffer[:end]


def _wait_for_end(buffer: bytearray, read: Callable[[int], bytes], length: int | None) -> int:
    """Read until ``buffer`` contains the first image; return its length, 0 if it is cut off."""
    parser = _SegmentParser(buffer)
    while True:
        if (length or len(buffer)) > MAX_IMAGE_BYTES:
            size = f"of {length} bytes" if length else "without an end"
            message = f"the camera sends an image {size}; at most {MAX_IMAGE_BYTES >> 20} MiB are read"
            raise FailureError(Failure(message, "slow", "corrupt"))
        if length and len(buffer) >= length:
            if buffer.count(b"\xff\xda", 0, length) > _MAX_SCANS:
                raise _too_many_segments()
            return length
        end = None if length else parser.end()
        if end is not None:
            return end
        if not _fill(buffer, read):
            return 0


def _fill(buffer: bytearray, read: Callable[[int], bytes]) -> bool:
    part = read(1 << 16)
    buffer += part
    return bool(part)


def _too_many_segments() -> FailureError:
    return FailureError(Failure("the camera sends a JPEG with too many segments or scans", "slow", "corrupt", hint=""))


class _SegmentParser:
    """Parses the segments of a JPEG that is still arriving."""

    def __init__(self, content: bytearray) -> None:
        self._content = content
        self._position = 2
        self._in_scan = False
        self._segments = self._scans = 0

    def end(self) -> int | None:
        """Return the length of the image in bytes; None if its end has not arrived.

        Raises:
            FailureError: the image has too many segments or scans.
        """
        content = self._content
        while True:
            pattern = _SCAN_MARKER.search if self._in_scan else _MARKER.match
            marker = pattern(content, self._position)
            ahead = content[self._position : self._position + _MAX_FILL_BYTES + 1]
            if marker is None and not self._in_scan and (ahead.strip(b"\xff") or len(ahead) > _MAX_FILL_BYTES):
                return self._position  # a marker is missing: the decoder reports the damage
            if marker is None:
                self._position = max(self._position, len(content) - 1) if self._in_scan else self._position
                return None
            kind = marker[1][0]
            self._segments += 1
            self._scans += kind == _START_OF_SCAN
            if self._segments > _MAX_SEGMENTS or self._scans > _MAX_SCANS:
                raise _too_many_segments()
            if kind == _END_OF_IMAGE:
                return marker.end()
            if kind == _START_OF_IMAGE:
                return marker.start()
            if kind in _WITHOUT_LENGTH:
                self._position = marker.end()
                continue
            if len(content) < marker.end() + 2:
                self._position = marker.start()
                return None
            size = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
            if len(content) < marker.end() + size:
                self._position = marker.start()
                return None
            self._position, self._in_scan = marker.end() + size, kind == _START_OF_SCAN

"""Test footage whose images contain their own number and time.

The whole picture is a grid of 8 rows of 10 black or white blocks, 80 bits: the number (24), the capture time (40) and
a checksum of both (16). Blocks are large and flat, so they survive H.264 at a low bit rate, JPEG and scaling; and as
they cover everything, a picture that is damaged, torn or mixed from two does not read as either.
"""

from __future__ import annotations

import binascii
import time
from typing import NamedTuple

import numpy as np

from pipeline.frames import Image

ROWS, COLUMNS = 8, 10
SMALLEST = (160, 120)
BLACK, WHITE = 16, 235
_CLEAR = 60  # how far from mid-grey the mean of a block must be to count

_NUMBERS, _TIMES = 1 << 24, 1 << 40


class Mark(NamedTuple):
    """The number and the time in an image."""

    number: int
    """The number of images before it."""
    millis: int
    """Its time in monotonic milliseconds: the same clock in all processes of a machine."""

    def age_seconds(self, now: float | None = None) -> float:
        """Return its age in seconds at ``now`` (monotonic; None: the current time)."""
        return (time.monotonic() if now is None else now) - self.millis / 1000


def paint(image: Image, number: int, millis: int) -> Image:
    """Return an image of ``image``'s size, uint8 RGB, that contains ``number`` and ``millis``.

    Raises ``ValueError`` for a picture below 160x120 and for what does not fit into 24 and 40 bits.
    """
    height, width = image.shape[:2]
    painted = np.empty((height, width, 3), np.uint8)
    painted[:] = blocks(width, height, number, millis)[:, :, None]
    return painted


def blocks(width: int, height: int, number: int, millis: int) -> np.ndarray:
    """Return the painted image as brightness only, uint8 (height, width)."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        raise ValueError(f"{width}x{height}: footage is at least {SMALLEST[0]}x{SMALLEST[1]}")
    if not (0 <= number < _NUMBERS and 0 <= millis < _TIMES):
        raise ValueError(f"number {number}, {millis} ms: 24 and 40 bits hold from 0 to {_NUMBERS - 1}, {_TIMES - 1}")
    data = number.to_bytes(3, "big") + millis.to_bytes(5, "big")
    data += _checksum(data)
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(ROWS, COLUMNS)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    levels = np.where(bits, WHITE, BLACK).astype(np.uint8)
    return np.ascontiguousarray(levels[rows][:, columns])


def read(image: Image) -> Mark | None:
    """Return number and time in ``image`` (uint8, RGB or grey); None where it is damaged."""
    height, width = image.shape[:2]
    grey = image if image.ndim == 2 else image[:, :, 1]
    bits = np.empty((ROWS, COLUMNS), np.uint8)
    for row in range(ROWS):
        top, bottom = _middle(row, height, ROWS)
        band = grey[top:bottom]
        for column in range(COLUMNS):
            left, right = _middle(column, width, COLUMNS)
            level = float(band[:, left:right].mean()) - 127.5
            if abs(level) < _CLEAR:
                return None
            bits[row, column] = level > 0
    data = np.packbits(bits).tobytes()
    if _checksum(data[:8]) != data[8:]:
        return None
    return Mark(int.from_bytes(data[:3], "big"), int.from_bytes(data[3:8], "big"))


def millis_now() -> int:
    """Return the current time in monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


def _middle(index: int, length: int, count: int) -> tuple[int, int]:
    """Return start and end of a block's inner part, without its blurred edges."""
    begin, end = -(-index * length // count), -(-(index + 1) * length // count)
    inset = max(1, (end - begin) // 5)
    return begin + inset, end - inset


def _checksum(data: bytes) -> bytes:
    # The start value is not zero: with zero, the CRC of a black picture (all zeros) would be zero.
    return binascii.crc_hqx(data, 0xA5C3).to_bytes(2, "big")

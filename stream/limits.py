"""How large a picture may be: one limit for every kind of source, checked before memory is taken."""

from __future__ import annotations

from typing import Final

from pipeline.errors import SourceError

LIVE_MAX_PIXELS: Final = 40_000_000
"""Of a camera or stream, where nothing else is said: 8K (7680x4320) and the square sensors of 36 megapixels fit."""
FILE_MAX_PIXELS: Final = 128_000_000
"""Of a file, where nothing else is said: photos of 100 and 108 megapixels fit."""


class ImageTooLargeError(SourceError):
    """A picture has more pixels than its source may give."""

    def __init__(self, width: int, height: int, max_pixels: int) -> None:
        """Take the size in pixels, 0 x 0 where it is not known, and the limit."""
        size = f"a picture of {width}x{height} pixels" if width * height else "a picture"
        super().__init__(
            f"{size} has more than max_pixels={max_pixels} allows; scale it down, or set max_pixels of this source "
            "in a configuration if the size is right"
        )


def check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Raise ``ImageTooLargeError`` where ``width`` x ``height`` is above ``max_pixels``; None allows any size."""
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLargeError(width, height, max_pixels)

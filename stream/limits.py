"""Limits of the image size, checked before memory is allocated."""

from __future__ import annotations

from typing import Final

from pipeline.errors import SourceError

LIVE_MAX_PIXELS: Final = 40_000_000
"""Default for cameras and streams, in pixels: allows 8K (7680x4320) and square sensors of 36 megapixels."""
FILE_MAX_PIXELS: Final = 128_000_000
"""Default for files, in pixels: allows photos of 100 and 108 megapixels."""


class ImageTooLargeError(SourceError):
    """An image exceeds the ``max_pixels`` of its source."""

    def __init__(self, width: int, height: int, max_pixels: int) -> None:
        """Create the error; 0 x 0 means that the size is unknown."""
        size = f"an image of {width}x{height} pixels" if width * height else "an image"
        super().__init__(
            f"{size} exceeds max_pixels={max_pixels}; scale it down, or set max_pixels of this source in a "
            "configuration if the size is right"
        )


def check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Raise ``ImageTooLargeError`` for an image above ``max_pixels``; None: no limit."""
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLargeError(width, height, max_pixels)

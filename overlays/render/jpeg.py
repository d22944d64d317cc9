"""JPEG encoding and decoding of RGB images, with limits that are checked before the decoder allocates memory."""

from __future__ import annotations

import math
import struct
from typing import Final

import cv2
import numpy as np

from pipeline.errors import ImageError, WireError, WireLimitError
from pipeline.frames import Image, Overlay

MAX_IMAGE_BYTES: Final = 64 << 20
MAX_SIDE_PIXELS: Final = 16384
MAX_IMAGE_PIXELS: Final = 100_000_000

_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LAST_MARKERS = frozenset({0xD9, 0xDA})
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


def encode_image(image: Image, jpeg_quality: int = 80) -> bytes:
    """Return an image encoded as JPEG.

    Args:
        image: RGB, ``(height, width, 3)``, uint8.
        jpeg_quality: 1 to 100.

    Raises:
        WireLimitError: a side exceeds ``MAX_SIDE_PIXELS``.
        WireError: OpenCV cannot encode the image.
    """
    height, width = image.shape[:2]
    if max(height, width) > MAX_SIDE_PIXELS:
        raise WireLimitError(
            f"image: {width}x{height}, a side is longer than {MAX_SIDE_PIXELS} pixels; send it smaller"
        )
    flags = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    ok, packed = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
    if not ok:
        raise WireError(f"image: {width}x{height} could not be encoded as JPEG")
    return packed.tobytes()


def reusable_jpeg(overlay: Overlay, jpeg_quality: int | None) -> bytes | None:
    """Return the overlay's existing JPEG if it has this quality; otherwise None."""
    if overlay.jpeg is None or overlay.jpeg.quality != jpeg_quality:
        return None
    return overlay.jpeg.payload


def scale_image(image: Image, scale: float) -> Image:
    """Return an RGB image, uint8 (height, width, 3), scaled by ``scale`` in (0, 1]; the same array for a scale of 1."""
    height, width = image.shape[:2]
    size = (max(1, math.floor(width * scale + 1e-6)), max(1, math.floor(height * scale + 1e-6)))
    if size == (width, height):
        return image
    small: Image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    small.flags.writeable = False
    return small


def bounded_image(image: Image) -> Image:
    """Return an RGB image, uint8 (height, width, 3), reduced to the encoder's limits if it exceeds them."""
    height, width = image.shape[:2]
    scale = min(MAX_SIDE_PIXELS / max(height, width), math.sqrt(MAX_IMAGE_PIXELS / (height * width)))
    return image if scale >= 1.0 else scale_image(image, scale)


def decode_image(payload: bytes) -> Image:
    """Return a decoded JPEG, uint8 RGB, (height, width, 3), read-only. Check its size with ``jpeg_size`` first.

    Raises:
        ImageError: the bytes are not a JPEG.
    """
    try:
        decoded = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"payload: {len(payload)} bytes are not a JPEG image") from error
    if decoded is None:
        raise ImageError(f"payload: {len(payload)} bytes are not a JPEG image")
    image: Image = decoded.astype(np.uint8, copy=False)
    image.flags.writeable = False
    return image


def jpeg_size(payload: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from a JPEG's frame header, without decoding the image.

    A few hundred bytes can declare an image of gigabytes, so the size is checked before the decoder allocates memory.

    Raises:
        ImageError: the bytes are not a JPEG.
        WireLimitError: the image exceeds a limit.
    """
    if len(payload) > MAX_IMAGE_BYTES:
        raise WireLimitError(f"payload: {len(payload)} bytes, more than {MAX_IMAGE_BYTES}")
    if payload[:2] != b"\xff\xd8":
        raise ImageError(f"payload: {payload[:4]!r}… is not a JPEG image")
    offset = _size_segment(payload)
    if offset is None:
        raise ImageError(f"payload: a JPEG of {len(payload)} bytes without a size; it is truncated or damaged")
    height, width = struct.unpack_from(">HH", payload, offset + 5)
    if max(width, height) > MAX_SIDE_PIXELS or width * height > MAX_IMAGE_PIXELS:
        raise WireLimitError(
            f"payload: {width}x{height} pixels; images of at most {MAX_IMAGE_PIXELS} pixels and {MAX_SIDE_PIXELS} on a "
            "side are decoded"
        )
    return width, height


def _size_segment(payload: bytes) -> int | None:
    """Return the offset of the frame header (ITU-T T.81, B.2.2); None if there is none before the scan."""
    offset = 2
    while offset + 9 <= len(payload) and payload[offset] == 0xFF:
        marker = payload[offset + 1]
        if marker in _SIZE_MARKERS:
            return offset
        if marker in _LAST_MARKERS:
            return None
        if marker == 0xFF:  # fill byte
            offset += 1
        elif marker in _BARE_MARKERS:
            offset += 2
        else:
            offset += 2 + struct.unpack_from(">H", payload, offset + 2)[0]
    return None

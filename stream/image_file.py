"""Reads image files; checks their size and completeness."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL.ImageOps import exif_transpose
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.errors import SourceError
from pipeline.frames import Image
from stream.bit_depth import eight_bits, value_bits
from stream.limits import FILE_MAX_PIXELS, check_size
from stream.paths import kind_of, refusal, shown

log = logging.getLogger(__name__)

_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker in the data of a scan, except stuffed zeros and restart markers."""
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1"})
_PNM_LARGEST: Final = re.compile(rb"P[2356]\s(?:\s|#[^\n]*\n)*\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d{1,5})\s")
_JPEG_SEGMENT: Final = re.compile(rb"\xff([^\x00\xff])")
_MAX_JPEG_SEGMENTS: Final = 10_000
_MAX_JPEG_SCANS: Final = 100
"""Progressive images have about ten scans; each costs a pass over the whole image."""
_MAX_JPEG_GAP_BYTES: Final = 1 << 16
_TIFF_MAX_SAMPLE_VALUE: Final = 281
_BYTES_PER_PIXEL: Final = 8  # four channels of 16 bits, uncompressed
_HEADER_BYTES: Final = 1 << 16
_MAX_EXTRA_BYTES: Final = 256 << 20  # allowance for other data in the file, such as a motion photo's video
_FORMATS: Final = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF", "GIF")
_PILLOW_FORMATS: Final = frozenset({"HEIF", "AVIF"})
"""Formats that OpenCV does not read, or whose orientation it ignores."""
_DEEP_FORMATS: Final = frozenset({"PNG", "TIFF", "PPM", "JPEG2000"})
"""Pillow's names of the formats with values of up to 16 bits."""
_UNREADABLE: Final = "is not an image that can be read; save it as JPEG or PNG"
_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Header:
    """The properties of an image file that are known before it is decoded."""

    format: str
    """Pillow's name of the format."""
    width: int
    height: int
    mode: str
    """Pillow's name of the pixel type."""
    is_single: bool
    """True if the file contains a single image."""
    bits: int | None
    """Number of bits used of 16; None: not stated in the file."""


class ImageReader:
    """Reads the images of one source; logs each kind of warning once.

    Applies the orientation in EXIF or HEIF; converts greyscale and palettes to RGB; drops transparency. The depth of
    16-bit values is the smallest of 10, 12, 14 and 16 bits that holds the largest value of the image. Of several pages
    the first is read.
    """

    def __init__(
        self, *, max_pixels: int | None = FILE_MAX_PIXELS, bits: int | None = None, takes_bits: bool = True
    ) -> None:
        """Create a reader.

        Args:
            max_pixels: maximum pixels of an image; None: no limit.
            bits: the depth of 16-bit values; None: derived from each image.
            takes_bits: True if the source has the option ``?bits=N``, which warnings then mention.
        """
        self._takes_bits = takes_bits
        self._max_pixels = max_pixels
        self._bits = bits
        self._warned: set[str] = set()

    def read(self, path: str | os.PathLike[str]) -> Image:
        """Return the image in ``path`` as uint8 RGB (height, width, 3).

        Raises:
            SourceError: the file cannot be read, is incomplete, is not an image, or has too many pixels.
        """
        content = self._content(path)
        try:
            return self.decode(content, lambda kind, message: self._warn_once(kind, f"{shown(path)}: {message}"))
        except SourceError as error:
            raise SourceError(f"{shown(path)}: {error}") from None

    def decode(self, content: bytes, warn: Callable[[str, str], None] | None = None) -> Image:
        """Return the image in a file's ``content`` as uint8 RGB (height, width, 3).

        Args:
            content: JPEG, PNG, WebP, TIFF, BMP, PNM, JPEG 2000, AVIF or HEIC.
            warn: called with the kind of a warning and its message; None: warnings are logged, once per kind.

        Raises:
            SourceError: for the same reasons as in ``read``; the message does not contain the path.
        """
        warn = warn or self._warn_once
        if content.startswith(_JPEG_START) and not jpeg_is_whole(content):
            raise SourceError("the JPEG is cut off; download or save it again")
        if content[4:8] == b"ftyp":
            for width, height in _stated_sizes(content):
                check_size(width, height, self._max_pixels)
            if content[8:12] in _HEIF_BRANDS:
                _register_heif()
        header = _header(content)
        if header is None:
            raise SourceError(_UNREADABLE)
        check_size(header.width, header.height, self._max_pixels)
        if header.mode == "F" or (header.mode == "I" and header.format == "TIFF"):
            raise SourceError("its values have 32 bits; save it with 8 or 16 bits, as PNG or TIFF")
        if not header.is_single:
            warn("pages", "contains several images or pages: the first is read; save each as a file to read them all")
        by_pillow = header.format in _PILLOW_FORMATS
        image = _decode_by_pillow(content) if by_pillow else self._decode_by_opencv(content, header, warn)
        if image is None:
            raise SourceError(f"the {header.format} image is damaged or cut off; download or save it again")
        return image

    def _decode_by_opencv(self, content: bytes, header: _Header, warn: Callable[[str, str], None]) -> Image | None:
        flags = cv2.IMREAD_COLOR_RGB | (cv2.IMREAD_ANYDEPTH if header.format in _DEEP_FORMATS else 0)
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:
            return None
        if image is None or image.dtype == np.uint8:
            return None if image is None else np.asarray(image, dtype=np.uint8)
        if image.dtype != np.uint16:
            raise SourceError(
                f"its values have the type {image.dtype}; save it as PNG or TIFF with unsigned 8-bit or 16-bit values"
            )
        values = np.asarray(image, dtype=np.uint16)
        bits = self._bits or header.bits or value_bits(values)
        if bits < 16 and self._bits is None and header.bits is None and values.any():
            hint = "if the depth is wrong, scale the values to 16 bits"
            if self._takes_bits:
                hint = (
                    f"add ?bits={bits} to the source to read all images with the same depth, or ?bits=16 if the "
                    "images are dark"
                )
            warn(
                "bits",
                f"the largest 16-bit value is {values.max()}, so the image is read with {bits} bits; the depth is "
                f"derived from each image; {hint}",
            )
        return eight_bits(values, bits)

    def _content(self, path: str | os.PathLike[str]) -> bytes:
        if kind_of(path) not in {"file", "missing"}:  # reading from a pipe would wait for its writer
            raise SourceError(f"{shown(path)}: is not a regular file; use the path of an image file")
        max_bytes = None if self._max_pixels is None else self._max_pixels * _BYTES_PER_PIXEL + _MAX_EXTRA_BYTES
        try:
            size = os.stat(path).st_size  # noqa: PTH116 - str, bytes or PathLike
            if max_bytes is not None and size > max_bytes:
                raise SourceError(
                    f"{shown(path)}: has {size} bytes; max_pixels={self._max_pixels} allows at most {max_bytes} bytes; "
                    "set max_pixels of this source in a configuration if the size is right"
                )
            content = Path(path).read_bytes()
        except OSError as reason:
            raise SourceError(refusal(path, reason)) from None
        if not content:
            raise SourceError(f"{shown(path)}: is empty (0 bytes); download or save it again")
        return content

    def _warn_once(self, kind: str, message: str) -> None:
        with _LOCK:
            is_new = kind not in self._warned
            self._warned.add(kind)
        if is_new:
            log.warning("%s", message)


_READER: Final = ImageReader(takes_bits=False)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Return the image as uint8 RGB (height, width, 3), as ``ImageReader`` does."""
    return _READER.read(path)


def jpeg_is_whole(content: bytes) -> bool:
    """Return whether the first JPEG in ``content`` has its end-of-image marker.

    Data after the marker is ignored: a phone's video, a second image, padding. The segments are parsed,
    because EXIF data may contain the end marker of a preview.

    Raises:
        SourceError: so many segments, or so much data between them, that a decoder would take minutes.
    """
    position, gap_bytes, scans, in_scan = 2, 0, 0, False
    for _ in range(_MAX_JPEG_SEGMENTS):
        match = (_JPEG_MARKER if in_scan else _JPEG_SEGMENT).search(content, position)
        if match is None:
            return not in_scan and position < len(content)  # no valid segment: the decoder reports the damage
        gap_bytes += 0 if in_scan else match.start() - position
        marker, position = content[match.end() - 1], match.end()
        if marker == 0xD9:
            return True
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        position += int.from_bytes(content[position : position + 2], "big")
        in_scan = marker == 0xDA
        scans += in_scan
        if scans > _MAX_JPEG_SCANS or gap_bytes > _MAX_JPEG_GAP_BYTES:
            break
    raise SourceError("the JPEG has too many scans or too many bytes between its segments; save it again")


def _header(content: bytes) -> _Header | None:
    """Return the header; None if the format is unknown or the header is damaged."""
    Pillow.MAX_IMAGE_PIXELS = None  # ``max_pixels`` replaces Pillow's own, lower limit
    try:
        with Pillow.open(io.BytesIO(content), formats=_known_formats()) as image:
            return _Header(image.format or "", *image.size, image.mode, _is_single(image), _stated_bits(content, image))
    except Exception:  # noqa: BLE001 - a damaged header makes Pillow raise nearly anything
        return None


def _stated_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield each (width, height) in the header of a HEIC or AVIF file."""
    offset = content.find(b"ispe", 0, _HEADER_BYTES)
    while 0 <= offset <= len(content) - 16:
        yield struct.unpack_from(">II", content, offset + 8)
        offset = content.find(b"ispe", offset + 4, _HEADER_BYTES)


def _known_formats() -> list[str]:
    """Return Pillow's names of the supported formats; no other parser is used."""
    Pillow.init()  # loads the parsers at the first call; ``open`` does so only without ``formats``
    return [name for name in _FORMATS if name in Pillow.OPEN]


def _is_single(image: Pillow.Image) -> bool:
    """Return whether the file contains a single image, without decoding."""
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1)) == 1
    try:
        image.seek(1)
    except EOFError:
        return True
    image.seek(0)
    return False


def _stated_bits(content: bytes, image: Pillow.Image) -> int | None:
    """Return the depth that a PNM or TIFF file states; None: not stated."""
    largest = 0
    if image.format == "PPM":
        match = _PNM_LARGEST.match(content)
        largest = int(match[1]) if match else 0
    elif isinstance(image, TiffImageFile):
        tag = image.tag_v2.get(_TIFF_MAX_SAMPLE_VALUE, 0)
        largest = max(tag) if isinstance(tag, tuple) else int(tag)
    return largest.bit_length() if 0xFF < largest < 1 << 16 else None


def _register_heif() -> None:
    """Register Pillow's HEIC plugin, at the first HEIC image."""
    import pi_heif

    with _LOCK:
        if "HEIF" not in Pillow.OPEN:
            pi_heif.register_heif_opener()


def _decode_by_pillow(content: bytes) -> Image | None:
    """Return an oriented HEIC or AVIF image; None if it is damaged."""
    try:
        with Pillow.open(io.BytesIO(content), formats=_known_formats()) as image:
            return np.asarray(exif_transpose(image).convert("RGB"), dtype=np.uint8)
    except Exception:  # noqa: BLE001 - as in ``_header``
        return None

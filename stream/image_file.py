"""One photo: a file to an upright RGB array, checked for its size before memory is taken, and for being whole."""

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
"""A marker in a scan's data: no stuffed zero, no restart."""
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1"})
_PNM_LARGEST: Final = re.compile(rb"P[2356]\s(?:\s|#[^\n]*\n)*\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d{1,5})\s")
_JPEG_SEGMENT: Final = re.compile(rb"\xff([^\x00\xff])")
_MAX_JPEG_SEGMENTS: Final = 10_000
_MAX_JPEG_SCANS: Final = 100
"""Progressive pictures have about ten, and each costs the decoder a pass over the whole picture."""
_MAX_JPEG_GAPS_BYTES: Final = 1 << 16
_TIFF_MAX_SAMPLE_VALUE: Final = 281
_BYTES_PER_PIXEL: Final = 8  # four channels of 16 bits, not compressed
_HEADER_BYTES: Final = 1 << 16
_FILE_BYTES: Final = 256 << 20  # what may stand beside the pixels: a motion photo's video
_FORMATS: Final = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "GIF")
_TURNED_FORMATS: Final = frozenset({"HEIF", "AVIF"})
"""Those that OpenCV does not read, or does not turn."""
_DEEP_FORMATS: Final = frozenset({"PNG", "TIFF", "PPM", "JPEG2000"})
"""Pillow's names of the formats whose values may have 16 bits."""
_BAD: Final = "is no picture that can be read, whatever its name says; save it as JPEG or PNG"
_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Header:
    """What a photo says of itself before it is decoded."""

    format: str
    """Pillow's name of it."""
    width: int
    height: int
    mode: str
    """Pillow's name of what its values are."""
    is_one: bool
    """Whether it holds one picture only."""
    bits: int | None
    """How many bits of 16 its values use, where it states that."""


class ImageReader:
    """Reads photos of one source; tells each kind of assumption it makes once.

    Orientation in EXIF or HEIF is honoured; greyscale and palettes become RGB, transparency is dropped. Of values of
    16 bits, the smallest of 10, 12, 14 and 16 bits that holds the largest of a picture is taken for full white. Of
    several pages the first is read.
    """

    def __init__(
        self, *, max_pixels: int | None = FILE_MAX_PIXELS, bits: int | None = None, takes_bits: bool = True
    ) -> None:
        """Decide nothing yet.

        Args:
            max_pixels: how many pixels a picture may have; None: any number.
            bits: the depth of 16-bit values; None: each picture's is judged.
            takes_bits: whether the user may state the depth behind the path; that is then the remedy that is told.
        """
        self._takes_bits = takes_bits
        self._max_pixels = max_pixels
        self._bits = bits
        self._told: set[str] = set()

    def read(self, path: str | os.PathLike[str]) -> Image:
        """Return the picture in ``path`` as uint8 RGB (height, width, 3).

        Raises:
            SourceError: it cannot be read, is not whole, is no picture, or has more pixels than allowed.
        """
        content = self._content(path)
        try:
            return self.decode(content, lambda kind, words: self._tell(kind, f"{shown(path)}: {words}"))
        except SourceError as error:
            raise SourceError(f"{shown(path)}: {error}") from None

    def decode(self, content: bytes, tell: Callable[[str, str], None] | None = None) -> Image:
        """Return the picture in a file's ``content`` as uint8 RGB (height, width, 3).

        Args:
            content: JPEG, PNG, WebP, TIFF, BMP, PNM, JPEG 2000, AVIF or HEIC.
            tell: takes a kind of assumption and the words on it; None: the log, once for each kind.

        Raises:
            SourceError: as of ``read``, without the path.
        """
        tell = tell or self._tell
        if content.startswith(_JPEG_START) and not jpeg_is_whole(content):
            raise SourceError("a JPEG that is cut off before its end; fetch or save it again")
        if content[4:8] == b"ftyp":
            for width, height in _stated_sizes(content):
                check_size(width, height, self._max_pixels)
            if content[8:12] in _HEIF_BRANDS:
                _learn_heif()
        header = _header(content)
        if header is None:
            raise SourceError(_BAD)
        check_size(header.width, header.height, self._max_pixels)
        if header.mode == "F" or (header.mode == "I" and header.format == "TIFF"):
            raise SourceError("its values have 32 bits; save it with 8 or 16 bits, as PNG or TIFF")
        if not header.is_one:
            tell("pages", "holds several pictures or pages: the first is read; save each as a file to have them all")
        by_pillow = header.format in _TURNED_FORMATS
        image = _turned(content) if by_pillow else self._decoded(content, header, tell)
        if image is None:
            raise SourceError(f"a {header.format} that is damaged or cut off; fetch or save it again")
        return image

    def _decoded(self, content: bytes, header: _Header, tell: Callable[[str, str], None]) -> Image | None:
        flags = cv2.IMREAD_COLOR_RGB | (cv2.IMREAD_ANYDEPTH if header.format in _DEEP_FORMATS else 0)
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:
            return None
        if image is None or image.dtype == np.uint8:
            return None if image is None else np.asarray(image, dtype=np.uint8)
        if image.dtype != np.uint16:
            raise SourceError(f"its values are {image.dtype}; save it with 8 or 16 bits without sign, as PNG or TIFF")
        values = np.asarray(image, dtype=np.uint16)
        bits = self._bits or header.bits or value_bits(values)
        if bits < 16 and self._bits is None and header.bits is None and values.any():
            hint = "scale the values to 16 bits if that is wrong"
            if self._takes_bits:
                hint = f"add ?bits={bits} to the source to read all alike, or ?bits=16 if they are dark on purpose"
            tell(
                "bits",
                f"its values of 16 bits reach {values.max()} only: read as {bits} bits, each such picture by itself; "
                f"{hint}",
            )
        return eight_bits(values, bits)

    def _content(self, path: str | os.PathLike[str]) -> bytes:
        if kind_of(path) not in {"file", "nothing"}:  # a pipe would wait for its writer
            raise SourceError(f"{shown(path)}: is no regular file; give the path of a picture")
        most = None if self._max_pixels is None else self._max_pixels * _BYTES_PER_PIXEL + _FILE_BYTES
        try:
            size = os.stat(path).st_size  # noqa: PTH116 - a path of any kind
            if most is not None and size > most:
                raise SourceError(f"{shown(path)}: has {size} bytes, too many for a picture of max_pixels")
            content = Path(path).read_bytes()
        except OSError as reason:
            raise SourceError(refusal(path, reason)) from None
        if not content:
            raise SourceError(f"{shown(path)}: is empty (0 bytes); fetch or save it again")
        return content

    def _tell(self, kind: str, words: str) -> None:
        with _LOCK:
            is_new = kind not in self._told
            self._told.add(kind)
        if is_new:
            log.warning("%s", words)


_READER: Final = ImageReader(takes_bits=False)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Return the picture in ``path`` as uint8 RGB (height, width, 3). Raises ``SourceError`` like ``ImageReader``."""
    return _READER.read(path)


def jpeg_is_whole(content: bytes) -> bool:
    """Say whether the first picture in ``content`` ends with the marker that ends a JPEG.

    Whatever lies behind that is no part of it: a phone's video, a second picture, padding. A marker inside the EXIF
    data is that of a preview.

    Raises:
        SourceError: it has so many parts, or so much between them, that decoders would take minutes to step over them.
    """
    at, gaps_bytes, scans, in_scan = 2, 0, 0, False
    for _ in range(_MAX_JPEG_SEGMENTS):
        found = (_JPEG_MARKER if in_scan else _JPEG_SEGMENT).search(content, at)
        if found is None:
            return not in_scan and at < len(content)  # no JPEG that can be followed: its decoder judges
        gaps_bytes += 0 if in_scan else found.start() - at
        marker, at = content[found.end() - 1], found.end()
        if marker == 0xD9:
            return True
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        at += int.from_bytes(content[at : at + 2], "big")
        in_scan = marker == 0xDA
        scans += in_scan
        if scans > _MAX_JPEG_SCANS or gaps_bytes > _MAX_JPEG_GAPS_BYTES:
            break
    raise SourceError("a JPEG of more parts than cameras and programs write; save it again")


def _header(content: bytes) -> _Header | None:
    """Return what the header says; None where it is none that is known."""
    Pillow.MAX_IMAGE_PIXELS = None  # the limit is ours, and can be set; Pillow's would refuse what was allowed
    try:
        with Pillow.open(io.BytesIO(content)) as picture:
            return _Header(
                picture.format or "", *picture.size, picture.mode, _is_one(picture), _stated_bits(content, picture)
            )
    except Exception:  # noqa: BLE001 - a damaged header makes Pillow raise nearly anything
        return None


def _stated_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Give each (width, height) that a HEIC or AVIF file states in its header: of the whole, of tiles, of previews."""
    at = content.find(b"ispe", 0, _HEADER_BYTES)
    while 0 <= at <= len(content) - 16:
        yield struct.unpack_from(">II", content, at + 8)
        at = content.find(b"ispe", at + 4, _HEADER_BYTES)


def _known_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read: no other parser sees the file."""
    return (*_FORMATS, "HEIF") if "HEIF" in Pillow.OPEN else _FORMATS


def _is_one(picture: Pillow.Image) -> bool:
    """Say whether there is one picture only; decodes none, and counts no thousand pages of a TIFF."""
    if picture.format != "TIFF":
        return int(getattr(picture, "n_frames", 1)) == 1
    try:
        picture.seek(1)
    except EOFError:
        return True
    picture.seek(0)
    return False


def _stated_bits(content: bytes, picture: Pillow.Image) -> int | None:
    """Return how many bits of 16 are in use by the file's own word: PNM's greatest value, TIFF's."""
    largest = 0
    if picture.format == "PPM":
        stated = _PNM_LARGEST.match(content)
        largest = int(stated[1]) if stated else 0
    elif isinstance(picture, TiffImageFile):
        stated_largest = picture.tag_v2.get(_TIFF_MAX_SAMPLE_VALUE, 0)
        largest = max(stated_largest) if isinstance(stated_largest, tuple) else int(stated_largest)
    return largest.bit_length() if 0xFF < largest < 1 << 16 else None


def _learn_heif() -> None:
    """Teach Pillow HEIC, once; the library is loaded with the first such picture."""
    import pi_heif

    with _LOCK:
        if "HEIF" not in Pillow.OPEN:
            pi_heif.register_heif_opener()


def _turned(content: bytes) -> Image | None:
    """Return a HEIC or AVIF picture, whole from all its tiles, and turned as it says."""
    try:
        with Pillow.open(io.BytesIO(content)) as picture:
            return np.asarray(exif_transpose(picture).convert("RGB"), dtype=np.uint8)
    except Exception:  # noqa: BLE001 - as of a header
        return None

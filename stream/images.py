"""A folder, a glob or one picture: photos as frames, in the order a person would sort them."""

from __future__ import annotations

import glob
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np

from pipeline.errors import SourceError
from pipeline.frames import Frame, Image
from pipeline.ports import Health

log = logging.getLogger(__name__)

_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_END: Final = b"\xff\xd9"
_TRAILER_BYTES = 1 << 16  # cameras append makers' notes and previews behind the end of the picture


class ImagesSource:
    """Frames of photos. One named picture must decode; of many, the broken ones are left out and counted.

    EXIF orientation is honoured; greyscale and palettes become RGB, deeper ones 8-bit, transparency is dropped. Times
    follow an assumed rate: a picture's place in the list over ``images_per_second``.
    """

    live = False

    def __init__(self, pattern: str, *, suffixes: frozenset[str], camera: str, images_per_second: float = 1.0) -> None:
        if images_per_second <= 0:
            message = f"images_per_second={images_per_second}: must be above 0; 1 shows one picture a second"
            raise SourceError(message)
        self.camera = camera
        self.uri = pattern
        self.frames_total: int | None = None
        self.rate: float | None = images_per_second
        self._suffixes = suffixes
        self._paths: list[Path] = []
        self._health = Health()

    @property
    def health(self) -> Health:
        """How it does right now; ``corrupt`` counts pictures that did not decode."""
        return self._health

    def __enter__(self) -> Self:
        self._paths = found_images(self.uri, self._suffixes)
        if len(self._paths) == 1:
            read_image(self._paths[0])
        self.frames_total = len(self._paths)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._paths = []

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give every picture that decodes; indices count those. Raises ``SourceError`` where none does."""
        assert self.rate is not None  # noqa: S101 - set on making
        self._health = Health("live")
        index = 0
        for place, path in enumerate(self._paths):
            if stop.is_set():
                return
            try:
                image = read_image(path)
            except SourceError as error:
                log.warning("left out: %s", error)
                self._health = Health("live", str(error), corrupt=self._health.corrupt + 1)
                continue
            yield Frame(image, self.camera, index, time.monotonic(), place / self.rate)
            index += 1
        if index == 0:
            message = f"{self.uri}: none of its {len(self._paths)} pictures decodes; the last: {self._health.reason}"
            self._health = Health("failed", message, corrupt=self._health.corrupt)
            raise SourceError(message)
        self._health = Health("ended", self._health.reason, corrupt=self._health.corrupt)


def found_images(pattern: str, suffixes: frozenset[str]) -> list[Path]:
    """Return the pictures that a path, folder or glob names, in natural order. Raises ``SourceError`` for none."""
    place = Path(pattern)
    if place.is_file():
        return [place]
    found = place.iterdir() if place.is_dir() else map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207
    paths = sorted((p for p in found if p.suffix.lower() in suffixes and p.is_file()), key=_natural)
    if not paths and not (place.is_dir() or glob.has_magic(pattern)):
        raise SourceError(f"{pattern}: there is no such file or folder")
    if not paths:
        inner = next((p for p in place.rglob("*") if p.suffix.lower() in suffixes), None) if place.is_dir() else None
        cure = f"the folders in it do: give '{place}/**/*'" if inner is not None else "check the path"
        message = f"{pattern}: holds no picture with a suffix of {', '.join(sorted(suffixes))}; {cure}"
        raise SourceError(message)
    return paths


def read_image(path: Path) -> Image:
    """Return the picture in ``path`` as uint8 RGB (height, width, 3). Raises ``SourceError`` where it is not whole."""
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}; check that it exists and may be read"
        raise SourceError(message) from None
    if content.startswith(_JPEG_START) and not _jpeg_is_whole(content):
        message = f"{path}: a JPEG that is cut off before its end; fetch or save it again"
        raise SourceError(message)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) if content else None
    except cv2.error:
        image = None
    if image is None:
        message = f"{path}: is no picture OpenCV can read, whatever its name says; save it as JPEG or PNG"
        raise SourceError(message)
    return np.asarray(image, dtype=np.uint8)


def _jpeg_is_whole(content: bytes) -> bool:
    """Say whether the marker that ends a JPEG stands near the end of ``content``: OpenCV fills what is missing."""
    return _JPEG_END in content[-_TRAILER_BYTES:]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort 2 before 10: numbers in names by their value."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]

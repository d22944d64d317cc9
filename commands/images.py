"""How the pictures of a data set are read: all alike, by one reader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.frames import Image

log = logging.getLogger("recipro-stream")

ReadImage = Callable[[Path], Image]


def open_images(place: str) -> tuple[str, ReadImage, str]:
    """Return a path without its options, what reads its pictures, and the options: ``PARTS?bits=12``.

    Raises:
        SourceError: an option that is not known, or does not belong to pictures.
    """
    from pydantic import ValidationError

    from pipeline.errors import SourceError
    from stream.image_file import ImageReader
    from stream.limits import FILE_MAX_PIXELS
    from stream.local_uri import split_options
    from stream.paths import shown
    from stream.settings import ImagesSettings

    path, stated = split_options(place)
    if others := stated.keys() - {"bits"}:
        raise SourceError(f"{shown(place)}: {min(others)} is not an option of a data set's images; bits is")
    try:
        bits = ImagesSettings.model_validate({"uri": "images", **stated}).bits
    except ValidationError as wrong:
        raise SourceError(f"{shown(place)}: bits={stated['bits']!r}: {wrong.errors()[0]['msg']}") from None
    return path, ImageReader(max_pixels=FILE_MAX_PIXELS, bits=bits).read, place[len(path) :]


def writable_names(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that a list or a report can name: those of UTF-8 and of one line; tell of the others."""
    from stream.paths import shown

    kept: list[Path] = []
    left: list[Path] = []
    for path in paths:
        is_text = str(path).encode("utf-8", "replace").decode() == str(path)
        (kept if is_text and len(str(path).splitlines()) == 1 else left).append(path)
    if left:
        log.warning(
            "left out: %d pictures, %s for one: a name has to be UTF-8 and of one line; give them others",
            len(left), shown(left[0]),
        )  # fmt: skip
    return kept

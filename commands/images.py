"""Opens the images of a data set, in the same way for all commands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.frames import Image

log = logging.getLogger("recipro-stream")

ReadImage = Callable[[Path], Image]


def open_images(location: str) -> tuple[str, ReadImage, str]:
    """Split a location such as ``PARTS?bits=12``; return its path, an image reader, and its options.

    Raises:
        SourceError: an option is unknown or has an invalid value.
    """
    from pydantic import ValidationError

    from pipeline.errors import SourceError
    from stream.image_file import ImageReader
    from stream.limits import FILE_MAX_PIXELS
    from stream.local_uri import split_options
    from stream.paths import shown
    from stream.settings import ImagesSettings

    path, stated = split_options(location)
    if others := stated.keys() - {"bits"}:
        raise SourceError(f"{shown(location)}: {min(others)!r} is not an option of images; the only option is 'bits'")
    try:
        bits = ImagesSettings.model_validate({"uri": "images", **stated}).bits
    except ValidationError as wrong:
        raise SourceError(f"{shown(location)}: bits={stated['bits']!r}: {wrong.errors()[0]['msg']}") from None
    return path, ImageReader(max_pixels=FILE_MAX_PIXELS, bits=bits).read, location[len(path) :]


def writable_names(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that are valid UTF-8 on one line, as lists and reports require; log the others."""
    from stream.paths import shown

    writable: list[Path] = []
    left: list[Path] = []
    for path in paths:
        is_text = str(path).encode("utf-8", "replace").decode() == str(path)
        (writable if is_text and len(str(path).splitlines()) == 1 else left).append(path)
    if left:
        log.warning(
            "left out: %d images, such as %s: a name must be UTF-8 on one line; rename them",
            len(left), shown(left[0]),
        )  # fmt: skip
    return writable

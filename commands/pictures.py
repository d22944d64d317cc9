"""How the pictures of a data set are read: all alike, by one reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.frames import Image

ReadPicture = Callable[[Path], Image]


def open_pictures(place: str) -> tuple[str, ReadPicture, str]:
    """Return a path without its options, what reads its pictures, and the options: ``PARTS?bits=12``.

    Raises:
        SourceError: an option that is not known, or does not belong to pictures.
    """
    from stream.limits import FILE_MAX_PIXELS
    from stream.local import check_options, image_reader, split_options

    path, stated = split_options(place)
    check_options(place, stated, ("bits",), "the pictures of a data set")
    return path, image_reader(stated, FILE_MAX_PIXELS).read, place[len(path) :]

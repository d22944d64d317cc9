"""What a path on this machine names, and the options behind it: ``FOLDER?watch=1``, ``VIDEO?loop=1``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

from pipeline.errors import SourceError, did_you_mean
from stream.paths import kind_of, refuse_missing, shown

if TYPE_CHECKING:
    from stream.image_file import ImageReader

OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "watch": ("0", "1", "all"),
    "loop": ("0", "1"),
    "bits": ("8", "10", "12", "14", "16"),
}
"""What may stand behind a path, and its values. ``watch``: a folder's new pictures, or all; ``loop``: a video begins
anew; ``bits``: of the 16 of a deep picture, those in use."""

_TAIL: Final = re.compile(r"[a-z_]+=[^&?/=]*(?:&[a-z_]+=[^&?/=]*)*")
_VIDEO_BRANDS: Final = (b"avis", b"msf1", b"hevc", b"hevx")
_STILL_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")

Form = Literal["images", "video"]


def split_options(uri: str) -> tuple[str, dict[str, str]]:
    """Return a path, and the options behind it. A path that exists with a ``?`` in its name has none.

    Raises:
        SourceError: an option that is not known, or a value that is not.
    """
    path, mark, tail = uri.rpartition("?")
    if not mark or not path or not _TAIL.fullmatch(tail) or kind_of(uri) != "nothing":
        return uri, {}
    told = dict(part.split("=") for part in tail.split("&"))
    unknown = next((name for name in told if name not in OPTIONS), None)
    if unknown is not None:
        if kind_of(path) == "nothing" and not any(name in OPTIONS for name in told):
            return uri, {}
        raise SourceError(
            f"{shown(uri)}: no option is called {unknown!r}.{did_you_mean(unknown, OPTIONS)} "
            f"Known: {', '.join(OPTIONS)}"
        )
    for name, value in told.items():
        if value not in OPTIONS[name]:
            raise SourceError(f"{shown(uri)}: {name}={value!r}: choose {', '.join(OPTIONS[name])}")
    return path, {name: value for name, value in told.items() if value != "0"}


def expanded(path: str) -> str:
    """Return ``path`` with the home folder for ``~``, where there is one."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path's raises where a user has no home


def form_of(path: str, suffixes: frozenset[str], *, examples: str) -> Form:
    """Return how what ``path`` names is read: as still pictures, or as a video.

    Raises:
        SourceError: there is nothing, or the system refuses.
    """
    from stream.images import is_pattern

    kind = kind_of(path)
    if kind == "folder" or (kind == "nothing" and is_pattern(path)):
        return "images"
    refuse_missing(path, examples=examples)
    brand = _brand(path) if kind == "file" else b""
    if brand in _VIDEO_BRANDS:  # pictures that move, whatever the suffix
        return "video"
    is_still = os.path.splitext(path)[1].lower() in suffixes or brand in _STILL_BRANDS  # noqa: PTH122
    return "images" if is_still else "video"


def _brand(path: str) -> bytes:
    """Return the major brand of an ISO media file: FFmpeg reads one tile of a still picture, and says nothing."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(12)
    except OSError:
        return b""
    return head[8:12] if head[4:8] == b"ftyp" else b""


def check_options(uri: str, options: Mapping[str, str], allowed: tuple[str, ...], what: str) -> None:
    """Raise ``SourceError`` where an option does not belong to ``what``."""
    wrong = next((name for name in options if name not in allowed), None)
    if wrong is not None:
        known = f"{' and '.join(allowed)} do" if allowed else "none does"
        raise SourceError(f"{shown(uri)}: {wrong} does not belong to {what}; {known}")


def image_reader(options: Mapping[str, str], max_pixels: int) -> ImageReader:
    """Return what reads the pictures of one source."""
    from stream.image_file import ImageReader

    return ImageReader(max_pixels=max_pixels, bits=int(options["bits"]) if "bits" in options else None)


def camera_of(path: str) -> str:
    """Return the name of a camera that is called by its path."""
    name = os.path.basename(path.rstrip("/"))  # noqa: PTH119
    if kind_of(path) == "folder":
        return name or os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119
    stem = os.path.splitext(name)[0].strip("*?[]")  # noqa: PTH122
    return stem or os.path.basename(os.path.dirname(path))  # noqa: PTH119, PTH120

"""Parses the addresses of local paths and cameras, with options: ``FOLDER?watch=1``."""

from __future__ import annotations

import os
from typing import Final, Literal
from urllib.parse import unquote

from pipeline.kinds import split_query
from stream.bags.paths import with_quoted_topic
from stream.paths import kind_of, refuse_missing

_VIDEO_BRANDS: Final = (b"avis", b"msf1", b"hevc", b"hevx")
_STILL_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")

Form = Literal["images", "video"]


def split_options(uri: str) -> tuple[str, dict[str, str]]:
    """Split ``uri`` into path and options; an existing path that contains ``?`` is not split.

    Raises:
        ValueError: an option is repeated.
    """
    if "?" in uri and kind_of(uri) != "missing":
        return uri, {}
    return split_query(with_quoted_topic(uri), lambda path: kind_of(path) != "missing")


def split_features(uri: str) -> tuple[str, dict[str, str]]:
    """Split the URI of a GenICam camera; option names with a capital letter are camera features."""
    address, _, tail = uri.partition("?")
    options = dict(part.partition("=")[::2] for part in tail.split("&") if part)
    features = {name: value for name, value in options.items() if name[:1].isupper()}
    others = {name: unquote(value) for name, value in options.items() if name not in features}
    joined = "&".join(f"{name}={unquote(value)}" for name, value in features.items())
    return address, others | ({"features": joined} if joined else {})


def expanded(path: str) -> str:
    """Replace ``~`` in ``path`` by the user's home folder, if there is one."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises an error for users without a home


def form_of(path: str, suffixes: frozenset[str], *, examples: str) -> Form:
    """Return whether ``path`` is read as still images or as a video.

    Raises:
        SourceError: the path does not exist, or the system refuses access.
    """
    from stream.images import is_pattern

    kind = kind_of(path)
    if kind == "folder" or (kind == "missing" and is_pattern(path)):
        return "images"
    refuse_missing(path, examples=examples)
    brand = _brand(path) if kind == "file" else b""
    if brand in _VIDEO_BRANDS:  # an image sequence, whatever its suffix
        return "video"
    is_still = os.path.splitext(path)[1].lower() in suffixes or brand in _STILL_BRANDS  # noqa: PTH122
    return "images" if is_still else "video"


def _brand(path: str) -> bytes:
    """Read the major brand of an ISO media file; empty for other files."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(12)
    except OSError:
        return b""
    return head[8:12] if head[4:8] == b"ftyp" else b""


def camera_of(path: str) -> str:
    """Return the default camera name for a path."""
    name = os.path.basename(path.rstrip("/"))  # noqa: PTH119
    if kind_of(path) == "folder":
        return name or os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119
    stem = os.path.splitext(name)[0].strip("*?[]")  # noqa: PTH122
    return stem or os.path.basename(os.path.dirname(path))  # noqa: PTH119, PTH120

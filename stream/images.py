"""The source of image files: one file, a folder, a glob or numbered names."""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.ports import Health, Source
from stream.image_file import ImageReader, read_image
from stream.paths import kind_of, refusal, shown

__all__ = ["ImagesSource", "found_images", "read_image"]

log = logging.getLogger(__name__)

_NUMBERED: Final = re.compile(r"%(?:0(\d{1,2}))?d")
"""The number in a file name pattern, as in printf and FFmpeg: ``%d``, ``%04d``."""
_MAX_LISTED: Final = 6


class ImagesSource(Source):
    """The frames of image files; corrupt files are skipped and counted.

    The time of an image is its index in the list divided by ``images_per_second``.
    """

    def __init__(
        self,
        pattern: str,
        *,
        suffixes: frozenset[str],
        camera: str,
        images_per_second: float = 1.0,
        reader: ImageReader | None = None,
    ) -> None:
        if images_per_second <= 0:
            message = f"images_per_second={images_per_second}: must be above 0; for example 1"
            raise SourceError(message)
        self.camera = camera
        self.uri = shown(pattern)
        self.rate = images_per_second
        self._pattern = pattern
        self._suffixes = suffixes
        self._reader = reader or ImageReader()
        self._paths: list[str] = []

    def __enter__(self) -> Self:
        self._paths = _list_images(self._pattern, self._suffixes)
        if len(self._paths) == 1:
            self._reader.read(self._paths[0])
        self.frames_total = len(self._paths)
        return self

    def __exit__(self, *_: object) -> None:
        self._paths = []

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield every image that can be decoded; raises ``SourceError`` if there is none."""
        assert self.rate is not None  # noqa: S101 - set in __init__
        self.health = Health("live")
        folder = folder_of(self._pattern)
        index = 0
        for position, path in enumerate(self._paths):
            if stop.is_set():
                return
            try:
                image = self._reader.read(path)
            except SourceError as error:
                log.warning("skipped: %s", error)
                self.health = Health("live", str(error), corrupt=self.health.corrupt + 1)
                continue
            name = name_below(path, folder)
            yield Frame(image, self.camera, index, time.monotonic(), position / self.rate, source_name=name)
            index += 1
        if index == 0:
            message = (
                f"{self.uri}: none of its {len(self._paths)} images can be decoded; last error: {self.health.reason}"
            )
            self.health = Health("failed", message, corrupt=self.health.corrupt)
            raise SourceError(message)
        self.health = Health("ended", self.health.reason, corrupt=self.health.corrupt)


def found_images(pattern: str, suffixes: frozenset[str]) -> list[Path]:
    """Return the sorted paths of the images that ``pattern`` matches.

    ``pattern`` is a file, a folder, a glob or a numbered name. Logs how many files with other suffixes are skipped.

    Raises:
        SourceError: there is no image, or the system refuses access.
    """
    return [Path(path) for path in _list_images(pattern, suffixes)]


def _list_images(pattern: str, suffixes: frozenset[str]) -> list[str]:
    kind = kind_of(pattern)
    if kind == "file":
        return [pattern]
    if kind not in {"folder", "missing"}:
        raise SourceError(f"{shown(pattern)}: is a {kind}, not a file or folder; use image files")
    if kind == "missing" and not is_pattern(pattern):
        raise SourceError(f"{shown(pattern)}: no such file or folder; check the path")
    paths, skipped = list[str](), Counter[str]()
    for path in files_of(pattern):
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a million paths
        if suffix in suffixes:
            paths.append(path)
        elif not os.path.basename(path).startswith("."):  # noqa: PTH119
            skipped[suffix or "none"] += 1
    if not paths:
        raise SourceError(_no_images_message(pattern, suffixes, is_folder=kind == "folder"))
    if skipped:
        listed = ", ".join(f"{shown(suffix)} ({count})" for suffix, count in skipped.most_common(_MAX_LISTED))
        more = ", ..." if len(skipped) > _MAX_LISTED else ""
        total = skipped.total()
        files = "1 file" if total == 1 else f"{total} files"
        log.warning("%s: %s skipped because of the suffix: %s%s", shown(pattern), files, listed, more)
    return sorted(sorted(paths), key=natural)


def _no_images_message(pattern: str, suffixes: frozenset[str], *, is_folder: bool) -> str:
    hint = "check the path"
    if is_folder:
        below = (os.path.splitext(name)[1].lower() for _, _, names in os.walk(pattern) for name in names)  # noqa: PTH122
        if any(suffix in suffixes for suffix in below):
            hint = f"its subfolders contain images: use '{shown(pattern)}/**/*'"
    return f"{shown(pattern)}: contains no image with a suffix of {', '.join(sorted(suffixes))}; {hint}"


def is_pattern(path: str) -> bool:
    """Return whether ``path`` is a glob or a numbered name (``part_%04d.png``)."""
    return glob.has_magic(path) or _NUMBERED.search(path) is not None


def files_of(pattern: str) -> Iterator[str]:
    """Yield the files in a folder, or the files that match a pattern, in any order.

    Brackets in the name of an existing folder are literal; only brackets after it are part of the glob.

    Raises:
        SourceError: the folder cannot be read.
    """
    if kind_of(pattern) == "folder":
        try:
            with os.scandir(pattern) as entries:
                yield from (entry.path for entry in entries if _is_file(entry))
        except OSError as reason:
            raise SourceError(refusal(pattern, reason)) from None
        return
    folder = folder_of(pattern)
    if folder and not os.access(folder, os.R_OK | os.X_OK):  # a glob would match nothing, without an error
        raise SourceError(refusal(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))
    rest = pattern[len(folder) :].lstrip("/") if folder else pattern
    numbered = _NUMBERED.search(rest)
    name_pattern = _numbered_name(rest) if numbered and not glob.has_magic(rest) else None
    names: Iterable[str] = glob.iglob(  # noqa: PTH207 - paths as text: possibly a million
        _NUMBERED.sub("*", rest) if name_pattern else rest, root_dir=folder or None, recursive=True
    )
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118
        if (name_pattern is None or name_pattern.fullmatch(name)) and os.path.isfile(path):  # noqa: PTH113
            yield path


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a circular link, or one into a folder without permission
        return False


def _numbered_name(name: str) -> re.Pattern[str]:
    """Return a regular expression for the file names that printf creates from ``name``."""
    parts, end = [], 0
    for match in _NUMBERED.finditer(name):
        parts += [re.escape(name[end : match.start()]), rf"\d{{{int(match[1] or 1)},}}"]
        end = match.end()
    return re.compile("".join(parts) + re.escape(name[end:]))


def folder_of(pattern: str) -> str:
    """Return the deepest existing folder in the path ``pattern``."""
    if kind_of(pattern) == "folder":
        return pattern
    folder = os.path.dirname(pattern)  # noqa: PTH120
    while folder and kind_of(folder) != "folder":
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def name_below(path: str, folder: str) -> str:
    """Return ``path`` relative to ``folder``, as printable text."""
    return shown(os.path.relpath(path, folder or "."))


def natural(path: str) -> str:
    """Return a sort key for natural order: 2 before 10."""
    return re.sub(r"\d+", lambda match: chr(len(match[0].lstrip("0"))) + match[0].lstrip("0"), path.casefold())

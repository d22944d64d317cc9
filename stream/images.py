"""A folder, a glob, numbered names or one picture: photos as frames, in the order a person would sort them."""

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
from types import TracebackType
from typing import Final, Self

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.ports import Health
from stream.image_file import ImageReader, read_image
from stream.paths import kind_of, refusal, shown

__all__ = ["ImagesSource", "found_images", "read_image"]

log = logging.getLogger(__name__)

_NUMBERED: Final = re.compile(r"%(?:0(\d{1,2}))?d")
"""How printf, and with it FFmpeg, writes a number in a name: ``%d``, ``%04d``."""
_MAX_NAMED: Final = 6


class ImagesSource:
    """Frames of photos. One named picture must decode; of many, the broken ones are left out and counted.

    Times follow an assumed rate: a picture's place in the list over ``images_per_second``.
    """

    live = False

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
            message = f"images_per_second={images_per_second}: must be above 0; 1 shows one picture a second"
            raise SourceError(message)
        self.camera = camera
        self.uri = shown(pattern)
        self.frames_total: int | None = None
        self.rate: float | None = images_per_second
        self._pattern = pattern
        self._suffixes = suffixes
        self._reader = reader or ImageReader()
        self._paths: list[str] = []
        self._health = Health()

    @property
    def health(self) -> Health:
        """How it does right now; ``corrupt`` counts pictures that did not decode."""
        return self._health

    def __enter__(self) -> Self:
        self._paths = _found(self._pattern, self._suffixes)
        if len(self._paths) == 1:
            self._reader.read(self._paths[0])
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
        folder = folder_of(self._pattern)
        index = 0
        for place, path in enumerate(self._paths):
            if stop.is_set():
                return
            try:
                image = self._reader.read(path)
            except SourceError as error:
                log.warning("left out: %s", error)
                self._health = Health("live", str(error), corrupt=self._health.corrupt + 1)
                continue
            name = name_below(path, folder)
            yield Frame(image, self.camera, index, time.monotonic(), place / self.rate, source_name=name)
            index += 1
        if index == 0:
            message = f"{self.uri}: none of its {len(self._paths)} pictures decodes; the last: {self._health.reason}"
            self._health = Health("failed", message, corrupt=self._health.corrupt)
            raise SourceError(message)
        self._health = Health("ended", self._health.reason, corrupt=self._health.corrupt)


def found_images(pattern: str, suffixes: frozenset[str]) -> list[Path]:
    """Return the pictures that a path, folder, glob or numbered name names, in natural order.

    Files that are left out for their suffix are counted and named in the log.

    Raises:
        SourceError: there is none, or the system refuses.
    """
    return [Path(path) for path in _found(pattern, suffixes)]


def _found(pattern: str, suffixes: frozenset[str]) -> list[str]:
    kind = kind_of(pattern)
    if kind == "file":
        return [pattern]
    if kind not in {"folder", "nothing"}:
        raise SourceError(f"{shown(pattern)}: is a {kind}, no file or folder; give pictures")
    if kind == "nothing" and not is_pattern(pattern):
        raise SourceError(f"{shown(pattern)}: there is no such file or folder")
    taken, others = list[str](), Counter[str]()
    for path in files_of(pattern):
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a million paths
        if suffix in suffixes:
            taken.append(path)
        elif not os.path.basename(path).startswith("."):  # noqa: PTH119
            others[suffix or "none"] += 1
    if not taken:
        raise SourceError(_nothing_found(pattern, suffixes, is_folder=kind == "folder"))
    if others:
        named = ", ".join(f"{shown(suffix)} ({times})" for suffix, times in others.most_common(_MAX_NAMED))
        more = ", ..." if len(others) > _MAX_NAMED else ""
        count = others.total()
        files = "1 file" if count == 1 else f"{count} files"
        log.warning("%s: %s left out for the suffix: %s%s", shown(pattern), files, named, more)
    return sorted(sorted(taken), key=natural)


def _nothing_found(pattern: str, suffixes: frozenset[str], *, is_folder: bool) -> str:
    hint = "check the path"
    if is_folder:
        below = (os.path.splitext(name)[1].lower() for _, _, names in os.walk(pattern) for name in names)  # noqa: PTH122
        if any(suffix in suffixes for suffix in below):
            hint = f"the folders in it do: give '{shown(pattern)}/**/*'"
    return f"{shown(pattern)}: holds no picture with a suffix of {', '.join(sorted(suffixes))}; {hint}"


def is_pattern(path: str) -> bool:
    """Say whether ``path`` stands for several files: a glob, or a numbered name (``part_%04d.png``)."""
    return glob.has_magic(path) or _NUMBERED.search(path) is not None


def files_of(pattern: str) -> Iterator[str]:
    """Give the paths of the files in a folder, or of those that a glob or numbered name matches, in any order.

    Brackets in the names of folders that exist are letters; those behind them are a glob's.

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
    if folder and not os.access(folder, os.R_OK | os.X_OK):  # a glob would find nothing there, and not say why
        raise SourceError(refusal(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))
    rest = pattern[len(folder) :].lstrip("/") if folder else pattern
    numbered = _NUMBERED.search(rest)
    wanted = _numbered_name(rest) if numbered and not glob.has_magic(rest) else None
    matched: Iterable[str] = glob.iglob(  # noqa: PTH207 - paths as text: there may be a million
        _NUMBERED.sub("*", rest) if wanted else rest, root_dir=folder or None, recursive=True
    )
    for name in matched:
        path = os.path.join(folder, name)  # noqa: PTH118
        if (wanted is None or wanted.fullmatch(name)) and os.path.isfile(path):  # noqa: PTH113
            yield path


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads round in a circle, or where one may not go
        return False


def _numbered_name(name: str) -> re.Pattern[str]:
    """Return what matches the names that printf makes of ``name``."""
    parts, at = [], 0
    for found in _NUMBERED.finditer(name):
        parts += [re.escape(name[at : found.start()]), rf"\d{{{int(found[1] or 1)},}}"]
        at = found.end()
    return re.compile("".join(parts) + re.escape(name[at:]))


def folder_of(pattern: str) -> str:
    """Return the folder that names are told from: ``pattern`` itself, or as much of it as exists as it stands."""
    if kind_of(pattern) == "folder":
        return pattern
    folder = os.path.dirname(pattern)  # noqa: PTH120
    while folder and kind_of(folder) != "folder":
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def name_below(path: str, folder: str) -> str:
    """Return ``path`` as seen from ``folder``, as text that any log takes."""
    return shown(os.path.relpath(path, folder or "."))


def natural(path: str) -> str:
    """Return what sorts 2 before 10: each number in the name behind its count of digits."""
    return re.sub(r"\d+", lambda found: chr(len(found[0].lstrip("0"))) + found[0].lstrip("0"), path.casefold())

"""Files of an archive, and their division into shards. Reads no contents."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from commands.annotations import read_paths
from pipeline.atomic import TEMPORARY
from pipeline.errors import ConfigError

VIDEO_SUFFIXES: Final = frozenset({".ts", ".m2ts", ".mts", ".flv", ".h264", ".h265"})
"""Suffixes of recordings besides those that a web address may have."""


@dataclass(frozen=True, slots=True, order=True)
class ArchiveFile:
    """A photo or a video."""

    path: str
    """Absolute; links in its folder are resolved, a link in its place is not."""
    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, Unix nanoseconds."""
    is_video: bool


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of an archive: some photos, or one video. Its result is one file."""

    name: str
    """By its files and the settings: equal parts have equal names."""
    files: tuple[ArchiveFile, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The files of the inputs."""

    files: tuple[ArchiveFile, ...]
    """Each once, sorted by path."""
    others: Counter[str]
    """Numbers of files in folders that are neither photos nor videos, by suffix."""
    not_entered: tuple[str, ...] = ()
    """Folders below the inputs that are links, or that the system refuses, each with the reason."""


def find_files(inputs: Sequence[str]) -> Found:
    """Return the photos and videos of files, folders (with all below), globs and lists.

    Args:
        inputs: paths; a ``.txt`` file lists one path a line.

    Raises:
        ConfigError: there is nothing at a path, or a named file is neither.
    """
    paths: dict[str, bool] = {}
    others: Counter[str] = Counter()
    not_entered: list[str] = []
    resolved = functools.cache(Path.resolve)  # links and ``..`` must not give a file two names
    for location in inputs:
        for path, is_named in _expanded(location, not_entered):
            kind = _kind(path)
            if kind is not None:
                paths.setdefault(str(resolved(path.parent) / path.name), kind == "video")
            elif is_named:
                raise ConfigError(f"{path}: has no suffix of a photo or a video; convert it, or rename it")
            else:
                others[path.suffix.lower()] += 1
    if not paths:
        raise ConfigError(f"{', '.join(inputs)}: holds no photos and no videos; name a folder that does")
    return Found(tuple(sorted(_described(paths))), others, tuple(dict.fromkeys(not_entered)))


def _expanded(location: str, not_entered: list[str]) -> Iterator[tuple[Path, bool]]:
    """Yield the files of an input, and whether the user named each; add folders that are left out to a list."""
    path = Path(location)
    if path.is_dir():
        yield from ((file, False) for file in _walked(path, not_entered))
    elif path.suffix.lower() == ".txt" and path.is_file():
        for listed in read_paths(path):
            if not listed.is_file():
                raise ConfigError(f"{location}: lists {listed}, which is not there; correct the list")
            yield listed, True
    elif path.is_file():
        yield path, True
    else:
        matches = sorted(glob.glob(location, recursive=True)) if glob.has_magic(location) else []  # noqa: PTH207
        if not matches:
            raise ConfigError(f"{location}: there is no such file or folder, and no file matches it; check the path")
        for match in matches:
            yield from _expanded(match, not_entered) if Path(match).is_dir() else ((Path(match), False),)


def _walked(top: Path, not_entered: list[str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        not_entered.append(f"{error.filename}: {error.strerror}")

    for folder, below, names in os.walk(top, onerror=refused):
        below[:] = [name for name in below if not (name.startswith(".") and name.endswith(TEMPORARY))]
        not_entered += [f"{path}: is a link" for name in below if (path := Path(folder, name)).is_symlink()]
        yield from (Path(folder, name) for name in names)


def _kind(path: Path) -> str | None:
    from stream.http_uri import RECORDING_SUFFIXES
    from stream.sources import IMAGE_SUFFIXES

    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "photo"
    return "video" if suffix in RECORDING_SUFFIXES | VIDEO_SUFFIXES else None


def _described(paths: dict[str, bool]) -> Iterator[ArchiveFile]:
    for path, is_video in paths.items():
        try:
            status = Path(path).stat()
        except OSError:  # a link to nothing, or deleted meanwhile: a row with the reason, when it is read
            yield ArchiveFile(path, 0, 0, is_video)
        else:
            yield ArchiveFile(path, status.st_size, status.st_mtime_ns, is_video)


def shards_of(files: Iterable[ArchiveFile], settings: str, photos: int) -> list[Shard]:
    """Return shards of at most ``photos`` photos, and one for each video.

    Args:
        files: in the order of the shards.
        settings: all that an explanation depends on besides its file.
        photos: number of photos of a shard.
    """
    files = list(files)
    stills = [file for file in files if not file.is_video]
    parts = [tuple(stills[first : first + photos]) for first in range(0, len(stills), photos)]
    parts += [(file,) for file in files if file.is_video]
    return [Shard(_name(part, settings), part) for part in parts]


def _name(files: Sequence[ArchiveFile], settings: str) -> str:
    text = json.dumps([settings, [asdict(file) for file in files]])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def divided(files: Sequence[ArchiveFile], done: Collection[ArchiveFile]) -> tuple[list[ArchiveFile], list[ArchiveFile]]:
    """Return the files that are not explained yet, and those that have changed since they were."""
    explained = {file.path: file for file in done}
    waiting = [file for file in files if file.path not in explained]
    changed = [file for file in files if file.path in explained and explained[file.path] != file]
    return waiting, changed

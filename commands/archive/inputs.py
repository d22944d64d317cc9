"""Finds the files of an archive and groups them into shards, without reading their content."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from commands.archive.stores import Listed, found_at, is_address, local_path
from commands.console import read_text_file
from commands.dataset_csv import path_beside
from pipeline.atomic import TEMPORARY
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from stream.file_part import VideoPart

VIDEO_SUFFIXES: Final = frozenset({".ts", ".m2ts", ".mts", ".flv", ".h264", ".h265"})
"""Suffixes of video files, in addition to ``RECORDING_SUFFIXES``."""

NOT_ENTERED_REMEDY: Final = "give linked folders as separate inputs, and this user permission to read other folders"


@dataclass(frozen=True, slots=True, order=True)
class ArchiveFile:
    """A photo or a video."""

    path: str
    """Absolute path with resolved folders, or an address. A file that is itself a symbolic link is not resolved."""
    size: int
    """Size in bytes."""
    modified_ns: int
    """Time of the last change in Unix nanoseconds."""
    is_video: bool


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: some photos, one video, or a part of a video. Its result is one partition."""

    name: str
    """A hash of the files, the settings and the part; 24 hexadecimal digits."""
    files: tuple[ArchiveFile, ...]
    part: VideoPart | None = None
    """The part of the video; None for whole files."""
    is_dividable: bool = False
    """Whether a worker may divide the video into parts."""


@dataclass(frozen=True, slots=True)
class Found:
    """The files that were found in the inputs."""

    files: tuple[ArchiveFile, ...]
    """Photos and videos, sorted by path, without duplicates."""
    others: Counter[str]
    """Number of other files in the folders, by suffix."""
    not_entered: tuple[str, ...] = ()
    """Skipped folders, each with the reason: a symbolic link, or an error of the system."""


def find_files(inputs: Sequence[str]) -> Found:
    """Return the photos and videos of the inputs: files, folders (recursively), globs and lists.

    Args:
        inputs: paths and addresses. ``@FILE`` and ``.txt`` files are lists with one path or address per line.

    Raises:
        ConfigError: an input does not exist, a named file is neither a photo nor a video, or nothing was found.
    """
    paths: dict[str, tuple[bool, Listed | None]] = {}
    others: Counter[str] = Counter()
    not_entered: list[str] = []
    resolved = functools.cache(Path.resolve)  # a file must not get two names by links or ``..``
    for location in inputs:
        for path, is_named in _expanded(location, not_entered):
            stored = path if isinstance(path, Listed) else None
            name = path.address if isinstance(path, Listed) else str(path)
            kind = _kind(name)
            if kind is not None:
                name = str(resolved(path.parent) / path.name) if isinstance(path, Path) else name
                paths.setdefault(name, (kind == "video", stored))
            elif is_named:
                raise ConfigError(f"{name}: has no suffix of a photo or a video; convert it, or rename it")
            else:
                others[PurePath(name).suffix.lower()] += 1
    if not paths and not_entered:
        raise ConfigError(
            f"{', '.join(inputs)}: no photos and no videos were found, and {len(not_entered)} folders were left out, "
            f"such as {not_entered[0]}; {NOT_ENTERED_REMEDY}"
        )
    if not paths:
        raise ConfigError(f"{', '.join(inputs)}: holds no photos and no videos; name a folder that does")
    return Found(tuple(sorted(_described(paths))), others, tuple(dict.fromkeys(not_entered)))


def _expanded(location: str, not_entered: list[str]) -> Iterator[tuple[Path | Listed, bool]]:
    """Yield each file of an input and whether the user named it; append skipped folders to ``not_entered``."""
    location = local_path(location)
    path = Path(location)
    if path.is_dir():
        yield from ((file, False) for file in _walked(path, not_entered))
    elif location.startswith("@") and not path.exists():
        yield from _of_list(Path(location[1:]), not_entered)
    elif path.suffix.lower() == ".txt" and path.is_file():
        yield from _of_list(path, not_entered)
    elif is_address(location):
        yield from found_at(location)
    elif path.is_file():
        yield path, True
    else:
        matches = sorted(glob.glob(location, recursive=True)) if glob.has_magic(location) else []  # noqa: PTH207
        if not matches:
            raise ConfigError(f"{location}: there is no such file or folder, and no file matches it; check the path")
        for match in matches:
            yield from _expanded(match, not_entered) if Path(match).is_dir() else ((Path(match), False),)


def _of_list(path: Path, not_entered: list[str]) -> Iterator[tuple[Path | Listed, bool]]:
    lines = [(number, line.strip()) for number, line in enumerate(read_text_file(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: lists no files; write one path or address per line")
    for number, line in lines:
        if is_address(line):
            yield from _expanded(line, not_entered)
            continue
        listed = path_beside(path, number, line)
        if not listed.is_file():
            raise ConfigError(f"{path}: lists {listed}, which does not exist; correct the list")
        yield listed, True


def _walked(top: Path, not_entered: list[str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        not_entered.append(f"{error.filename}: {error.strerror}")

    for folder, below, names in os.walk(top, onerror=refused):
        below[:] = [name for name in below if not (name.startswith(".") and name.endswith(TEMPORARY))]
        not_entered += [f"{path}: is a link" for name in below if (path := Path(folder, name)).is_symlink()]
        yield from (Path(folder, name) for name in names)


def _kind(name: str) -> str | None:
    from stream.http_uri import RECORDING_SUFFIXES
    from stream.sources import IMAGE_SUFFIXES

    suffix = PurePath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "photo"
    return "video" if suffix in RECORDING_SUFFIXES | VIDEO_SUFFIXES else None


def _described(paths: dict[str, tuple[bool, Listed | None]]) -> Iterator[ArchiveFile]:
    for path, (is_video, stored) in paths.items():
        if stored is not None:
            yield ArchiveFile(path, stored.size, stored.modified_ns, is_video)
            continue
        try:
            status = Path(path).stat()
        except OSError:  # a broken link, or a deleted file: reading it later writes a row with the reason
            yield ArchiveFile(path, 0, 0, is_video)
        else:
            yield ArchiveFile(path, status.st_size, status.st_mtime_ns, is_video)


def shards_of(files: Iterable[ArchiveFile], settings: str, photos: int) -> list[Shard]:
    """Return shards of at most ``photos`` photos, and one dividable shard for each video.

    Args:
        files: the files, in the order of the shards.
        settings: text of all settings that change an explanation.
        photos: maximum number of photos per shard.
    """
    files = list(files)
    stills = [file for file in files if not file.is_video]
    parts = [tuple(stills[first : first + photos]) for first in range(0, len(stills), photos)]
    parts += [(file,) for file in files if file.is_video]
    return [Shard(_name(part, settings), part, is_dividable=part[0].is_video) for part in parts]


def shards_of_video(file: ArchiveFile, settings: str, parts: Sequence[VideoPart]) -> list[Shard]:
    """Return one shard for each part of a video.

    Args:
        file: the video.
        settings: text of all settings that change an explanation.
        parts: the parts, in order.
    """
    return [Shard(_name((file,), settings, part), (file,), part) for part in parts]


def _name(files: Sequence[ArchiveFile], settings: str, part: VideoPart | None = None) -> str:
    text = json.dumps([settings, [asdict(file) for file in files], *([asdict(part)] if part else [])])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def divided(files: Sequence[ArchiveFile], done: Collection[ArchiveFile]) -> tuple[list[ArchiveFile], list[ArchiveFile]]:
    """Return the files that are not explained yet, and the files that changed after they were explained.

    Args:
        files: the files of the inputs.
        done: the explained files, with their former size and time of change.
    """
    explained = {file.path: file for file in done}
    waiting = [file for file in files if file.path not in explained]
    changed = [file for file in files if file.path in explained and explained[file.path] != file]
    return waiting, changed

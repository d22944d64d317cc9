"""Output paths: checks before a run begins, and the names of files per camera and per run."""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

from overlays.sinks.settings import STILLS
from pipeline.errors import ConfigError, SinkError
from pipeline.kinds import split_query

VIDEO_SUFFIXES: Final = frozenset({".mp4", ".mkv"})
"""Suffixes of the sinks that write a video file per camera."""
OWN_FILES: Final = VIDEO_SUFFIXES | {".jsonl", ".parquet", ".mcap", ".sqlite"}
"""Suffixes of the sinks that write a single file."""
_MAX_NAME_BYTES: Final = 100
_MAX_FILE_NAME_BYTES: Final = 255
_HINTS: Final = {
    errno.ENAMETOOLONG: "a name has at most 255 bytes; choose a shorter one",
    errno.ENOSPC: "free some space",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ELOOP: "its symbolic links form a loop; name the file itself",
}


@contextmanager
def path_errors(path: Path | str) -> Iterator[None]:
    """Convert errors of the operating system about a path to a ``SinkError`` with the remedy.

    Raises:
        SinkError: the block raised an ``OSError``, or a ``ValueError`` because of an invalid path.
    """
    if "\0" in str(path):
        raise SinkError(f"{str(path)!r}: is not a path (it holds a null character); choose another name")
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "choose another path or change its permissions")
        raise SinkError(f"{path}: cannot be written ({error.strerror or error}); {hint}") from error
    except (ValueError, RuntimeError) as error:  # pathlib raises RuntimeError for a loop of symbolic links
        raise SinkError(f"{str(path)!r}: is not a path ({error}); choose another name") from None


def no_folder(subject: Path | str, folder: Path) -> SinkError:
    """Return the error for an output whose folder is missing, or below a file.

    Args:
        subject: the path or URI of the output.
        folder: the folder.
    """
    file = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    if file.exists() and not file.is_dir():
        return SinkError(f"{subject}: {file} is a file, not a folder; choose another path")
    return SinkError(f"{subject}: the folder {folder} does not exist; create it: mkdir -p {folder}")


def check_writable(path: Path) -> None:
    """Check that a file can be written at ``path``; an existing file is not changed.

    Raises:
        SinkError: the path is a folder, its folder does not exist, or it is not writable.
    """
    with path_errors(path):
        if path.is_dir():
            raise SinkError(
                f"{path}: is a folder; name a file in it, such as {path / ('out' + (path.suffix or '.mp4'))}"
            )
        if not path.parent.is_dir():
            raise no_folder(path, path.parent)
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()


def check_outputs(uris: Sequence[str], cameras: Sequence[str], inputs: Sequence[str], bags: Sequence[str] = ()) -> None:
    """Check that no two outputs are the same file, even by different paths, and that no output is an input.

    Args:
        uris: the addresses of the sinks.
        cameras: the expected cameras, because a recorder writes one file per camera.
        inputs: the paths that the run reads.
        bags: the bag folders among ``inputs``; every file in a bag folder belongs to the bag.

    Raises:
        ConfigError: an output is not allowed; the message names the sink.
    """
    written: list[Path] = []
    for uri in uris:
        path = Path(split_query(uri)[0].removeprefix(STILLS))
        outputs = [path, *(paths_for(path, cameras).values() if path.suffix else ())]
        if any(same_place(output, Path(source)) for output in outputs for source in inputs):
            raise ConfigError(f"sink {uri!r} would overwrite an input of this run; choose another file")
        folders = [*bags, *(inputs if uri.startswith(STILLS) else ())]
        if any(_is_inside(path, Path(folder)) for folder in folders):
            raise ConfigError(
                f"sink {uri!r} is in a folder that this run reads, so the run would read its own output; choose "
                "another folder"
            )
        if any(same_place(path, other) for other in written):
            raise ConfigError(f"sink {uri!r} is given twice; give each sink its own address or file")
        written.append(path)


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder, after symbolic links are resolved."""
    try:
        return folder.is_dir() and folder.resolve() in path.resolve().parents
    except (OSError, ValueError, RuntimeError):
        return False


def same_place(first: Path, second: Path) -> bool:
    """Return whether two paths lead to the same file."""
    try:
        return first.resolve() == second.resolve() or first.samefile(second)
    except (OSError, ValueError, RuntimeError):
        return False


def is_same_file(path: Path, file: FileIO) -> bool:
    """Return whether ``path`` still leads to the open file; another program may have moved or deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown: the next write shows it


def paths_for(path: Path, cameras: Sequence[str]) -> dict[str, Path]:
    """Return the file of each camera: ``path`` for one camera, ``out.<camera>.mp4`` for several."""
    if len(cameras) == 1:
        return {cameras[0]: path}
    paths: dict[str, Path] = {}
    for camera in cameras:
        paths[camera] = camera_path(path, camera, paths.values())
    return paths


def camera_path(path: Path, camera: str, taken: Collection[Path]) -> Path:
    """Return ``out.<camera>.mp4``, or ``out.<camera>_2.mp4`` if another camera has that file name."""
    name = safe_file_name(camera)
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(p for p in (with_infix(path, n) for n in names) if p not in taken)


def fresh_paths(path: Path, began_at_unix: float) -> Iterator[Path]:
    """Yield candidate paths for a new file, so that files of earlier runs are kept.

    The first is ``path`` itself, such as ``out.mp4``, then names that contain the start time (UTC), then names with the
    time and a number. The caller creates the first path that does not exist.
    """
    yield path
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began_at_unix))
    yield with_infix(path, stamp)
    yield from (with_infix(path, f"{stamp}-{number}") for number in itertools.count(2))


def with_infix(path: Path, infix: str) -> Path:
    """Return ``out.<infix>.mp4``; the stem is shortened to the length that file systems allow."""
    max_stem_bytes = _MAX_FILE_NAME_BYTES - len(os.fsencode(f".{infix}{path.suffix}"))
    stem = os.fsdecode(os.fsencode(path.stem)[:max_stem_bytes])
    return path.with_name(f"{stem}.{infix}{path.suffix}")


def safe_file_name(camera: str) -> str:
    """Return a camera's name for use in file names; unsafe characters are replaced by an underscore.

    The length is limited in bytes, because file systems count bytes (255 for a whole name).
    """
    name = re.sub(r"[^\w.-]+", "_", camera).strip("._").encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    return name or "camera"

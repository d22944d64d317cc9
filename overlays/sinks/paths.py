"""What every sink that writes a file checks before the run begins, so that nothing is half-written when it cannot."""

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

from pipeline.errors import ConfigError, SinkError
from pipeline.kinds import split_query

FILMS: Final = frozenset({".mp4", ".mkv"})
"""Suffixes of sinks that write a film for each camera."""
OWN_FILES: Final = FILMS | {".jsonl", ".parquet"}
"""Suffixes of sinks that write one file of their own."""
_MAX_NAME_BYTES: Final = 100
_MAX_FILE_NAME_BYTES: Final = 255
_HINTS: Final = {
    errno.ENAMETOOLONG: "a name has at most 255 bytes; choose a shorter one",
    errno.ENOSPC: "free some room",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ELOOP: "its links lead in a circle; name the place itself",
}


@contextmanager
def path_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever the system says of a path into one sentence with the remedy.

    Raises:
        SinkError: the block raised an ``OSError``, or a ``ValueError`` of a path that no system takes.
    """
    if "\0" in str(path):
        raise SinkError(f"{str(path)!r}: is no path (it holds a null character); choose another name")
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "choose another place or mend its permissions")
        raise SinkError(f"{path}: cannot be written ({error.strerror or error}); {hint}") from error
    except (ValueError, RuntimeError) as error:  # links that lead in a circle are a RuntimeError to pathlib
        raise SinkError(f"{str(path)!r}: is no path ({error}); choose another name") from None


def check_writable(path: Path) -> None:
    """Make sure that ``path`` can be written, leaving it as it is: an existing file keeps its content until then.

    Raises:
        SinkError: its folder is missing, it is a folder, or it may not be written.
    """
    with path_errors(path):
        if path.is_dir():
            raise SinkError(
                f"{path}: is a folder; name a file in it, such as {path / ('out' + (path.suffix or '.mp4'))}"
            )
        if not path.parent.is_dir():
            raise SinkError(f"{path}: the folder {path.parent} does not exist; create it: mkdir -p {path.parent}")
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()


def check_outputs(uris: Sequence[str], cameras: Sequence[str], inputs: Sequence[str]) -> None:
    """Refuse a sink that is given twice, however it is spelled, and one that would overwrite what is read.

    Args:
        uris: the sinks, as given.
        cameras: who will come: a recorder gives each its own file.
        inputs: what the run reads.

    Raises:
        ConfigError: with the sink's name.
    """
    written: list[Path] = []
    for uri in uris:
        path = Path(split_query(uri)[0])
        each = [path, *(paths_for(path, cameras).values() if path.suffix else ())]
        if any(same_place(one, Path(given)) for one in each for given in inputs):
            raise ConfigError(f"sink {uri!r} would overwrite what this run reads; choose another file")
        if any(same_place(path, other) for other in written):
            raise ConfigError(f"sink {uri!r} is given twice; give each its own address or file")
        written.append(path)


def same_place(one: Path, other: Path) -> bool:
    """Say whether two paths name one file, however they are spelled."""
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, ValueError, RuntimeError):
        return False


def is_same_file(path: Path, file: FileIO) -> bool:
    """Say whether an open file is still the one at ``path``: somebody may have moved or removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody can tell: writing will


def paths_for(path: Path, cameras: Sequence[str]) -> dict[str, Path]:
    """Give each camera a file of its own: the named one for a single camera, ``out.<camera>.mp4`` for several."""
    if len(cameras) == 1:
        return {cameras[0]: path}
    paths: dict[str, Path] = {}
    for camera in cameras:
        paths[camera] = camera_path(path, camera, paths.values())
    return paths


def camera_path(path: Path, camera: str, taken: Collection[Path]) -> Path:
    """Return ``out.<camera>.mp4``, or ``out.<camera>_2.mp4`` where a camera of the same spelling has that."""
    name = safe_file_name(camera)
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(p for p in (with_infix(path, n) for n in names) if p not in taken)


def fresh_paths(path: Path, began_at_unix: float) -> Iterator[Path]:
    """Give names for a file that stands beside those of earlier runs: ``out.mp4``, then with the time (UTC) in it.

    Whoever writes creates the first one that is free; several starts within one second get a number each.
    """
    yield path
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began_at_unix))
    yield with_infix(path, stamp)
    yield from (with_infix(path, f"{stamp}-{number}") for number in itertools.count(2))


def with_infix(path: Path, infix: str) -> Path:
    """Return ``out.<infix>.mp4``, with a stem that is cut where the name would be longer than file systems take."""
    room = _MAX_FILE_NAME_BYTES - len(os.fsencode(f".{infix}{path.suffix}"))
    stem = os.fsdecode(os.fsencode(path.stem)[:room])
    return path.with_name(f"{stem}.{infix}{path.suffix}")


def safe_file_name(camera: str) -> str:
    """Return how a camera is written in names of files: what file systems dislike becomes an underscore.

    They count bytes (255 for a whole name), and a letter may take four.
    """
    name = re.sub(r"[^\w.-]+", "_", camera).strip("._").encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    return name or "camera"

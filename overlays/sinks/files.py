"""What every sink that writes a file checks before the run begins, so that nothing is half-written when it cannot."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from pipeline.errors import ConfigError, SinkError

_OWN_FILES = frozenset({".mp4", ".mkv", ".jsonl", ".parquet"})
"""Suffixes of sinks that write one file of their own."""
_MOST_NAME_BYTES = 100


def check_writable(path: Path) -> None:
    """Make sure that ``path`` can be written, leaving it as it is: an existing file keeps its content until then.

    Raises:
        SinkError: its folder is missing, it is a folder, or it may not be written.
    """
    if path.is_dir():
        raise SinkError(f"{path}: is a folder; name a file in it, such as {path / ('out' + (path.suffix or '.mp4'))}")
    if not path.parent.is_dir():
        raise SinkError(f"{path}: the folder {path.parent} does not exist; create it: mkdir -p {path.parent}")
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise SinkError(
            f"{path}: cannot be written ({reason}); choose another place or mend its permissions"
        ) from error


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
        path = Path(uri)
        each = [path, *(paths_for(path, cameras).values() if path.suffix else ())]
        if any(same_place(one, Path(given)) for one in each for given in inputs):
            raise ConfigError(f"sink {uri!r} would overwrite what this run reads; choose another file")
        if any(same_place(path, other) for other in written):
            raise ConfigError(f"sink {uri!r} is given twice; give each its own address or file")
        written.append(path)


def to_claim(uris: Iterable[str], cameras: Sequence[str]) -> list[Path]:
    """Return what a run's sinks may not share with another run's: files, and each camera's clips in a folder.

    A recorder takes for its own, and removes to keep its budget, whatever is called by its cameras. A device or a pipe
    is nobody's own.
    """
    paths: list[Path] = []
    for uri in uris:
        if "://" not in uri and uri.endswith("/"):
            paths += [Path(uri) / in_file_names(camera) for camera in cameras]
        elif (path := Path(uri)).suffix in _OWN_FILES and (path.is_file() or not path.exists()):
            paths.append(path)
    return list(dict.fromkeys(paths))


@contextmanager
def claimed(paths: Iterable[Path]) -> Iterator[None]:
    """Keep files to this run while the block lasts: two runs that write one file at once leave neither whole.

    The claim is a lock beside none of them, in the system's temporary folder; it ends with the process, however that
    ends. Where there are no such locks (Windows) nothing is claimed.

    Raises:
        SinkError: another run has claimed one of them.
    """
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(_locked(path))
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"recipro-stream-{os.getuid()}"
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        door = (folder / f"{name}.lock").open("wb")
    except OSError:
        yield  # no place for locks: better without than not at all
        return
    with door:
        try:
            fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SinkError(
                f"{path}: is being written by another run; choose another place, or stop that run"
            ) from None
        yield


def same_place(one: Path, other: Path) -> bool:
    """Say whether two paths name one file, however they are spelled."""
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, ValueError, RuntimeError):
        return False


def stands_at(path: Path, file: FileIO) -> bool:
    """Say whether an open file is still the one at ``path``: somebody may have moved or removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody can tell: writing will


def free_path(path: Path, camera: str, taken: Collection[Path]) -> Path:
    """Return ``path`` where nobody has it yet, ``out.<camera>.mp4`` otherwise."""
    return path if not taken else _named_path(path, camera, taken)


def paths_for(path: Path, cameras: Sequence[str]) -> dict[str, Path]:
    """Give each camera a file of its own: the named one for a single camera, ``out.<camera>.mp4`` for several."""
    if len(cameras) <= 1:
        return dict.fromkeys(cameras, path)
    paths: dict[str, Path] = {}
    for camera in cameras:
        paths[camera] = _named_path(path, camera, paths.values())
    return paths


def in_file_names(camera: str) -> str:
    """Return how a camera is written in names of files: what file systems dislike becomes an underscore.

    They count bytes (255 for a whole name), and a letter may take four.
    """
    name = re.sub(r"[^\w.-]+", "_", camera).strip("._").encode()[:_MOST_NAME_BYTES].decode(errors="ignore")
    return name or "camera"


def _named_path(path: Path, camera: str, taken: Collection[Path]) -> Path:
    """Put the camera's name into the file's."""
    name = in_file_names(camera)
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(p for p in (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in names) if p not in taken)

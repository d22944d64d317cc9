"""Locks on output files, so that two runs do not write the same file at once.

The lock files are in folders that only this user can write. For safety against other users, folders that others can
write are refused, symbolic links are not followed, and existing files are neither read nor truncated.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from overlays.sinks.paths import OWN_FILES, VIDEO_SUFFIXES, path_errors, paths_for, safe_file_name
from overlays.sinks.settings import STILLS
from pipeline.errors import SinkError
from pipeline.kinds import split_query

log = logging.getLogger(__name__)

_NAME = "recipro-stream"


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder in which several runs may write at once, each for different cameras."""

    path: Path


def to_claim(uris: Iterable[str], cameras: Sequence[str]) -> dict[Path | SharedFolder, str | None]:
    """Return the paths that a run must lock: its output files, and for each camera its clips in a folder.

    A recorder deletes old clips of its cameras to stay within the budget, so no other run may write clips of these
    cameras. A run whose cameras are not known locks the whole folder. Devices and pipes are not locked.

    Args:
        uris: addresses of the sinks.
        cameras: names of the run's cameras.

    Returns:
        The camera of each path; None for a path that is not for a single camera.

    Raises:
        SinkError: a path cannot be examined.
    """
    paths: dict[Path | SharedFolder, str | None] = {}
    for uri in uris:
        if "://" in uri:
            continue
        uri = split_query(uri)[0]  # noqa: PLW2901
        if uri.startswith(STILLS):
            paths[Path(uri.removeprefix(STILLS))] = None
            continue
        if uri.endswith("/"):
            paths[SharedFolder(Path(uri)) if cameras else Path(uri)] = None
            paths |= {Path(uri) / safe_file_name(camera): camera for camera in cameras}
            continue
        path = Path(uri)
        with path_errors(path):
            if path.suffix.lower() in OWN_FILES and (path.is_file() or not path.exists()):
                paths[path] = None
                if path.suffix.lower() in VIDEO_SUFFIXES and len(cameras) > 1:
                    paths |= {file: camera for camera, file in paths_for(path, cameras).items()}
    return paths


class Claims:
    """The locks of a run on the outputs of its sinks, for cameras that may join and leave."""

    def __init__(self, uris: Sequence[str]) -> None:
        """Store the addresses of the sinks; nothing is locked yet."""
        self._uris = list(uris)
        self._held: dict[Path | SharedFolder, tuple[str | None, ExitStack]] = {}

    def add(self, cameras: Sequence[str]) -> None:
        """Lock the outputs of these cameras that are not locked yet.

        Raises:
            SinkError: another run has locked one of the files; then none of them is locked.
        """
        with ExitStack() as stack:
            locked: dict[Path | SharedFolder, tuple[str | None, ExitStack]] = {}
            for path, camera in to_claim(self._uris, cameras).items():
                if path not in self._held:
                    locks = stack.enter_context(ExitStack())
                    locks.enter_context(claimed([path]))
                    locked[path] = (camera, locks)
            self._held |= locked
            stack.pop_all()

    def release(self, camera: str) -> None:
        """Unlock the outputs of a camera that left; another run may write them from now on."""
        for path in [path for path, (owner, _) in self._held.items() if owner == camera]:
            _, locks = self._held.pop(path)
            locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for claim in self._held.values():
            claim[1].close()


@contextmanager
def claimed(paths: Iterable[Path | SharedFolder]) -> Iterator[None]:
    """Lock files and folders for this run during the block.

    Two locks protect a path: on its resolved name, and on its folder's device and inode with its name; a bind mount
    changes only the first. A file that another run has open by a hard link is refused, too, because sinks lock open
    files with ``open_locked``. The locks end with the process, even if it is killed. Without ``fcntl`` (Windows)
    nothing is locked.

    Raises:
        SinkError: another run has locked one of the files.
    """
    to_lock = list(paths)
    try:
        import fcntl  # noqa: F401
    except ImportError:
        yield
        return
    with ExitStack() as stack:
        with ExitStack() as opened:
            folders = [opened.enter_context(_closing(folder)) for folder in _own_folders()] if to_lock else []
            if to_lock and not folders:
                log.warning("no folder for locks: another run that writes the same files is not detected")
            for path in to_lock:
                for folder in folders:
                    stack.enter_context(_locked(path, folder))
        yield


def _own_folders() -> Iterator[int]:
    """Yield open descriptors of the lock folders: the login session's folder, and a folder that always exists.

    A run may have no login session. Each run uses both folders if it can, so any two runs share at least one folder.
    """
    uid = os.getuid()
    session = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    for base, name in ((Path(session), _NAME), (Path(tempfile.gettempdir()), f"{_NAME}-{uid}")):
        if not base.is_absolute() or (base == Path(session) and not _is_private(base, uid)):
            continue
        folder = base / name
        with suppress(OSError):
            folder.mkdir(mode=0o700)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        status = os.fstat(descriptor)
        if status.st_uid == uid and not status.st_mode & 0o022:
            with suppress(OSError):
                os.fchmod(descriptor, 0o700)
            yield descriptor
        else:
            os.close(descriptor)
            log.warning(
                "%s: belongs to another user or is writable by others; it is not used for locks. Remove it", folder
            )


def _is_private(folder: Path, uid: int) -> bool:
    try:
        status = folder.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & 0o022


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path | SharedFolder, folder: int) -> Iterator[None]:
    path, is_shared = (path.path, True) if isinstance(path, SharedFolder) else (path, False)
    if not is_shared:
        _refuse_open_elsewhere(path)
    with ExitStack() as stack:
        for name in _lock_names(path):
            try:
                # Follows no link, empties no file, and does not block on a pipe.
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                lock = stack.enter_context(_closing(os.open(name, flags, 0o600, dir_fd=folder)))
            except OSError as error:
                log.warning(
                    "%s: cannot be locked (%s); another run that writes it is not detected", path, error.strerror
                )
                continue
            if not _lock(lock, shared=is_shared):
                raise _busy(path)
        yield


def _lock_names(path: Path) -> Iterator[str]:
    """Yield the names of a path's lock files: by its resolved name, and by the identity of its folder."""
    with path_errors(path):
        resolved = path.resolve()
    keys = [os.fsencode(resolved)]
    with suppress(OSError):
        status = resolved.parent.stat()
        keys.append(b"%d %d " % (status.st_dev, status.st_ino) + os.fsencode(resolved.name))
    yield from (f"{hashlib.sha256(key).hexdigest()[:32]}.lock" for key in keys)


def _refuse_open_elsewhere(path: Path) -> None:
    """Raise ``SinkError`` if another run has locked the file, possibly under another name."""
    with suppress(OSError):
        if not path.is_file():
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with _closing(descriptor):
            if not _lock(descriptor):
                raise _busy(path)


def _busy(path: Path) -> SinkError:
    return SinkError(f"{path}: is being written by another run; choose another file, or stop that run")


def open_locked(path: str, flags: int) -> int:
    """Open a file, lock it for this run, and only then truncate it, if ``flags`` has ``O_TRUNC``.

    Raises:
        OSError: another run writes the file, possibly under another name.
    """
    descriptor = os.open(path, flags & ~os.O_TRUNC, 0o666)
    is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    if is_regular and not _lock(descriptor):
        os.close(descriptor)
        raise OSError(errno.EBUSY, "another run writes it; choose another name")
    if is_regular and flags & os.O_TRUNC:
        os.truncate(descriptor, 0)
    return descriptor


def _lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file; return False if another run has locked it, True also if there are no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True

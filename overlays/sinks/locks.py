"""Locks on output files: two runs must not write the same file at once.

The locks lie in folders that belong to this user alone. Symbolic links are not followed, and existing files are neither
read nor emptied: folders that another user could have prepared are refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from overlays.sinks.paths import OWN_FILES, VIDEO_SUFFIXES, path_errors, paths_for, safe_file_name
from pipeline.errors import SinkError
from pipeline.kinds import split_query

log = logging.getLogger(__name__)

_NAME = "recipro-stream"


def to_claim(uris: Iterable[str], cameras: Sequence[str]) -> list[Path]:
    """Return the paths that a run must lock: its output files, and for each camera its clips in a folder.

    A recorder of clips deletes the files of its cameras to keep its budget, so they must not belong to another run.
    Devices and pipes are not locked.

    Raises:
        SinkError: a path cannot be examined.
    """
    paths: list[Path] = []
    for uri in uris:
        if "://" in uri:
            continue
        uri = split_query(uri)[0]  # noqa: PLW2901
        if uri.endswith("/"):
            paths += [Path(uri) / safe_file_name(camera) for camera in cameras]
            continue
        path = Path(uri)
        with path_errors(path):
            if path.suffix.lower() in OWN_FILES and (path.is_file() or not path.exists()):
                paths.append(path)
                if path.suffix.lower() in VIDEO_SUFFIXES and len(cameras) > 1:
                    paths += paths_for(path, cameras).values()
    return list(dict.fromkeys(paths))


@contextmanager
def claimed(paths: Iterable[Path]) -> Iterator[None]:
    """Lock files for this run inside the block.

    The locks end with the process, however it ends. Without ``fcntl`` (Windows) nothing is locked.

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
        folders = [stack.enter_context(_closing(folder)) for folder in _own_folders()] if to_lock else []
        if to_lock and not folders:
            log.warning("no folder for locks: another run that writes the same files is not detected")
        for path in to_lock:
            for folder in folders:
                stack.enter_context(_locked(path, folder))
        yield


def _own_folders() -> Iterator[int]:
    """Yield open descriptors of the lock folders: one of the login session, and one that always exists.

    A run may or may not belong to a login session; with both folders, any two runs share one.
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
def _locked(path: Path, folder: int) -> Iterator[None]:
    import fcntl

    with path_errors(path):
        resolved = str(path.resolve()).encode("utf-8", "surrogateescape")
    name = f"{hashlib.sha256(resolved).hexdigest()[:32]}.lock"
    try:
        # Follows no link, empties no file, and does not block on a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        log.warning("%s: cannot be locked (%s); another run that writes it is not detected", path, error.strerror)
        yield
        return
    with _closing(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SinkError(f"{path}: is being written by another run; choose another file, or stop that run") from None
        yield

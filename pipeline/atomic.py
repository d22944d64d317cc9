"""Atomic file writes: a reader sees the old file or the complete new file, even after a power failure."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pipeline.errors import ReciproStreamError

TEMPORARY: Final = ".tmp"
_MAX_WRITERS: Final = 8
"""Maximum number of processes that write the same file at once."""
_MAX_NAME_BYTES: Final = 200
_HINTS: Final = {
    errno.EISDIR: "name a file",
    errno.EEXIST: "delete it, or choose another name",
    errno.EBUSY: "wait until these processes end",
    errno.ENOENT: "create the folder, or choose another one",
}
"""Remedies for some errors."""
_MAX_AGE_SECONDS: Final = 86_400.0
"""On a file system without locks, an older temporary folder is deleted as the rest of a killed process."""


@contextmanager
def atomic_write(path: Path, *, replace: bool = True, raises: type[ReciproStreamError] | None = None) -> Iterator[Path]:
    """Yield a temporary path; its file replaces ``path`` when the block ends without an error.

    The temporary file has the name of ``path`` and is in a hidden, locked folder beside it. The lock shows the next
    writer of the same path whether the folder belongs to a killed process and can be deleted. The file and its folder
    are synced. On entering, the folder is checked for write permission. If ``path`` is a symbolic link, its target is
    replaced.

    Args:
        path: the file to write; a device or a pipe is written directly.
        replace: whether to replace an existing file.
        raises: exception class that is raised in place of ``OSError``, also for an ``OSError`` in the block.

    Raises:
        FileExistsError: ``path`` exists and ``replace`` is False.
        OSError: the file cannot be written.
    """
    try:
        with _written(path, replace=replace) as temporary:
            yield temporary
    except OSError as error:
        if raises is None:
            raise
        hint = _HINTS.get(error.errno or 0, "free space there, or choose a folder you may write to")
        raise raises(f"{path}: cannot be written ({error.strerror or error}); {hint}") from error


def write_atomically(path: Path, content: bytes | str, *, raises: type[ReciproStreamError] | None = None) -> None:
    """Write a whole file by ``atomic_write``; text is encoded as UTF-8."""
    with atomic_write(path, raises=raises) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files of killed processes in a folder; files that are being written stay."""
    for path in folder.glob(f".*{TEMPORARY}"):
        _remove_if_abandoned(path)


@contextmanager
def _written(path: Path, *, replace: bool) -> Iterator[Path]:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the path is a folder", str(path))
    if not replace and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve() if replace and path.is_symlink() and path.exists() else path
    with _temporary_folder(target) as folder:
        temporary = folder / target.name
        yield temporary
        _sync(temporary)
        if replace:
            temporary.replace(target)
        else:
            _rename_exclusive(temporary, target)
        with suppress(OSError):  # Windows cannot open folders, and some network file systems cannot sync them
            _sync(target.parent)


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Create and lock a temporary folder beside a path; remove the folders of killed processes."""
    stem = os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])
    names = [f".{stem}{f'.{number}' if number else ''}{TEMPORARY}" for number in range(_MAX_WRITERS)]
    folders = [path.with_name(name) for name in names]
    for folder in folders:  # a fixed set of names: listing a folder of 100,000 files for each write takes too long
        if os.path.lexists(folder):
            _remove_if_abandoned(folder)
    for folder in folders:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        lock = _open_locked(folder)
        if lock is not None and _is_at(lock, folder):  # else another process deleted it as abandoned
            break
        _close(lock)
    else:
        raise OSError(errno.EBUSY, f"{_MAX_WRITERS} processes already write this file", str(path))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    lock = _open_locked(folder)
    if lock is None:
        return
    try:
        if lock >= 0 or _age_seconds(folder) > _MAX_AGE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # a file of another program or version
                folder.unlink()
    finally:
        _close(lock)


def _open_locked(folder: Path) -> int | None:
    """Open and lock a folder; return its descriptor.

    Returns:
        The descriptor; None if another process has the lock, -1 if the file system has no locks.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (ImportError, OSError):
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _is_at(lock: int, folder: Path) -> bool:
    """Return whether a locked descriptor is still the folder at this path."""
    with suppress(OSError):
        return lock < 0 or os.path.samestat(os.fstat(lock), folder.stat())
    return False


def _close(lock: int | None) -> None:
    if lock is not None and lock >= 0:
        os.close(lock)


def _age_seconds(path: Path) -> float:
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime
    return 0.0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_exclusive(temporary: Path, path: Path) -> None:
    """Rename a file to an unused name. Raises ``FileExistsError``."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)

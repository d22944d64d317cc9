"""Files kept to one run: two runs that write one file at once leave neither whole.

The locks lie in folders that belong to this user alone. Nothing in them is followed, read or emptied: what another user
may have put there is refused.
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

from overlays.sinks.paths import FILMS, OWN_FILES, path_errors, paths_for, safe_file_name
from pipeline.errors import SinkError
from pipeline.kinds import split_query

log = logging.getLogger(__name__)

_NAME = "recipro-stream"


def to_claim(uris: Iterable[str], cameras: Sequence[str]) -> list[Path]:
    """Return what a run's sinks may not share with another run's: files, and each camera's clips in a folder.

    A recorder takes for its own, and removes to keep its budget, whatever is called by its cameras. A device or a pipe
    is nobody's own.

    Raises:
        SinkError: a path cannot be looked at.
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
                if path.suffix.lower() in FILMS and len(cameras) > 1:
                    paths += paths_for(path, cameras).values()
    return list(dict.fromkeys(paths))


@contextmanager
def claimed(paths: Iterable[Path]) -> Iterator[None]:
    """Keep files to this run while the block lasts.

    The claim ends with the process, however that ends. Where there are no such locks (Windows) nothing is claimed.

    Raises:
        SinkError: another run has claimed one of them.
    """
    wanted = list(paths)
    try:
        import fcntl  # noqa: F401
    except ImportError:
        yield
        return
    with ExitStack() as stack:
        folders = [stack.enter_context(_closing(folder)) for folder in _own_folders()] if wanted else []
        if wanted and not folders:
            log.warning("no folder for locks: another run that writes the same files is not noticed")
        for path in wanted:
            for folder in folders:
                stack.enter_context(_locked(path, folder))
        yield


def _own_folders() -> Iterator[int]:
    """Give every folder that is this user's alone, open: one that a login session has, and one that always is there.

    Runs may differ in whether they belong to a session; they meet in one of the two.
    """
    own = os.getuid()
    session = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{own}"
    for base, name in ((Path(session), _NAME), (Path(tempfile.gettempdir()), f"{_NAME}-{own}")):
        if not base.is_absolute() or (base == Path(session) and not _is_private(base, own)):
            continue
        folder = base / name
        with suppress(OSError):
            folder.mkdir(mode=0o700)
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        told = os.fstat(opened)
        if told.st_uid == own and not told.st_mode & 0o022:
            with suppress(OSError):
                os.fchmod(opened, 0o700)
            yield opened
        else:
            os.close(opened)
            log.warning("%s: is another user's, or open to others; no lock is put there. Remove it", folder)


def _is_private(folder: Path, own: int) -> bool:
    try:
        told = folder.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(told.st_mode) and told.st_uid == own and not told.st_mode & 0o022


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
        place = str(path.resolve()).encode("utf-8", "surrogateescape")
    name = f"{hashlib.sha256(place).hexdigest()[:32]}.lock"
    try:
        # No link is followed, nothing is emptied, and a pipe does not hold us up.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        log.warning("%s: cannot be locked (%s); another run that writes it is not noticed", path, error.strerror)
        yield
        return
    with _closing(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SinkError(
                f"{path}: is being written by another run; choose another place, or stop that run"
            ) from None
        yield

"""Replaces a configuration file as a whole, with its permissions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError


def is_writable(path: Path) -> bool:
    """Return whether the file can be replaced: it and its folder must be writable."""
    real = path.resolve()
    return os.access(real, os.W_OK) and os.access(real.parent, os.W_OK)


@contextmanager
def prepared_text(path: Path, text: str) -> Iterator[Callable[[], None]]:
    """Write a text beside a file, and yield the function that puts it in place of the file.

    What can fail (a full disk) fails on entering. A link stays, and its target is replaced. Line ends, permissions and,
    where that is allowed, the owner stay.

    Raises:
        ConfigError: the file cannot be written; it is as before.
    """
    real = path.resolve()
    temporary = None
    try:
        status = real.stat()
        newline = "\r\n" if b"\r\n" in real.read_bytes() else "\n"
        handle, name = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline=newline) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError, AttributeError):  # not on Windows, and for other users' files as the superuser only
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(status.st_mode & 0o7777)

        def replace() -> None:
            temporary.replace(real)

        yield replace
    except OSError as error:
        raise ConfigError(
            f"{path.name}: cannot be written ({error.strerror or error}); free space there, or let this user write it"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)

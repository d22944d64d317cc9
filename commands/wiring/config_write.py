"""Replaces a configuration file as a whole, with its permissions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.atomic import atomic_write
from pipeline.errors import ConfigError


def is_writable(path: Path) -> bool:
    """Return whether the file and its folder are writable, so that the file can be replaced."""
    real = path.resolve()
    return os.access(real, os.W_OK) and os.access(real.parent, os.W_OK)


@contextmanager
def replaced_text(path: Path, text: str) -> Iterator[None]:
    """Write a text to a temporary file, which replaces ``path`` when the block ends without an error.

    Most errors, such as a full disk, are raised on entering. A symbolic link stays, and its target is replaced.
    The line ends and permissions of the file are kept, and the owner if the system allows it.

    Raises:
        ConfigError: the file cannot be written; it is unchanged.
    """
    with atomic_write(path, raises=ConfigError) as temporary:
        status = path.stat()
        newline = "\r\n" if b"\r\n" in path.read_bytes() else "\n"
        temporary.write_bytes(text.replace("\n", newline).encode())
        with suppress(OSError, AttributeError):  # not possible on Windows; only root may do it for files of other users
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(status.st_mode & 0o7777)
        yield

"""Replaces a configuration file as a whole, with its permissions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.atomic import atomic_write
from pipeline.errors import ConfigError


def is_writable(path: Path) -> bool:
    """Return whether the file can be replaced: it and its folder must be writable."""
    real = path.resolve()
    return os.access(real, os.W_OK) and os.access(real.parent, os.W_OK)


@contextmanager
def replaced_text(path: Path, text: str) -> Iterator[None]:
    """Write a text beside a file; it replaces the file when the block ends without an error.

    What can fail (a full disk) mostly fails on entering. A link stays, and its target is replaced. Line ends,
    permissions and, where that is allowed, the owner stay.

    Raises:
        ConfigError: the file cannot be written; it is as before.
    """
    with atomic_write(path, raises=ConfigError) as temporary:
        status = path.stat()
        newline = "\r\n" if b"\r\n" in path.read_bytes() else "\n"
        temporary.write_bytes(text.replace("\n", newline).encode())
        with suppress(OSError, AttributeError):  # not on Windows, and for other users' files as the superuser only
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(status.st_mode & 0o7777)
        yield

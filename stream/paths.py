"""Checks of local paths: their kind, access, and error messages."""

from __future__ import annotations

import os
import re
import select
import stat
import threading
from pathlib import Path
from typing import BinaryIO, Final, Literal

from pipeline.errors import SourceError, did_you_mean

Kind = Literal["missing", "file", "folder", "pipe", "device"]

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_POLL_SECONDS: Final = 0.1  # how often a waiting reader checks the stop event


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Return the kind of ``path``, following links.

    Raises:
        SourceError: the system refuses access: a parent folder may not be entered, or the name is too long.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - Path.stat fails in the same cases
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as reason:  # ValueError: a zero byte, or a character that file names cannot contain
        raise SourceError(refusal(path, reason)) from None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else "device"


def refusal(path: str | os.PathLike[str], reason: OSError | ValueError) -> str:
    """Return a one-line message with the reason why ``path`` cannot be read, and the remedy."""
    message = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    hint = "check the path"
    if isinstance(reason, PermissionError):
        hint = "give this user permission to read it and to enter its parent folders (chmod)"
    return f"{shown(path)}: cannot be read: {message}; {hint}"


def shown(path: str | os.PathLike[str]) -> str:
    r"""Return ``path`` as printable text, for logs, headers and terminals.

    Bytes that are not UTF-8, and control characters, become ``\x..``.
    """
    name = os.fspath(path)
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda match: rf"\x{ord(match[0]):02x}", text)


def refuse_missing(path: str, *, examples: str) -> None:
    """Raise ``SourceError`` for a missing path; the message suggests the most similar name."""
    if kind_of(path) != "missing":
        return
    folder, siblings = Path(path).parent, list[str]()
    try:
        siblings = os.listdir(folder)  # noqa: PTH208 - only names are needed
    except (OSError, ValueError):
        siblings = []
    hint = did_you_mean(Path(path).name, map(shown, siblings[:10_000]))
    raise SourceError(f"{shown(path)}: no such file or folder.{hint} Use one of {examples}")


class PipeReader:
    """A file object, without ``seek``, that reads a named pipe with interruptible waits.

    A blocking ``open`` would wait for a writer, and could not be interrupted.
    """

    def __init__(self, path: str, stop: threading.Event) -> None:
        """Open ``path`` without waiting. Raises ``OSError``."""
        self.name = shown(path)
        self._stop = stop
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; ``b""`` after the writer closed the pipe."""
        while not self._stop.is_set():
            if select.select([self._descriptor], [], [], _POLL_SECONDS)[0]:
                return os.read(self._descriptor, size)
        return b""

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._descriptor)


def opened(path: str) -> str | BinaryIO:
    """Return the input for FFmpeg for a local file: a path, or an open file.

    A name with a colon gets the prefix ``file:``, because FFmpeg would read the part before the colon as a protocol.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return open(path, "rb")  # noqa: PTH123 - its reader closes it
    return path if os.path.isabs(path) or ":" not in path else f"file:{path}"  # noqa: PTH117


def check_file(path: str) -> None:
    """Raise ``SourceError`` if ``path`` is not a readable file, or is empty."""
    kind = kind_of(path)
    if kind == "missing":
        raise SourceError(f"{shown(path)}: no such file; check the path")
    if kind == "device":
        raise SourceError(f"{shown(path)}: is a device, not a file; use camera:N for a webcam")
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - the path is FFmpeg's, as given
            first = file.read(1)
    except OSError as reason:
        raise SourceError(refusal(path, reason)) from None
    if not first:
        raise SourceError(f"{shown(path)}: is empty (0 bytes); record or download it again")

"""Paths that a user named: what stands there, and every refusal of the system in words."""

from __future__ import annotations

import os
import re
import select
import stat
import threading
from pathlib import Path
from typing import BinaryIO, Final, Literal

from pipeline.errors import SourceError, did_you_mean

Kind = Literal["nothing", "file", "folder", "pipe", "device"]

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_GLANCE_SECONDS: Final = 0.1  # how often a waiting reader looks whether it is to stop


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Return what stands at ``path``, links followed.

    Raises:
        SourceError: the system does not tell: a folder on the way may not be entered, the name is too long.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - Path.stat would refuse no less and tell no more
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except (OSError, ValueError) as reason:  # ValueError: a zero byte, or a character that file names here cannot hold
        raise SourceError(refusal(path, reason)) from None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else "device"


def refusal(path: str | os.PathLike[str], reason: OSError | ValueError) -> str:
    """Return in one line why the system refused ``path``, and what to do."""
    words = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    hint = "check the path"
    if isinstance(reason, PermissionError):
        hint = "give this user the right to read it and to enter the folders on the way (chmod)"
    return f"{shown(path)}: cannot be read: {words}; {hint}"


def shown(path: str | os.PathLike[str]) -> str:
    r"""Return ``path`` as text that any log, header and terminal takes: file names here may be any bytes.

    What is not utf-8, and control characters, become ``\x..``.
    """
    name = os.fspath(path)
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda found: rf"\x{ord(found[0]):02x}", text)


def refuse_missing(path: str, *, examples: str) -> None:
    """Raise ``SourceError`` with the nearest name where nothing stands at ``path``."""
    if kind_of(path) != "nothing":
        return
    folder, siblings = Path(path).parent, list[str]()
    try:
        siblings = os.listdir(folder)  # noqa: PTH208 - names are all that is asked for
    except (OSError, ValueError):
        siblings = []
    hint = did_you_mean(Path(path).name, map(shown, siblings[:10_000]))
    raise SourceError(f"{shown(path)}: no such file or folder.{hint} A source is one of {examples}")


class PipeReader:
    """Reads a named pipe so that every wait for its writer can be woken; a file object without ``seek``.

    To open a pipe that nobody writes into would wait in the system until somebody does, and nothing could end that.
    """

    def __init__(self, path: str, stop: threading.Event) -> None:
        """Open ``path`` without waiting; a set ``stop`` reads as the end. Raises ``OSError``."""
        self.name = shown(path)
        self._stop = stop
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self, size: int) -> bytes:
        """Return what comes, at most ``size`` bytes; nothing once the writer has closed it."""
        while not self._stop.is_set():
            if select.select([self._descriptor], [], [], _GLANCE_SECONDS)[0]:
                return os.read(self._descriptor, size)
        return b""

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def opened(path: str) -> str | BinaryIO:
    """Return what FFmpeg opens for a local file: its path, or the open file where the path is not utf-8.

    A name with a colon would be taken for a protocol.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return open(path, "rb")  # noqa: PTH123 - its reader closes it
    return path if os.path.isabs(path) or ":" not in path else f"file:{path}"  # noqa: PTH117


def check_file(path: str) -> None:
    """Raise ``SourceError`` where ``path`` is no file that can be read, or an empty one."""
    kind = kind_of(path)
    if kind == "nothing":
        raise SourceError(f"{shown(path)}: no such file; check the path")
    if kind == "device":
        raise SourceError(f"{shown(path)}: is a device, not a file; a webcam is camera:N")
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - the path is FFmpeg's, as given
            first = file.read(1)
    except OSError as reason:
        raise SourceError(refusal(path, reason)) from None
    if not first:
        raise SourceError(f"{shown(path)}: is empty (0 bytes); record or fetch it again")

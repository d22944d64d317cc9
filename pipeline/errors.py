"""The exceptions of the project.

    ReciproStreamError
    ├── ConfigError          an option has a wrong name, type or value
    │   └── SetupConflictError    the configuration was changed meanwhile by another user or program
    ├── SourceError          a source cannot be opened or read
    │   ├── CorruptMediaError     a file is damaged; the frames before the damage were delivered
    │   └── ConnectionLostError   the connection to a live source was lost
    ├── EngineError          a network cannot be loaded, split, compiled or run
    │   ├── ModelError       the model does not exist, or the weights do not fit it
    │   ├── LayerError       the layer does not exist, or its output is not a grid
    │   ├── BackendError     the backend is not installed, or its results differ from those of eager mode
    │   └── FrameGoneError   the frame of a query is no longer stored
    ├── SinkError            a sink cannot be opened or written
    │   ├── FrameError       one frame cannot be delivered; the sink continues
    │   └── DataLossError        the sink ran to its end, but lost frames
    └── WireError            a message cannot be read
        ├── WireVersionError the message needs a newer reader
        ├── WireLimitError   a part of the message exceeds a limit
        └── ImageError       the image of the message is not a valid JPEG

Each message names the value, the rule it breaks and the remedy. ``run.py`` prints it in one line and exits with
``exit_code``; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Collection, Iterable
from typing import Final

_MAX_LISTED: Final = 12
_MAX_PATH: Final = 200


class ReciproStreamError(Exception):
    """Base class of the errors that the user can fix."""

    exit_code = 2


class ConfigError(ReciproStreamError):
    """An option has a wrong name, type or value."""


class SetupConflictError(ConfigError):
    """The configuration was changed meanwhile by another user or program."""

    def __init__(self, message: str, difference: str = "", file_revision: str | None = None) -> None:
        super().__init__(message)
        self.difference = difference
        """Lines that differ (unified diff), without credentials."""
        self.file_revision = file_revision
        """Names the text of a changed file, for ``CameraSetup.apply_file``; None: the file was not changed."""


class SourceError(ReciproStreamError):
    """A source cannot be opened or read."""


class CorruptMediaError(SourceError):
    """A file is damaged; the frames before the damage were delivered."""


class ConnectionLostError(SourceError):
    """The connection to a live source was lost; the reconnect policy decides on the next attempt."""


class EngineError(ReciproStreamError):
    """A network cannot be loaded, split, compiled or run."""


class ModelError(EngineError):
    """The model does not exist, or the weights do not fit it."""


class LayerError(EngineError):
    """The layer does not exist, or its output is not a grid whose cells can be masked."""


class BackendError(EngineError):
    """The backend is not installed, or its results differ from those of eager mode."""


class FrameGoneError(EngineError):
    """The frame of a query is no longer stored."""


class SinkError(ReciproStreamError):
    """A sink cannot be opened or written."""


class FrameError(SinkError):
    """One frame cannot be delivered; the sink continues with the next one."""


class DataLossError(SinkError):
    """A sink ran to its end, but lost frames."""

    exit_code = 4


class WireError(ReciproStreamError):
    """A message cannot be read."""


class WireVersionError(WireError):
    """A message needs a newer reader."""


class WireLimitError(WireError):
    """A part of a message exceeds a limit of the reader."""


class ImageError(WireError):
    """The image of a message is not a valid JPEG."""


def of_path(error: OSError) -> str | None:
    """Return the message for an ``OSError`` about a path; None if the error names no path."""
    if error.filename is None:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    shown = repr(name if len(name) <= _MAX_PATH else f"{name[:_MAX_PATH]}...")
    hints = {
        errno.EACCES: "let this user read it and enter every folder on the way to it, or name another place",
        errno.EPERM: "let this user use it, or name another place",
        errno.ENAMETOOLONG: "give it a name of 255 bytes at most",
        errno.ELOOP: "its links form a loop; name the file itself",
        errno.EROFS: "the file system is read-only; name another place",
        errno.ENOSPC: "free space there, or name another folder",
        errno.EDQUOT: "free space there, or name another folder",
    }
    hint = hints.get(error.errno or 0, "check the path")
    return f"{shown}: cannot be used ({error.strerror or error}); {hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name_message(kind: str, name: str, known: Collection[str]) -> str:
    """Return the message for an unknown name, with the known names and the most similar name."""
    names = sorted(known)
    listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
    return f"unknown {kind}; known: {listed or 'none'}.{did_you_mean(name, known)}"

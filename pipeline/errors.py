"""Every error this system raises on purpose.

    ReciproStreamError
    ├── ConfigError          a knob has a wrong name, type or value
    ├── SourceError          a source cannot be opened or read
    │   ├── CorruptMediaError     it broke part-way; every good frame came first
    │   └── ConnectionLostError   a live source went away; it may come back
    ├── EngineError          a network cannot be loaded, cut, compiled or run
    │   ├── ModelError       no such model, or weights that do not fit
    │   ├── LayerError       the layer is missing or has no grid to explain
    │   └── BackendError     the backend is missing here, or disagrees with eager
    ├── SinkError            a sink cannot be opened or written
    │   ├── FrameError       one frame cannot be delivered; the sink goes on
    │   └── DataLossError        it ran, and did not take all that was put
    └── WireError            a message cannot be read
        ├── WireVersionError it was written for a newer reader
        ├── WireLimitError   a part of it is beyond a limit
        └── ImageError     its picture is no JPEG that can be decoded

Each message names the value, the rule it broke and the cure. ``run.py`` prints it in one line and exits with
``exit_code``; anything else that escapes is a bug and keeps its traceback.
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
    """The root of the tree: something the user can mend."""

    exit_code = 2


class ConfigError(ReciproStreamError):
    """A knob has a wrong name, type or value."""


class SourceError(ReciproStreamError):
    """A source cannot be opened or read."""


class CorruptMediaError(SourceError):
    """A file broke part-way: every good frame before the damage was delivered first."""


class ConnectionLostError(SourceError):
    """A live source went away; whether to try again is the reconnect policy's business."""


class EngineError(ReciproStreamError):
    """A network cannot be loaded, cut, compiled or run."""


class ModelError(EngineError):
    """There is no such model, or the weights do not fit it."""


class LayerError(EngineError):
    """The layer does not exist, or its output is no grid that can be masked."""


class BackendError(EngineError):
    """The backend is missing on this machine, or its answers differ from eager's."""


class SinkError(ReciproStreamError):
    """A sink cannot be opened or written."""


class FrameError(SinkError):
    """One frame cannot be delivered, whatever the reason; the sink takes the next one."""


class DataLossError(SinkError):
    """A sink ran to the end, and did not take all that was put into it."""

    exit_code = 4


class WireError(ReciproStreamError):
    """A message cannot be read."""


class WireVersionError(WireError):
    """A message was written for a newer reader."""


class WireLimitError(WireError):
    """A part of a message is larger than a reader takes."""


class ImageError(WireError):
    """A message's picture is no JPEG that can be decoded."""


def of_path(error: OSError) -> str | None:
    """Return in words what the system said of a path; None where it said it of something else.

    For every error that asking, opening or writing a path may raise and that nobody nearer to it has told.
    """
    if error.filename is None:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    shown = repr(name if len(name) <= _MAX_PATH else f"{name[:_MAX_PATH]}...")
    hints = {
        errno.EACCES: "let this user read it and enter every folder on the way to it, or name another place",
        errno.EPERM: "let this user use it, or name another place",
        errno.ENAMETOOLONG: "give it a name of 255 bytes at most",
        errno.ELOOP: "its links lead in a circle; name the file itself",
        errno.EROFS: "the file system is read-only; name another place",
        errno.ENOSPC: "make room there, or name another place",
        errno.EDQUOT: "make room there, or name another place",
    }
    hint = hints.get(error.errno or 0, "check the path")
    return f"{shown}: cannot be used ({error.strerror or error}); {hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name_message(kind: str, name: str, known: Collection[str]) -> str:
    """Return what is said of a name that nothing of its kind has: those there are, and the nearest."""
    several = sorted(known)
    listed = ", ".join(several[:_MAX_LISTED]) + (", ..." if len(several) > _MAX_LISTED else "")
    return f"no {kind} is called so; known: {listed or 'there is none'}.{did_you_mean(name, known)}"

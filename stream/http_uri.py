"""What a web address tells by itself, before anybody is asked."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

RECORDING_SUFFIXES: Final = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif", ".wmv", ".ogv", ".3gp"}
)
"""What is a recording when it stands behind a web address: it is read whole, once, and waits for its reader."""


def is_recording(uri: str) -> bool:
    """Say whether ``uri`` names a recording rather than something live: by its suffix, without asking the server."""
    return PurePosixPath(urlsplit(uri).path).suffix.lower() in RECORDING_SUFFIXES

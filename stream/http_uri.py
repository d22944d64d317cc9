"""Detects from a web address whether it is a recording, before any request."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

RECORDING_SUFFIXES: Final = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif", ".wmv", ".ogv", ".3gp"}
)
"""Suffixes of recordings, which are read once, to the end, at the reader's pace."""


def is_recording(uri: str) -> bool:
    """Return whether the suffix of ``uri`` is that of a recording."""
    return PurePosixPath(urlsplit(uri).path).suffix.lower() in RECORDING_SUFFIXES

"""Stores the highest term that the workers of a machine have followed: terms rise also if the head loses its data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from pipeline.atomic import write_atomically

log = logging.getLogger("recipro-stream")

_MAX_TERM: Final = 1 << 32
"""Greater numbers in a file are errors; their epochs would exceed the exact integers of JSON."""


def default_term_file(fleet: str) -> Path:
    """Return the path of a fleet's file in the state folder of this user."""
    import platformdirs

    return platformdirs.user_state_path("recipro-stream") / f"fleet-{fleet.replace('/', '_')}.term"


class TermFile:
    """The file of one fleet. Not thread-safe; several processes may write it."""

    def __init__(self, path: Path) -> None:
        """Store the path and read the file."""
        self._path = path
        self._written = self.read()
        self._is_writable = True

    def read(self) -> int:
        """Return the stored term; 0 if there is none."""
        try:
            term = int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):  # no file, or not a number
            return 0
        return term if 0 < term < _MAX_TERM else 0

    def write(self, term: int) -> None:
        """Store a term that is higher than the last one; log a warning if the file cannot be written."""
        if term <= self._written:
            return
        self._written = term
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if term > self.read():
                write_atomically(self._path, f"{term}\n")
        except OSError as error:
            if self._is_writable:
                log.warning(
                    "%s: cannot be written (%s); if the head loses its data and its clock is behind, viewers drop "
                    "frames until it has caught up", self._path, error.strerror or error,
                )  # fmt: skip
            self._is_writable = False

"""Runs in one log: the line each begins with, and what a run that was killed leaves at the file's end."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from overlays.wire.json_fields import replace_undecodable
from overlays.wire.message import MAX_HEADER_BYTES, VERSION

PARTIAL: Final = ".partial"
_MAX_NAME_BYTES: Final = 255 - len(PARTIAL)
_CHUNK_BYTES: Final = 1 << 16


def new_run_id() -> str:
    """Return a word that no other run has."""
    return uuid.uuid4().hex


def run_line(run_id: str, cameras: Sequence[str], began_at_unix: float) -> bytes:
    """Return the line that a run begins with: which run, since when, of which cameras as far as they are known."""
    run = {
        "id": run_id,
        "began_at_unix": round(began_at_unix, 6),
        "cameras": [replace_undecodable(camera) for camera in cameras],
    }
    return json.dumps({"version": VERSION, "run": run}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def is_regular(file: FileIO) -> bool:
    """Say whether it is a file on a disk, and not a device or a pipe."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def mend_end(path: Path, file: FileIO) -> str:
    """Make an existing log end with a whole line, so that what is appended is glued to nothing.

    A line that was cut off goes to ``FILE.partial``; one that only lacks its line feed gets it.

    Args:
        path: the log.
        file: the same, open for appending.

    Returns:
        What was done, in words; empty where the log was whole.

    Raises:
        OSError: the log or the file beside it cannot be written.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with FileIO(path) as log:
            rest = _behind_last_line_feed(log, size)
    except PermissionError:  # it may only be written
        file.write(b"\n")
        return ""
    if not rest:
        return ""
    if len(rest) > MAX_HEADER_BYTES or _is_object(rest):
        file.write(b"\n")
        return "" if len(rest) <= MAX_HEADER_BYTES else "its last line is none of ours; a line feed ends it"
    beside = path.with_name(os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES]) + PARTIAL)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with FileIO(beside, "a", opener=lambda name, _flags: os.open(name, flags, 0o666)) as kept:
        left = memoryview(rest + b"\n")
        while left:
            left = left[kept.write(left) or 0 :]
        os.fsync(kept.fileno())
    file.truncate(size - len(rest))
    return f"its last line was cut off ({len(rest)} bytes); it is kept in {beside}"


def _behind_last_line_feed(log: FileIO, size: int) -> bytes:
    """Return what stands behind the last line feed of a file of ``size`` bytes; of a longer line its end alone."""
    rest, place = b"", size
    while place > 0 and len(rest) <= MAX_HEADER_BYTES:
        begin = max(0, place - _CHUNK_BYTES)
        log.seek(begin)
        chunk = log.read(place - begin)
        if b"\n" in chunk:
            return chunk[chunk.rindex(b"\n") + 1 :] + rest
        rest, place = chunk + rest, begin
    return rest


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False

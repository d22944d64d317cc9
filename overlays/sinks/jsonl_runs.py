"""Creates the record with which each run begins in a JSON Lines log, and repairs a cut-off last line."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from overlays.wire.fields import VERSION
from overlays.wire.header import MAX_HEADER_BYTES
from overlays.wire.text import replace_undecodable

PARTIAL: Final = ".partial"
_MAX_NAME_BYTES: Final = 255 - len(PARTIAL)
_CHUNK_BYTES: Final = 1 << 16


def new_run_id() -> str:
    """Return a unique identifier of a run (UUID 4, 32 hexadecimal digits)."""
    return uuid.uuid4().hex


def run_line(run_id: str, cameras: Sequence[str], began_at_unix: float) -> bytes:
    """Return the first line of a run: its identifier, its start in Unix seconds, and the known cameras."""
    run = {
        "id": run_id,
        "began_at_unix": round(began_at_unix, 6),
        "cameras": [replace_undecodable(camera) for camera in cameras],
    }
    return json.dumps({"version": VERSION, "run": run}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def is_regular(file: FileIO) -> bool:
    """Return whether an open file is a regular file, not a device or a pipe."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def mend_end(path: Path, file: FileIO) -> str:
    """Repair the end of an existing log, so that the next record begins a new line.

    A line that was cut off is moved to ``FILE.partial``; a line feed is appended to a complete line without one.

    Args:
        path: the log.
        file: the same file, open for appending.

    Returns:
        A description of the repair; empty if the log was complete.

    Raises:
        OSError: the log or ``FILE.partial`` cannot be written.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with FileIO(path) as log:
            rest = _after_last_line_feed(log, size)
    except PermissionError:  # writable but not readable
        file.write(b"\n")
        return ""
    if not rest:
        return ""
    if len(rest) > MAX_HEADER_BYTES or _is_object(rest):
        file.write(b"\n")
        too_long = f"its last line is longer than {MAX_HEADER_BYTES} bytes and is no explanation; a line feed is added"
        return too_long if len(rest) > MAX_HEADER_BYTES else ""
    partial_path = path.with_name(os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES]) + PARTIAL)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with FileIO(partial_path, "a", opener=lambda name, _flags: os.open(name, flags, 0o666)) as partial:
        left = memoryview(rest + b"\n")
        while left:
            left = left[partial.write(left) or 0 :]
        os.fsync(partial.fileno())
    file.truncate(size - len(rest))
    return f"its last line was cut off ({len(rest)} bytes); it is kept in {partial_path}"


def _after_last_line_feed(log: FileIO, size: int) -> bytes:
    """Return the bytes after the last line feed of a file of ``size`` bytes; of an overlong line only the end."""
    rest, position = b"", size
    while position > 0 and len(rest) <= MAX_HEADER_BYTES:
        begin = max(0, position - _CHUNK_BYTES)
        log.seek(begin)
        chunk = log.read(position - begin)
        if b"\n" in chunk:
            return chunk[chunk.rindex(b"\n") + 1 :] + rest
        rest, position = chunk + rest, begin
    return rest


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False

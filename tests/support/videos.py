"""Reads recorded videos back."""

from __future__ import annotations

from pathlib import Path

import av


def frames_of(path: Path) -> list[tuple[float | None, int, int]]:
    """Return time in seconds, width and height in pixels of each frame of a video."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.width, frame.height) for frame in container.decode(video=0)]

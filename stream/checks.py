"""Which cameras and codecs this machine can read."""

from __future__ import annotations

from pathlib import Path

import av

from pipeline.checks import Check

_CODECS = ("h264", "hevc", "mjpeg", "vp9", "av1")


def checks() -> list[Check]:
    """Return what the sources find: webcams and decoders."""
    webcams = sorted(str(path) for path in Path("/dev").glob("video*"))
    lacking = [name for name in _CODECS if name not in av.codecs_available]
    return [
        Check(
            "webcams", bool(webcams), ", ".join(webcams) or "none", "only for camera:N: plug one in; try line: without"
        ),
        Check("decoders", not lacking, ", ".join(name for name in _CODECS if name not in lacking), "uv sync"),
    ]

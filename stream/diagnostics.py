"""Which cameras and codecs this machine can read."""

from __future__ import annotations

from pathlib import Path

import av

from pipeline.diagnostics import Check
from stream.hwaccel import NoCardError, accelerator, known

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
        _on_a_card(),
    ]


def _on_a_card() -> Check:
    """Open the first card as ``decoder: cuda`` would; which codecs it takes shows at a stream's first picture."""
    try:
        accelerator(0)
    except NoCardError as reason:
        cure = "only for decoder: cuda and cuda:N: the card's driver (nvidia-smi lists it); auto and cpu do without"
        return Check("decoding on a card", present=False, says=f"{reason} (FFmpeg knows {known()})", cure=cure)
    return Check("decoding on a card", present=True, says=f"cuda:0 opens (FFmpeg knows {known()})")

"""Which cameras and codecs this machine can read."""

from __future__ import annotations

from pathlib import Path

import av

from pipeline.diagnostics import Diagnostic
from stream.hwaccel import HardwareDecoderUnavailableError, available_hwaccels, cuda_hwaccel

_CODECS = ("h264", "hevc", "mjpeg", "vp9", "av1")


def diagnostics() -> list[Diagnostic]:
    """Return what the sources find: webcams and decoders."""
    webcams = sorted(str(path) for path in Path("/dev").glob("video*"))
    lacking = [name for name in _CODECS if name not in av.codecs_available]
    return [
        Diagnostic(
            "webcams", bool(webcams), ", ".join(webcams) or "none", "only for camera:N: plug one in; try line: without"
        ),
        Diagnostic("decoders", not lacking, ", ".join(name for name in _CODECS if name not in lacking), "uv sync"),
        _on_gpu(),
    ]


def _on_gpu() -> Diagnostic:
    """Open the first card as ``decoder: cuda`` would; which codecs it takes shows at a stream's first picture."""
    try:
        cuda_hwaccel(0)
    except HardwareDecoderUnavailableError as reason:
        hint = "only for decoder: cuda and cuda:N: the card's driver (nvidia-smi lists it); auto and cpu do without"
        return Diagnostic(
            "decoding on a card", present=False, detail=f"{reason} (FFmpeg knows {available_hwaccels()})", hint=hint
        )
    return Diagnostic("decoding on a card", present=True, detail=f"cuda:0 opens (FFmpeg knows {available_hwaccels()})")

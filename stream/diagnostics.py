"""Diagnostics of the sources: webcams, decoders, hardware decoding, bags and industrial cameras."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av

from pipeline.diagnostics import Diagnostic
from stream.genicam.aravis import library
from stream.genicam.libaravis import LIBRARY
from stream.hwaccel import HardwareDecoderUnavailableError, available_hwaccels, cuda_hwaccel

_CODECS = ("h264", "hevc", "mjpeg", "vp9", "av1")


def diagnostics() -> list[Diagnostic]:
    """Return the diagnostics of everything that the sources need."""
    webcams = sorted(str(path) for path in Path("/dev").glob("video*"))
    missing = [name for name in _CODECS if name not in av.codecs_available]
    return [
        Diagnostic(
            "webcams", bool(webcams), ", ".join(webcams) or "none", "only for camera:N: connect a camera, or use line:"
        ),
        Diagnostic("decoders", not missing, ", ".join(name for name in _CODECS if name not in missing), "uv sync"),
        _bags(),
        _genicam(),
        _aravis(),
        _on_gpu(),
    ]


def _bags() -> Diagnostic:
    """Check whether the packages that read bags are installed."""
    try:
        detail = f"rosbags {version('rosbags')}, mcap {version('mcap')}"
    except PackageNotFoundError:
        hint = "only for .mcap, .db3, .bag and bag folders: uv sync --inexact --extra bags"
        return Diagnostic("bags", present=False, detail="not installed", hint=hint)
    return Diagnostic("bags", present=True, detail=detail)


def _genicam() -> Diagnostic:
    """Check whether the packages that read industrial cameras by a GenTL producer are installed."""
    try:
        detail = f"harvesters {version('harvesters')}, genicam {version('genicam')}"
    except PackageNotFoundError:
        hint = "only for genicam:SERIAL by a GenTL producer: uv sync --inexact --extra genicam"
        return Diagnostic("GenTL producers", present=False, detail="not installed", hint=hint)
    return Diagnostic("GenTL producers", present=True, detail=detail)


def _aravis() -> Diagnostic:
    """Check whether Aravis, which reads industrial cameras without a producer, is installed."""
    if library() is None:
        hint = "only for genicam:SERIAL without a GenTL producer: apt install libaravis-0.8-0"
        return Diagnostic("Aravis", present=False, detail=f"{LIBRARY} is missing or too old", hint=hint)
    return Diagnostic("Aravis", present=True, detail=LIBRARY)


def _on_gpu() -> Diagnostic:
    """Check whether ``decoder: cuda`` can open the first GPU."""
    try:
        cuda_hwaccel(0)
    except HardwareDecoderUnavailableError as reason:
        hint = "only for decoder: cuda and cuda:N: install the GPU's driver (nvidia-smi lists the GPU)"
        return Diagnostic(
            "decoding on a GPU", present=False, detail=f"{reason} (FFmpeg supports {available_hwaccels()})", hint=hint
        )
    detail = f"cuda:0 opens (FFmpeg supports {available_hwaccels()})"
    return Diagnostic("decoding on a GPU", present=True, detail=detail)

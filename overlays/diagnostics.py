"""What this machine can show and record."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import av
import cv2
import zmq

from overlays.sinks.registry import added_kinds
from pipeline.diagnostics import Check


def checks(display: str | None) -> list[Check]:
    """Return what the sinks find: a display, the encoder, ZeroMQ.

    Args:
        display: where a window can open, or None.
    """
    encoder = "libx264" in av.codecs_available
    added = ", ".join(f"{e.name} ({e.dist.name if e.dist else e.value})" for e in added_kinds())
    return [
        Check("display", bool(display), display or "none", "only for --sink window: set DISPLAY, or use another"),
        _package("windows", "pygame-ce", "only for --sink window: uv sync"),
        Check("H.264 encoder", encoder, f"libx264 in PyAV {av.__version__}", "only for .mp4: uv sync"),
        Check("ZeroMQ", present=True, says=f"{zmq.zmq_version()}, CURVE {'yes' if zmq.has('curve') else 'no'}"),
        Check("web page", present=True, says=f"starlette {version('starlette')} on uvicorn {version('uvicorn')}"),
        _extra("Parquet", "pyarrow", ".parquet", "parquet"),
        _extra("MQTT", "paho-mqtt", "mqtt://", "mqtt"),
        *([Check("sinks of packages", present=True, says=added)] if added else []),
        Check("OpenCV", present=True, says=f"{cv2.__version__} (numpy {version('numpy')})"),
    ]


def _package(name: str, package: str, cure: str) -> Check:
    """Say whether a package is there."""
    try:
        return Check(name, present=True, says=f"{package} {version(package)}")
    except PackageNotFoundError:
        return Check(name, present=False, says="not installed", cure=cure)


def _extra(name: str, package: str, sink: str, extra: str) -> Check:
    """Say whether what an extra brings is there."""
    return _package(name, package, f"only for {sink}: uv sync --extra {extra}")

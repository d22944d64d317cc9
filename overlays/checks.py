"""What this machine can show and record."""

from __future__ import annotations

from importlib.metadata import version

import av
import cv2
import zmq

from pipeline.checks import Check


def checks(display: str | None) -> list[Check]:
    """Return what the sinks find: a display, the encoder, ZeroMQ.

    Args:
        display: where a window can open, or None.
    """
    encoder = "libx264" in av.codecs_available
    return [
        Check("display", bool(display), display or "none", "only for --sink window: set DISPLAY, or use another"),
        Check("H.264 encoder", encoder, f"libx264 in PyAV {av.__version__}", "only for .mp4: uv sync"),
        Check("ZeroMQ", present=True, says=f"{zmq.zmq_version()}, CURVE {'yes' if zmq.has('curve') else 'no'}"),
        Check("OpenCV", present=True, says=f"{cv2.__version__} (numpy {version('numpy')})"),
    ]

"""Requirements of the sinks for ``run.py doctor``: display, encoder, optional packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import av
import cv2
import zmq

from overlays.sinks.registry import plugin_sinks
from pipeline.diagnostics import Diagnostic


def diagnostics(display: str | None) -> list[Diagnostic]:
    """Return one diagnostic for each requirement of the sinks.

    Args:
        display: the display where a window can open, or None.
    """
    encoder = "libx264" in av.codecs_available
    plugins = ", ".join(f"{e.name} ({e.dist.name if e.dist else e.value})" for e in plugin_sinks())
    return [
        Diagnostic("display", bool(display), display or "none", "only for --sink window: set DISPLAY, or use another"),
        _package("windows", "pygame-ce", "only for --sink window: uv sync"),
        Diagnostic("H.264 encoder", encoder, f"libx264 in PyAV {av.__version__}", "only for .mp4: uv sync"),
        Diagnostic("ZeroMQ", present=True, detail=f"{zmq.zmq_version()}, CURVE {'yes' if zmq.has('curve') else 'no'}"),
        Diagnostic(
            "web page", present=True, detail=f"starlette {version('starlette')} on uvicorn {version('uvicorn')}"
        ),
        _extra("Parquet", "pyarrow", ".parquet", "parquet"),
        _extra("MCAP", "mcap", ".mcap", "mcap"),
        _extra("Foxglove live", "foxglove-sdk", "foxglove://", "foxglove"),
        _extra("OPC UA", "asyncua", "opc.tcp://", "opcua"),
        _extra("Modbus", "pymodbus", "modbus://", "modbus"),
        _extra("MQTT", "paho-mqtt", "mqtt://", "mqtt"),
        *([Diagnostic("sinks of packages", present=True, detail=plugins)] if plugins else []),
        Diagnostic("OpenCV", present=True, detail=f"{cv2.__version__} (numpy {version('numpy')})"),
    ]


def _package(name: str, package: str, hint: str) -> Diagnostic:
    """Return the diagnostic of a package: whether it is installed, and its version."""
    try:
        return Diagnostic(name, present=True, detail=f"{package} {version(package)}")
    except PackageNotFoundError:
        return Diagnostic(name, present=False, detail="not installed", hint=hint)


def _extra(name: str, package: str, sink: str, extra: str) -> Diagnostic:
    """Return the diagnostic of the package of an extra: whether it is installed, and its version."""
    return _package(name, package, f"only for {sink}: uv sync --inexact --extra {extra}")

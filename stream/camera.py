"""A webcam on this machine, through V4L2."""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import av
import av.error
from av.container import InputContainer

from pipeline.errors import SourceError
from stream.attempt import Attempt
from stream.decode import VideoPacket
from stream.hwaccel import DecoderSelector
from stream.live import ConnectionSpec, LiveSource, demuxed
from stream.network import Timeouts

_POLL_SECONDS = 0.1  # how often a waiting reader checks the stop event


@dataclass(frozen=True, slots=True)
class CameraMode:
    """The requested mode of a webcam; the driver chooses the nearest mode it has."""

    size: str | None = None
    """``WIDTHxHEIGHT``; None: the webcam's default."""
    rate: float | None = None
    """Frames per second; None: the webcam's default."""
    encoding: str | None = None
    """FFmpeg's name of the pixel format: ``mjpeg`` gives the full rate at large sizes, ``yuyv422`` the best quality."""


class CameraSource(LiveSource):
    """The source of a webcam, ``/dev/videoN``."""

    def __init__(
        self,
        number: int,
        *,
        camera: str,
        timeouts: Timeouts,
        mode: CameraMode | None = None,
        decoder: DecoderSelector | None = None,
        devices: Path = Path("/dev"),
    ) -> None:
        """Create the source; ``devices`` is the folder of the device files."""
        self._device = devices / f"video{number}"
        self._devices = devices
        reader = _Reader(self._device, mode or CameraMode(), timeouts)
        spec = ConnectionSpec(reader.open, reader.packets, timeouts.open_timeout_seconds, timeouts.read_timeout_seconds)
        spec = replace(spec, attempts=timeouts.attempts, decoder=decoder or DecoderSelector())
        super().__init__(uri=f"camera:{number}", camera=camera, spec=spec)

    def __enter__(self) -> Self:
        if not self._device.exists():
            numbers = ", ".join(p.name.removeprefix("video") for p in found_cameras(self._devices))
            hint = (
                f"available cameras: {numbers}"
                if numbers
                else "no camera found: connect a camera, or use the simulated line:"
            )
            message = f"{self.uri}: {self._device} does not exist; {hint}"
            raise SourceError(message)
        if not os.access(self._device, os.R_OK | os.W_OK):
            message = f"{self.uri}: no permission for {self._device}; join its group: sudo usermod -aG video $USER"
            raise SourceError(message)
        return self


def found_cameras(devices: Path = Path("/dev")) -> list[Path]:
    """Return the paths of this machine's video devices, in order of their numbers."""
    paths = [p for p in devices.glob("video*") if re.fullmatch(r"video\d+", p.name)]
    return sorted(paths, key=lambda p: int(p.name.removeprefix("video")))


class _Reader:
    """Reads one device; all waits can be interrupted."""

    def __init__(self, device: Path, mode: CameraMode, timeouts: Timeouts) -> None:
        self._device = device
        self._mode = mode
        self._timeouts = timeouts

    def open(self, attempt: Attempt) -> AbstractContextManager[InputContainer]:
        requested = {
            "video_size": self._mode.size,
            "framerate": None if self._mode.rate is None else f"{self._mode.rate:g}",
            "input_format": self._mode.encoding,
        }
        options = {key: value for key, value in requested.items() if value is not None}
        timeout = (attempt.answer_seconds, attempt.read_seconds)
        return av.open(str(self._device), format="v4l2", options=options, timeout=timeout)

    def packets(self, container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
        descriptor = _descriptor_of(self._device)
        packets = demuxed(container, stop)
        while not stop.is_set() and self._is_ready(descriptor, stop):
            packet = next(packets, None)
            if packet is None:
                return
            yield packet

    def _is_ready(self, descriptor: int | None, stop: threading.Event) -> bool:
        """Wait for a frame; return False when stopped. Raises FFmpeg's ``TimeoutError``."""
        if descriptor is None:
            return True
        deadline = time.monotonic() + self._timeouts.read_timeout_seconds
        while not stop.is_set():
            if select.select([descriptor], [], [], _POLL_SECONDS)[0]:
                return True
            if time.monotonic() > deadline:
                raise av.error.TimeoutError(110, "no frame arrived before the deadline")
        return False


def _descriptor_of(device: Path) -> int | None:
    """Return the open file descriptor of ``device``; None if it is unknown."""
    listing = Path("/proc/self/fd")
    real = device.resolve()
    for entry in sorted(listing.iterdir() if listing.is_dir() else [], key=lambda p: int(p.name), reverse=True):
        try:
            if entry.readlink() == real:
                return int(entry.name)
        except OSError:
            continue
    return None

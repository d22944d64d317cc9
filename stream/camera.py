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

_GLANCE_SECONDS = 0.1  # how often a waiting reader looks whether it is to stop


@dataclass(frozen=True, slots=True)
class CameraMode:
    """What to ask of a webcam; it gives what it can come nearest to."""

    size: str | None = None
    """``WIDTHxHEIGHT``; None: its own default."""
    rate: float | None = None
    """Frames per second; None: its own default."""
    encoding: str | None = None
    """FFmpeg's name for the format it sends: ``mjpeg`` gives the full rate at high sizes, ``yuyv422`` the cleanest."""


class CameraSource(LiveSource):
    """Frames of ``/dev/videoN``. Entering raises ``SourceError`` where there is no such device."""

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
        """``devices`` is the folder the device files stand in; ``decoder`` limits the pictures' size."""
        self._device = devices / f"video{number}"
        self._devices = devices
        reader = _Reader(self._device, mode or CameraMode(), timeouts)
        line = ConnectionSpec(reader.open, reader.packets, timeouts.open_timeout_seconds, timeouts.read_timeout_seconds)
        line = replace(line, attempts=timeouts.attempts, decoder=decoder or DecoderSelector())
        super().__init__(uri=f"camera:{number}", camera=camera, spec=line)

    def __enter__(self) -> Self:
        if not self._device.exists():
            there = ", ".join(p.name.removeprefix("video") for p in found_cameras(self._devices))
            hint = f"cameras here: {there}" if there else "no camera is here: plug one in, or try --source line:"
            message = f"{self.uri}: there is no {self._device}; {hint}"
            raise SourceError(message)
        if not os.access(self._device, os.R_OK | os.W_OK):
            message = f"{self.uri}: {self._device} may not be opened; join its group: sudo usermod -aG video $USER"
            raise SourceError(message)
        return self


def found_cameras(devices: Path = Path("/dev")) -> list[Path]:
    """Return the video devices of this machine, in order of their numbers."""
    found = [p for p in devices.glob("video*") if re.fullmatch(r"video\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("video")))


class _Reader:
    """Reads one device, never waiting in the driver: that wait could not be woken."""

    def __init__(self, device: Path, mode: CameraMode, timeouts: Timeouts) -> None:
        self._device = device
        self._mode = mode
        self._patience = timeouts

    def open(self, attempt: Attempt) -> AbstractContextManager[InputContainer]:
        wanted = {
            "video_size": self._mode.size,
            "framerate": None if self._mode.rate is None else f"{self._mode.rate:g}",
            "input_format": self._mode.encoding,
        }
        options = {key: value for key, value in wanted.items() if value is not None}
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
        """Wait until the driver holds a picture. Raises FFmpeg's timeout where none comes in time."""
        if descriptor is None:
            return True
        deadline = time.monotonic() + self._patience.read_timeout_seconds
        while not stop.is_set():
            if select.select([descriptor], [], [], _GLANCE_SECONDS)[0]:
                return True
            if time.monotonic() > deadline:
                raise av.error.TimeoutError(110, "no picture")
        return False


def _descriptor_of(device: Path) -> int | None:
    """Return the number under which this process holds ``device`` open, None where that cannot be known."""
    listing = Path("/proc/self/fd")
    real = device.resolve()
    for entry in sorted(listing.iterdir() if listing.is_dir() else [], key=lambda p: int(p.name), reverse=True):
        try:
            if entry.readlink() == real:
                return int(entry.name)
        except OSError:
            continue
    return None

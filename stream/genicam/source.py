"""The source of industrial cameras (GigE Vision, USB3 Vision), with a GenTL producer or Aravis.

Features have the names of the Standard Features Naming Convention (SFNC), such as ``ExposureTime``.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Self

from pipeline.errors import ConnectionLostError, SourceError
from pipeline.frames import Frame, Image
from pipeline.ports import Health, Source
from pipeline.settings import SourceContext
from stream.genicam.aravis import ARAVIS, Aravis
from stream.genicam.device import Device, Grab, Transport
from stream.genicam.formats import ENCODINGS
from stream.limits import LIVE_MAX_PIXELS
from stream.pixels import ImageMessage, PixelConverter
from stream.reconnect import Backoff
from stream.settings import GenicamSettings

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.1
_NANOSECONDS: Final = 1_000_000_000
_MAX_GAP: Final = 1_000_000
"""A larger jump of the camera's frame number means that the camera reset its counter."""


class GenicamSource(Source):
    """The frames of one camera; a lost camera is reopened and its features are set again."""

    live = True

    def __init__(
        self, settings: GenicamSettings, camera: str | None, transport: Transport, backoff: Backoff | None = None
    ) -> None:
        """Create the source; the camera is opened by ``frames``.

        Args:
            settings: serial number, features and time limits.
            camera: the camera's name; None: ``genicam-SERIAL``.
            transport: the library that opens the camera.
            backoff: the delays between attempts.
        """
        self._serial = settings.serial
        self.camera = camera or f"genicam-{self._serial or 'first'}"
        self.uri = f"genicam:{self._serial}"
        self._settings, self._transport = settings, transport
        self._backoff, self._rng = backoff or Backoff(), random.Random()
        self._pixels = PixelConverter(settings.max_pixels or LIVE_MAX_PIXELS)
        self._index = -1  # index of the last image
        self._last_number: int | None = None
        self._corrupt = 0
        self._is_triggered = settings.features.get("TriggerMode") == "On"

    def __enter__(self) -> Self:
        self._transport.check(self.uri)
        return self

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames, and reopen the camera as needed, until ``stop`` is set.

        Raises:
            SourceError: a feature is unknown, or cannot have the requested value.
            ConnectionLostError: all attempts failed.
        """
        failures = 0
        while not stop.is_set():
            begun_at, before = time.monotonic(), self._index
            try:
                yield from self._connection(stop)
            except ConnectionError as error:
                failures = 1 if self._index > before else failures + 1
                self._wait(str(error), failures, stop, time.monotonic() - begun_at)

    def _connection(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of one connection. Raises ``ConnectionError`` when the camera is lost."""
        with self._transport.opened(self.uri, self._serial) as device:
            try:
                for name, value in self._settings.features.items():
                    device.set_feature(name, value)
                device.start()
                yield from self._images(device, stop)
            except ConnectionError as error:
                self._report_loss(str(error))  # at once: closing a lost camera takes seconds
                raise

    def _images(self, device: Device, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of a started camera. Raises ``ConnectionError``."""
        limit_seconds = math.inf if self._is_triggered else self._settings.read_timeout_seconds
        self._last_number, first_ns, incomplete = None, None, 0
        heard_at = time.monotonic()
        while not stop.is_set():
            grab, before, incomplete = device.fetch(_POLL_SECONDS), incomplete, device.incomplete()
            if incomplete > before:
                self._count_incomplete(incomplete - before, is_first=not before)
            if grab is None:
                if incomplete > before:  # incomplete images also show that the camera is connected
                    heard_at = time.monotonic()
                if time.monotonic() - heard_at > limit_seconds:
                    raise ConnectionError(f"no image for {limit_seconds:g} s")
                continue
            captured_at = heard_at = time.monotonic()
            first_ns = grab.stamp_ns if first_ns is None else first_ns
            self._advance(grab.number)
            image = self._image(grab)
            seconds = None
            if grab.stamp_ns is not None and first_ns is not None:
                seconds = (grab.stamp_ns - first_ns) / _NANOSECONDS
            if image is not None:
                self._set_live()
                yield Frame(image, self.camera, self._index, captured_at, seconds)

    def _advance(self, number: int | None) -> None:
        """Advance the frame index by the camera's own frame number."""
        step = 1
        if number is not None and self._last_number is not None and 0 < number - self._last_number < _MAX_GAP:
            step = number - self._last_number
        self._index += step
        self._last_number = number if number is not None else 0

    def _image(self, grab: Grab) -> Image | None:
        """Convert an image; None if it is damaged. Raises ``SourceError`` for an unsupported format."""
        encoding = ENCODINGS.get(grab.pixel_format)
        if encoding is None:
            raise SourceError(
                f"{self.uri}: pixel format {grab.pixel_format} is not supported; set another one, such as "
                f"genicam:{self._serial}?PixelFormat=Mono8; supported are {', '.join(sorted(ENCODINGS))}"
            )
        message = ImageMessage("raw", 0, encoding, grab.data, grab.width, grab.height)
        try:
            return self._pixels.convert(message)
        except SourceError as error:
            log.debug("%s: %s", self.camera, error)
            self._count_corrupt(1)
            return None

    def _count_incomplete(self, count: int, *, is_first: bool) -> None:
        if is_first:
            log.warning(
                "%s: incomplete images are dropped, because packets are lost; check the network, adjust "
                "GevSCPSPacketSize or GevSCPD, or set a lower rate",
                self.camera,
            )
        self._count_corrupt(count)

    def _count_corrupt(self, count: int) -> None:
        self._corrupt += count
        self.health = replace(self.health, corrupt=self._corrupt)

    def _set_live(self) -> None:
        # A triggered camera sends no image without a trigger, so silence is no fault; the producer reports a lost
        # camera.
        self.min_silence_seconds = math.inf if self._is_triggered else 0.0
        if self.health.state != "live":
            reconnects = self.health.reconnects + (self.health.state == "connecting" and self._index > 0)
            self.health = Health("live", reconnects=reconnects, corrupt=self._corrupt)

    def _report_loss(self, reason: str) -> None:
        self.min_silence_seconds = 0.0
        if reason != self.health.reason:
            log.warning("%s: %s; reopening it", self.camera, reason)
        cause: Any = "stalled" if reason.startswith("no image") else "unreachable"
        self.health = replace(self.health, state="waiting", reason=reason, cause=cause)

    def _wait(self, reason: str, failures: int, stop: threading.Event, spent_seconds: float) -> None:
        """Wait until the next attempt. Raises ``ConnectionLostError`` after the last attempt."""
        self._report_loss(reason)
        attempts = self._settings.attempts
        if attempts is not None and failures >= attempts:
            self.health = replace(self.health, state="failed")
            raise ConnectionLostError(
                f"{self.uri}: {reason} (attempt {failures} of {attempts}); check cable and power, and that no other "
                "program uses the camera"
            )
        stop.wait(self._backoff.delay_seconds(failures, self._rng, spent_seconds=spent_seconds))
        self.health = replace(self.health, state="connecting")


def open_genicam(settings: GenicamSettings, context: SourceContext) -> Source:
    """Create the source of one industrial camera.

    Raises:
        ModuleNotFoundError: a producer is set, but the packages that load it are not installed.
    """
    if settings.producer in {None, "", ARAVIS}:
        return GenicamSource(settings, context.camera, Aravis())
    from stream.genicam.gentl import Producers

    return GenicamSource(settings, context.camera, Producers(str(settings.producer)))

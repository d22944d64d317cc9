"""A source of industrial cameras: GigE Vision and USB3 Vision by any GenTL producer (GenICam, EMVA).

The camera maker's producer, a ``.cti`` file, speaks to the camera; features have the names of the Standard Features
Naming Convention (SFNC), such as ``ExposureTime``.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from genicam.genapi import GenericException as FeatureException
from genicam.genapi import IBoolean, ICommand, IEnumeration, IFloat, IInteger
from genicam.gentl import GenericException as ProducerException
from genicam.gentl import NotAvailableException
from harvesters.core import Callback, DeviceInfo, Harvester, ImageAcquirer

from pipeline.errors import ConnectionLostError, SourceError, did_you_mean
from pipeline.frames import Frame, Image
from pipeline.ports import Health, Source
from pipeline.settings import SourceContext
from stream.bags.images import PixelConverter
from stream.bags.messages import ImageMessage
from stream.limits import LIVE_MAX_PIXELS
from stream.reconnect import Backoff
from stream.settings import GenicamSettings

log = logging.getLogger(__name__)
logging.getLogger("harvesters").setLevel(logging.ERROR)  # incomplete images are counted here

_POLL_SECONDS: Final = 0.1
_RESCAN_MILLISECONDS: Final = 1000
_NANOSECONDS: Final = 1_000_000_000
_MAX_GAP: Final = 1_000_000
"""A larger jump of the camera's frame number is a counter that began again."""
_BAYER: Final = {"RG": "rggb", "GR": "grbg", "GB": "gbrg", "BG": "bggr"}
_ENCODINGS: Final = {
    "RGB8": "rgb8",
    "BGR8": "bgr8",
    "RGBa8": "rgba8",
    "BGRa8": "bgra8",
    "YUV422_8": "yuv422_yuy2",
    "YUV422_8_UYVY": "yuv422",
    **{f"Mono{bits}": "mono8" if bits == 8 else "mono16" for bits in (8, 10, 12, 14, 16)},
    **{
        f"Bayer{name}{bits}": f"bayer_{pattern}{8 if bits == 8 else 16}"
        for name, pattern in _BAYER.items()
        for bits in (8, 10, 12, 16)
    },
}
"""Pixel formats (PFNC) that are read, and their names in image messages."""


class GenicamSource(Source):
    """Frames of one camera; after a lost connection it is opened again, with its features set again."""

    live = True

    def __init__(self, settings: GenicamSettings, camera: str | None, backoff: Backoff | None = None) -> None:
        """Set the options; nothing is opened yet.

        Args:
            settings: serial number, producer, features and time limits.
            camera: the camera's name; None: ``genicam-SERIAL``.
            backoff: the waits between two attempts.
        """
        self._serial = settings.serial
        self.camera = camera or f"genicam-{self._serial or 'first'}"
        self.uri = f"genicam:{self._serial}"
        self._settings = settings
        self._backoff, self._rng = backoff or Backoff(), random.Random()
        self._producers: tuple[Path, ...] = ()
        self._pixels = PixelConverter(settings.max_pixels or LIVE_MAX_PIXELS)
        self._index = 0
        self._last_number: int | None = None
        self._corrupt = 0
        self._is_triggered = settings.features.get("TriggerMode") == "On"

    def __enter__(self) -> Self:
        self._producers = _producers(self.uri, self._settings.producer)
        return self

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames, and open the camera again as needed, until ``stop`` is set.

        Raises:
            SourceError: a feature is unknown or cannot have its value.
            ConnectionLostError: all attempts failed.
        """
        failures = 0
        while not stop.is_set():
            begun_at, before = time.monotonic(), self._index
            try:
                yield from self._connection(stop)
            except (ProducerException, ConnectionError) as error:
                failures = 1 if self._index > before else failures + 1
                self._wait(_reason(error), failures, stop, time.monotonic() - begun_at)

    def _connection(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of one connection; raises ``ConnectionError`` or a producer's error when it is lost."""
        with self._opened() as acquirer:
            self._set_features(acquirer)
            self._last_number, first_ns = None, None
            events = acquirer.Events
            acquirer.add_callback(events.INCOMPLETE_BUFFER, _Counter(self._count_incomplete))
            acquirer.start()
            heard_at = time.monotonic()
            while not stop.is_set():
                buffer = acquirer.try_fetch(timeout=_POLL_SECONDS)
                if buffer is None:
                    if not self._is_triggered and time.monotonic() - heard_at > self._settings.read_timeout_seconds:
                        raise ConnectionError(f"no image for {self._settings.read_timeout_seconds:g} s")
                    continue
                captured_at = heard_at = time.monotonic()
                with buffer:
                    stamp_ns = _stamp_ns(buffer)
                    first_ns = stamp_ns if first_ns is None else first_ns
                    self._advance(buffer)
                    image = self._image(buffer)
                seconds = None if stamp_ns is None or first_ns is None else (stamp_ns - first_ns) / _NANOSECONDS
                if image is not None:
                    self._set_live()
                    yield Frame(image, self.camera, self._index, captured_at, seconds)

    @contextmanager
    def _opened(self) -> Iterator[ImageAcquirer]:
        """Open the camera. Raises ``ConnectionError`` if it is not there, or a producer's error."""
        with _loaded(self._producers) as harvester:
            acquirer = self._create(harvester)
            try:
                yield acquirer
            finally:
                with _LOCK:
                    acquirer.destroy()

    def _create(self, harvester: Harvester) -> ImageAcquirer:
        with _LOCK:
            _rescan(harvester)
            serials = [device.serial_number for device in harvester.device_info_list]
            if not serials or (self._serial and self._serial not in serials):
                raise ConnectionError(f"no camera {self._serial}; the producer finds {', '.join(serials) or 'none'}")
            return harvester.create({"serial_number": self._serial} if self._serial else 0)

    def _set_features(self, acquirer: ImageAcquirer) -> None:
        """Set the features in their order. Raises ``SourceError``."""
        nodes = acquirer.remote_device.node_map
        for name, value in self._settings.features.items():
            _set_feature(self.uri, nodes, name, value)

    def _advance(self, buffer: Any) -> None:  # noqa: ANN401 - harvesters' buffer
        """Advance the frame index by the camera's own frame number."""
        try:
            number = int(buffer.module.frame_id)
        except ProducerException:
            number = None
        step = 1
        if number is not None and self._last_number is not None and 0 < number - self._last_number < _MAX_GAP:
            step = number - self._last_number
        self._index += step if self._last_number is not None or self._index else 0
        self._last_number = number if number is not None else 0

    def _image(self, buffer: Any) -> Image | None:  # noqa: ANN401 - harvesters' buffer
        """Return the image of a buffer; None for one that is damaged. Raises ``SourceError`` for an unknown format."""
        part = buffer.payload.components[0]
        encoding = _ENCODINGS.get(part.data_format)
        if encoding is None:
            raise SourceError(
                f"{self.uri}: pixel format {part.data_format} is not read; set another one, such as "
                f"genicam:{self._serial}?PixelFormat=Mono8 ({', '.join(sorted(_ENCODINGS))})"
            )
        message = ImageMessage("raw", 0, encoding, part.data.tobytes(), int(part.width), int(part.height))
        try:
            return self._pixels.convert(message)
        except SourceError as error:
            self._count_incomplete(str(error))
            return None

    def _count_incomplete(self, reason: str = "an image is incomplete") -> None:
        self._corrupt += 1
        self.health = replace(self.health, corrupt=self._corrupt)
        log.debug("%s: %s", self.camera, reason)

    def _set_live(self) -> None:
        # Without a trigger there is no image, which is no fault; the producer reports a lost camera.
        self.min_silence_seconds = math.inf if self._is_triggered else 0.0
        if self.health.state != "live":
            reconnects = self.health.reconnects + (self.health.state == "connecting" and self._index > 0)
            self.health = Health("live", reconnects=reconnects, corrupt=self._corrupt)

    def _wait(self, reason: str, failures: int, stop: threading.Event, spent_seconds: float) -> None:
        """Wait until the next attempt. Raises ``ConnectionLostError`` after the last one."""
        self.min_silence_seconds = 0.0
        attempts = self._settings.attempts
        if reason != self.health.reason:
            log.warning("%s: %s; opening it again", self.camera, reason)
        is_last = attempts is not None and failures >= attempts
        cause: Any = "stalled" if reason.startswith("no image") else "unreachable"
        self.health = replace(self.health, state="failed" if is_last else "waiting", reason=reason, cause=cause)
        if is_last:
            raise ConnectionLostError(
                f"{self.uri}: {reason} (attempt {failures} of {attempts}); check cable and power, and that no other "
                "program uses the camera"
            )
        stop.wait(self._backoff.delay_seconds(failures, self._rng, spent_seconds=spent_seconds))
        self.health = replace(self.health, state="connecting")


@dataclass(slots=True)
class _Loaded:
    """Producers in use."""

    harvester: Harvester
    users: int = 0
    """Number of cameras."""


class _Counter(Callback):  # type: ignore[misc]
    """A callback of harvesters."""

    def __init__(self, count: Callable[[], None]) -> None:
        super().__init__()
        self._count = count

    def emit(self, context: object = None) -> None:  # noqa: ARG002 - harvesters' signature
        """Count an incomplete image."""
        self._count()


# Guards the producers: a process can load each only once, for all cameras, and their lists of cameras are shared.
_LOCK: Final = threading.Lock()
_LOADED: Final[dict[tuple[Path, ...], _Loaded]] = {}


@contextmanager
def _loaded(producers: tuple[Path, ...]) -> Iterator[Harvester]:
    """Load the producers, unless another camera has loaded them; unload them after the last one."""
    with _LOCK:
        loaded = _LOADED.get(producers)
        if loaded is None:
            loaded = _LOADED[producers] = _Loaded(Harvester())
            for producer in producers:
                loaded.harvester.add_file(str(producer))
            loaded.harvester.update()
        loaded.users += 1
    try:
        yield loaded.harvester
    finally:
        with _LOCK:
            loaded.users -= 1
            if not loaded.users:
                del _LOADED[producers]
                loaded.harvester.reset()


def _rescan(harvester: Harvester) -> None:
    """Find the cameras that are connected now. Harvesters' own ``update`` would close the cameras in use."""
    found = []
    for interface in harvester._ifaces:  # noqa: SLF001 - there is no public list
        interface.module.update_device_info_list(_RESCAN_MILLISECONDS)
        found += [DeviceInfo(module=module, parent=interface) for module in interface.module.device_info_list]
    harvester.device_info_list[:] = found


def open_genicam(settings: GenicamSettings, context: SourceContext) -> Source:
    """Return the source of one industrial camera."""
    return GenicamSource(settings, context.camera)


def _producers(uri: str, producer: str | None) -> tuple[Path, ...]:
    """Return the files of the producers: those named, or all in the named folders. Raises ``SourceError``."""
    if not producer:
        raise SourceError(
            f"{uri}: no GenTL producer is known; install the camera maker's, which sets GENICAM_GENTL64_PATH, or give "
            "its file: producer: /opt/MAKER/lib/NAME.cti"
        )
    files: list[Path] = []
    for place in map(Path, filter(None, producer.split(os.pathsep))):
        files += sorted(place.glob("*.cti")) if place.is_dir() else [place]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise SourceError(
            f"{uri}: {missing[0] if missing else producer}: holds no GenTL producer (.cti); check the path"
        )
    return tuple(files)


def _set_feature(uri: str, nodes: Any, name: str, value: str) -> None:  # noqa: ANN401 - a node map
    """Set a feature of a camera from its text. Raises ``SourceError``."""
    known = [each for each in dir(nodes) if each[0].isupper()]
    if name not in known:
        raise SourceError(f"{uri}: the camera has no feature {name!r}.{did_you_mean(name, known)}")
    node = getattr(nodes, name)
    try:
        if isinstance(node, ICommand):
            node.execute()
        else:
            node.value = _converted(node, value)
    except ValueError:
        raise SourceError(f"{uri}: {name}={value}: should be a number") from None
    except FeatureException as error:
        raise SourceError(f"{uri}: {name}={value}: {_rule(node, error)}") from None


def _converted(node: object, value: str) -> bool | int | float | str:
    if isinstance(node, IBoolean):
        return value.lower() in {"1", "true", "on", "yes"}
    if isinstance(node, IInteger):
        return int(value, 0)
    return float(value) if isinstance(node, IFloat) else value


def _rule(node: Any, error: Exception) -> str:  # noqa: ANN401 - a node
    """Return the values that a feature may have, as far as the camera states them."""
    if isinstance(node, IEnumeration):
        return f"should be {', '.join(node.symbolics)}"
    if isinstance(node, (IInteger, IFloat)):
        return f"should be from {node.min} to {node.max}"
    return str(error).partition(" : ")[0]


def _stamp_ns(buffer: Any) -> int | None:  # noqa: ANN401 - harvesters' buffer
    """Return the camera's own time of an image; None if the camera does not state it."""
    try:
        return int(buffer.timestamp_ns)
    except NotAvailableException:
        return None


def _reason(error: Exception) -> str:
    """Return the reason of a lost connection, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__

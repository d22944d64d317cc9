"""Opens industrial cameras with a GenTL producer (GenICam, EMVA): their maker's library, a .cti file."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from genicam.genapi import GenericException as FeatureException
from genicam.genapi import IBoolean, ICommand, IEnumeration, IFloat, IInteger
from genicam.gentl import GenericException as ProducerException
from genicam.gentl import NotAvailableException
from harvesters.core import Callback, DeviceInfo, Harvester, ImageAcquirer

from pipeline.errors import SourceError, did_you_mean
from stream.genicam.device import Device, Grab, Transport

logging.getLogger("harvesters").setLevel(logging.ERROR)  # incomplete images are counted here

_RESCAN_MILLISECONDS: Final = 1000


class Producers(Transport):
    """Finds and opens cameras with GenTL producers."""

    def __init__(self, producer: str) -> None:
        """Create it from files or folders of producers, separated as in GENICAM_GENTL64_PATH."""
        self._producer = producer

    def check(self, uri: str) -> None:
        """Raise ``SourceError`` if a file is missing."""
        self.files(uri)

    def files(self, uri: str) -> tuple[Path, ...]:
        """Return the ``.cti`` files of the producers. Raises ``SourceError``."""
        files: list[Path] = []
        for place in map(Path, filter(None, self._producer.split(os.pathsep))):
            files += sorted(place.glob("*.cti")) if place.is_dir() else [place]
        if not files:
            raise SourceError(f"{uri}: {self._producer}: contains no GenTL producer (a .cti file); check the path")
        for file in files:
            if not file.is_file():
                fault = "is not a file" if file.exists() else "no such file or folder"
                raise SourceError(f"{uri}: GenTL producer {file}: {fault}; check the path")
        return tuple(files)

    @contextmanager
    def opened(self, uri: str, serial: str) -> Iterator[Device]:
        """Open a camera. Raises ``ConnectionError``."""
        with _loaded(self.files(uri)) as harvester:
            with _connection_errors():
                acquirer = _create(harvester, serial)
            try:
                yield _GentlDevice(uri, acquirer)
            finally:
                with _LOCK:
                    acquirer.destroy()


class _GentlDevice(Device):
    """A camera opened by harvesters."""

    def __init__(self, uri: str, acquirer: ImageAcquirer) -> None:
        self._uri, self._acquirer = uri, acquirer
        self._incomplete = 0

    def set_feature(self, name: str, value: str) -> None:
        with _connection_errors():
            _set_feature(self._uri, self._acquirer.remote_device.node_map, name, value)

    def start(self) -> None:
        with _connection_errors():
            events = self._acquirer.Events
            self._acquirer.add_callback(events.INCOMPLETE_BUFFER, _Counter(self._count))
            self._acquirer.start()

    def fetch(self, timeout_seconds: float) -> Grab | None:
        with _connection_errors():
            buffer = self._acquirer.try_fetch(timeout=timeout_seconds)
            if buffer is None:
                return None
            with buffer:
                part = buffer.payload.components[0]
                # Harvesters returns unpacked pixels without padding.
                return Grab(
                    part.data_format,
                    part.data.tobytes(),
                    int(part.width),
                    int(part.height),
                    number=_stated(lambda: buffer.module.frame_id),
                    stamp_ns=_stated(lambda: buffer.timestamp_ns),
                )

    def incomplete(self) -> int:
        return self._incomplete

    def _count(self) -> None:
        self._incomplete += 1


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Convert a producer's error to a ``ConnectionError`` with a message of one line."""
    try:
        yield
    except ProducerException as error:
        raise ConnectionError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _stated(read: Callable[[], Any]) -> int | None:
    """Return a number from a buffer; None if the camera does not send it."""
    try:
        return int(read())
    except NotAvailableException:
        return None


def _create(harvester: Harvester, serial: str) -> ImageAcquirer:
    with _LOCK:
        _rescan(harvester)
        serials = [device.serial_number for device in harvester.device_info_list]
        if not serials or (serial and serial not in serials):
            name = f" {serial}" if serial else ""
            raise ConnectionError(f"there is no camera{name}; the producer finds {', '.join(serials) or 'none'}")
        return harvester.create({"serial_number": serial} if serial else 0)


@dataclass(slots=True)
class _Loaded:
    """Producers that are loaded, with the number of cameras that use them."""

    harvester: Harvester
    users: int = 0
    """Number of open cameras."""


class _Counter(Callback):  # type: ignore[misc]
    """A callback of harvesters."""

    def __init__(self, count: Callable[[], None]) -> None:
        super().__init__()
        self._count = count

    def emit(self, context: object = None) -> None:  # noqa: ARG002 - harvesters' signature
        """Count an incomplete image."""
        self._count()


# Protects the producers: a process can load each only once, and all cameras share its list of cameras.
_LOCK: Final = threading.Lock()
_LOADED: Final[dict[tuple[Path, ...], _Loaded]] = {}


@contextmanager
def _loaded(producers: tuple[Path, ...]) -> Iterator[Harvester]:
    """Load the producers for the first camera; unload them after the last camera."""
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
    """Find the connected cameras. Harvesters' own ``update`` would close the cameras in use."""
    found = []
    for interface in harvester._ifaces:  # noqa: SLF001 - there is no public list
        interface.module.update_device_info_list(_RESCAN_MILLISECONDS)
        found += [DeviceInfo(module=module, parent=interface) for module in interface.module.device_info_list]
    harvester.device_info_list[:] = found


def _set_feature(uri: str, nodes: Any, name: str, value: str) -> None:  # noqa: ANN401 - a node map
    """Set a feature of a camera to ``value``. Raises ``SourceError``."""
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
    """Return the allowed values of a feature as text, or else the error's text."""
    if isinstance(node, IEnumeration):
        return f"should be one of {', '.join(node.symbolics)}"
    if isinstance(node, (IInteger, IFloat)):
        return f"should be from {node.min} to {node.max}"
    return str(error).partition(" : ")[0]

"""Opens industrial cameras with Aravis, a free library that needs no GenTL producer."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ipaddress
import threading
import time
from collections.abc import Iterator
from typing import Final

from pipeline.errors import SourceError, did_you_mean
from stream.genicam.device import Device, Grab, Transport
from stream.genicam.formats import CODES, unpacked
from stream.genicam.libaravis import LIBRARY, SUCCESS, UNUSED, AravisError, Library

ARAVIS: Final = "aravis"
"""The value of ``producer`` that chooses Aravis."""
_BUFFERS: Final = 8
_MICROSECONDS: Final = 1_000_000
_CHECK_SECONDS: Final = 1.0
"""Time without an image after which the connection to the camera is checked."""
_TRUE: Final = frozenset({"1", "true", "on", "yes"})

# Protects the library's list of cameras, which each search replaces.
_LOCK: Final = threading.Lock()


@functools.cache
def library() -> Library | None:
    """Load Aravis; return None if it is not installed or too old."""
    try:
        return Library()
    except (OSError, AttributeError):
        return None


class Aravis(Transport):
    """Finds and opens cameras with Aravis."""

    def check(self, uri: str) -> None:
        """Raise ``SourceError`` if the library is missing."""
        if library() is None:
            raise SourceError(
                f"{uri}: Aravis is missing or too old ({LIBRARY} cannot be loaded): apt install libaravis-0.8-0; "
                "or install the camera maker's GenTL producer, which sets GENICAM_GENTL64_PATH, or set its file: "
                "producer: /opt/MAKER/lib/NAME.cti"
            )

    @contextlib.contextmanager
    def opened(self, uri: str, serial: str) -> Iterator[Device]:
        """Open a camera. Raises ``ConnectionError``."""
        lib = library()
        if lib is None:
            raise ConnectionError(f"{LIBRARY} cannot be loaded; apt install libaravis-0.8-0")
        try:
            with _LOCK:
                camera = lib.call("arv_camera_new", _find(lib, serial).encode())
        except AravisError as error:
            raise ConnectionError(str(error)) from None
        device = _AravisDevice(uri, lib, camera)
        try:
            device.check()
            yield device
        finally:
            device.close()


def _find(lib: Library, serial: str) -> str:
    """Return Aravis's identifier of a camera. Raises ``ConnectionError``."""
    if _is_address(serial):  # a search does not find cameras behind a router
        return serial
    lib.arv_update_device_list()
    found: dict[str, str] = {}
    for at in range(lib.arv_get_n_devices()):
        names = (lib.arv_get_device_id(at), lib.arv_get_device_serial_nbr(at), lib.arv_get_device_address(at))
        identity, *others = [(name or b"").decode(errors="replace") for name in names]
        if serial in {identity, *others} or not serial:
            return identity
        found[others[0] or identity] = identity
    name = f" {serial}" if serial else ""
    raise ConnectionError(f"there is no camera{name}; Aravis finds {', '.join(found) or 'none'}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class _AravisDevice(Device):
    """A camera opened by Aravis."""

    def __init__(self, uri: str, lib: Library, camera: int) -> None:
        self._uri, self._lib, self._camera = uri, lib, camera
        self._device = lib.arv_camera_get_device(camera)
        self._stream: int | None = None
        self._incomplete = 0
        self._heard_at = self._checked_at = time.monotonic()

    def check(self) -> None:
        """Raise ``ConnectionError`` if the camera is disconnected, or another program controls it."""
        if self._lib.arv_camera_is_gv_device(self._camera):
            if not self._lib.arv_gv_device_is_controller(self._device):  # Aravis polls the camera each second
                raise ConnectionError("the camera is disconnected, or another program controls it")
            return
        try:
            self._lib.call("arv_device_read_register", self._device, 0, ctypes.byref(ctypes.c_uint32()))
        except AravisError as error:
            raise ConnectionError(f"the camera is disconnected ({error})") from None

    def set_feature(self, name: str, value: str) -> None:
        """Set a feature to ``value``. Raises ``SourceError``; ``ConnectionError`` if disconnected."""
        node = self._lib.arv_device_get_feature(self._device, name.encode())
        if not node or self._lib.is_a(node, "category"):
            known = list(self._lib.features(self._device))
            raise SourceError(f"{self._uri}: the camera has no feature {name!r}.{did_you_mean(name, known)}")
        try:
            self._set(node, name, value)
        except ValueError:
            raise SourceError(f"{self._uri}: {name}={value}: should be a number") from None
        except AravisError as error:
            self.check()
            raise SourceError(f"{self._uri}: {name}={value}: {error}") from None

    def _set(self, node: int, name: str, value: str) -> None:
        """Set a feature by its type. Raises ``ValueError``, ``AravisError`` or ``SourceError``."""
        # An enumeration is also an integer, so the order of the tests matters.
        kinds = ("command", "enumeration", "boolean", "float", "integer")
        kind = next((kind for kind in kinds if self._lib.is_a(node, kind)), "string")
        arguments = (self._device, name.encode())
        if kind == "command":
            self._lib.call("arv_device_execute_command", *arguments)
        elif kind == "boolean":
            self._lib.call("arv_device_set_boolean_feature_value", *arguments, value.lower() in _TRUE)
        elif kind in {"float", "integer"}:
            number = float(value) if kind == "float" else int(value, 0)
            low, high = self._lib.bounds(self._device, name, kind)
            if not low <= number <= high:
                raise SourceError(f"{self._uri}: {name}={value}: should be from {low:.10g} to {high:.10g}")
            self._lib.call(f"arv_device_set_{kind}_feature_value", *arguments, number)
        else:
            choices = self._lib.choices(self._device, name) if kind == "enumeration" else []
            if choices and value not in choices:
                raise SourceError(f"{self._uri}: {name}={value}: should be one of {', '.join(choices)}")
            self._lib.call("arv_device_set_string_feature_value", *arguments, value.encode())

    def start(self) -> None:
        """Start the acquisition. Raises ``ConnectionError``."""
        try:
            self._stream = self._lib.call("arv_camera_create_stream", self._camera, None, None)
            payload = self._lib.call("arv_camera_get_payload", self._camera)
            for _ in range(_BUFFERS):
                self._lib.arv_stream_push_buffer(self._stream, self._lib.arv_buffer_new_allocate(payload))
            self._lib.call("arv_camera_start_acquisition", self._camera)
        except AravisError as error:
            raise ConnectionError(str(error)) from None
        self._heard_at = time.monotonic()

    def fetch(self, timeout_seconds: float) -> Grab | None:
        """Return the next complete image. Raises ``ConnectionError``."""
        buffer = self._lib.arv_stream_timeout_pop_buffer(self._stream, int(timeout_seconds * _MICROSECONDS))
        if not buffer:
            if time.monotonic() - max(self._heard_at, self._checked_at) > _CHECK_SECONDS:
                self.check()
                self._checked_at = time.monotonic()
            return None
        self._heard_at = time.monotonic()
        try:
            return self._grab(buffer)
        finally:
            self._lib.arv_stream_push_buffer(self._stream, buffer)

    def _grab(self, buffer: int) -> Grab | None:
        status = self._lib.arv_buffer_get_status(buffer)
        if status != SUCCESS:
            self._incomplete += status not in UNUSED
            return None
        data, width, height, code = self._lib.image(buffer)
        name = CODES.get(code, f"0x{code:08X}")
        return Grab(
            name,
            unpacked(name, data),
            width,
            height,
            number=self._lib.arv_buffer_get_frame_id(buffer),
            stamp_ns=self._lib.arv_buffer_get_timestamp(buffer) or None,
        )

    def incomplete(self) -> int:
        """Return the number of images with lost packets."""
        return self._incomplete

    def close(self) -> None:
        """Stop the acquisition and release the camera, which also ends its stream."""
        if self._stream is not None:
            if time.monotonic() - self._heard_at < _CHECK_SECONDS:  # a disconnected camera would block for seconds
                with contextlib.suppress(AravisError):
                    self._lib.call("arv_camera_stop_acquisition", self._camera)
            self._lib.g_object_unref(self._stream)
        self._lib.g_object_unref(self._camera)

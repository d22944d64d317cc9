"""Bindings to the functions of Aravis that are used here, with ctypes.

PyGObject has no wheel for Linux, so its installation would need a compiler and GObject's headers; Debian's package
works only with Debian's own Python. Aravis 0.8 keeps its C interface, so the functions are declared here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any, Final

LIBRARY: Final = "libaravis-0.8.so.0"
SUCCESS: Final = 0
"""Buffer status: the image is complete."""
_CLEARED: Final = 1
_ABORTED: Final = 7
UNUSED: Final = frozenset({-1, _CLEARED, _ABORTED})
"""Buffer statuses: the buffer was returned without an image, because the stream ended."""


class _Error(ctypes.Structure):
    """GError."""

    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


class _ListNode(ctypes.Structure):
    """GSList."""


_ListNode._fields_ = (("data", c_char_p), ("next", POINTER(_ListNode)))  # a type that contains itself

_ERROR: Final = POINTER(POINTER(_Error))
_DECLARED: Final[dict[str, tuple[Any, ...]]] = {
    # result type, then parameter types; functions that end with _ERROR are called by `Library.call`
    "arv_update_device_list": (None,),
    "arv_get_n_devices": (c_uint,),
    "arv_get_device_id": (c_char_p, c_uint),
    "arv_get_device_serial_nbr": (c_char_p, c_uint),
    "arv_get_device_address": (c_char_p, c_uint),
    "arv_camera_new": (c_void_p, c_char_p, _ERROR),
    "arv_camera_get_device": (c_void_p, c_void_p),
    "arv_camera_is_gv_device": (c_int, c_void_p),
    "arv_camera_get_payload": (c_uint, c_void_p, _ERROR),
    "arv_camera_create_stream": (c_void_p, c_void_p, c_void_p, c_void_p, _ERROR),
    "arv_camera_start_acquisition": (None, c_void_p, _ERROR),
    "arv_camera_stop_acquisition": (None, c_void_p, _ERROR),
    "arv_gv_device_is_controller": (c_int, c_void_p),
    "arv_device_read_register": (c_int, c_void_p, c_uint64, POINTER(c_uint32), _ERROR),
    "arv_device_get_feature": (c_void_p, c_void_p, c_char_p),
    "arv_device_execute_command": (None, c_void_p, c_char_p, _ERROR),
    "arv_device_set_boolean_feature_value": (None, c_void_p, c_char_p, c_int, _ERROR),
    "arv_device_set_integer_feature_value": (None, c_void_p, c_char_p, c_int64, _ERROR),
    "arv_device_set_float_feature_value": (None, c_void_p, c_char_p, c_double, _ERROR),
    "arv_device_set_string_feature_value": (None, c_void_p, c_char_p, c_char_p, _ERROR),
    "arv_device_get_integer_feature_bounds": (
        None, c_void_p, c_char_p, POINTER(c_int64), POINTER(c_int64), _ERROR,
    ),
    "arv_device_get_float_feature_bounds": (
        None, c_void_p, c_char_p, POINTER(c_double), POINTER(c_double), _ERROR,
    ),
    "arv_device_dup_available_enumeration_feature_values_as_strings": (
        POINTER(c_char_p), c_void_p, c_char_p, POINTER(c_uint), _ERROR,
    ),
    "arv_gc_category_get_features": (POINTER(_ListNode), c_void_p),
    **{
        f"arv_gc_{name}_get_type": (c_size_t,)
        for name in ("boolean", "category", "command", "enumeration", "float", "integer")
    },
    "arv_stream_push_buffer": (None, c_void_p, c_void_p),
    "arv_stream_timeout_pop_buffer": (c_void_p, c_void_p, c_uint64),
    "arv_buffer_new_allocate": (c_void_p, c_size_t),
    "arv_buffer_get_status": (c_int, c_void_p),
    "arv_buffer_get_image_data": (c_void_p, c_void_p, POINTER(c_size_t)),
    "arv_buffer_get_image_width": (c_int, c_void_p),
    "arv_buffer_get_image_height": (c_int, c_void_p),
    "arv_buffer_get_image_padding": (None, c_void_p, POINTER(c_int), POINTER(c_int)),
    "arv_buffer_get_image_pixel_format": (c_uint32, c_void_p),
    "arv_buffer_get_frame_id": (c_uint64, c_void_p),
    "arv_buffer_get_timestamp": (c_uint64, c_void_p),
    # from GLib and GObject, on which Aravis depends
    "g_error_free": (None, POINTER(_Error)),
    "g_free": (None, c_void_p),
    "g_object_unref": (None, c_void_p),
    "g_type_check_instance_is_a": (c_int, c_void_p, c_size_t),
}  # fmt: skip


class AravisError(Exception):
    """A function of Aravis reported an error."""


class Library:
    """The loaded library; its functions are attributes."""

    def __init__(self) -> None:
        """Load it. Raises ``OSError`` if it is not installed, ``AttributeError`` if it is too old."""
        shared = ctypes.CDLL(LIBRARY)
        self._functions: dict[str, Callable[..., Any]] = {}
        for name, (result, *parameters) in _DECLARED.items():
            function = getattr(shared, name)
            function.restype, function.argtypes = result, parameters
            self._functions[name] = function

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the declared function ``name``."""
        try:
            return self.__dict__["_functions"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - as declared
        """Call the function ``name``, which reports errors, and return its result.

        Raises:
            AravisError: the function reported an error.
        """
        error = POINTER(_Error)()
        result = self._functions[name](*arguments, byref(error))
        if error:
            reason = (error.contents.message or b"").decode(errors="replace")
            self.g_error_free(error)
            raise AravisError(reason or name)
        return result

    def is_a(self, node: int, kind: str) -> bool:
        """Return whether a feature node is of type ``kind``: ``boolean``, ``category`` and so on."""
        return bool(self.g_type_check_instance_is_a(node, self._functions[f"arv_gc_{kind}_get_type"]()))

    def features(self, device: int, category: str = "Root") -> Iterator[str]:
        """Yield the names of a camera's features below ``category``, recursively."""
        node = self.arv_device_get_feature(device, category.encode())
        if not node or not self.is_a(node, "category"):
            return
        item = self.arv_gc_category_get_features(node)
        while item:
            name = item.contents.data.decode()
            child = self.arv_device_get_feature(device, name.encode())
            if child and self.is_a(child, "category"):
                yield from self.features(device, name)
            elif child:
                yield name
            item = item.contents.next

    def choices(self, device: int, name: str) -> list[str]:
        """Return the currently allowed values of an enumeration. Raises ``AravisError``."""
        count = c_uint()
        call = "arv_device_dup_available_enumeration_feature_values_as_strings"
        values = self.call(call, device, name.encode(), byref(count))
        try:
            return [values[at].decode() for at in range(count.value)]
        finally:
            self.g_free(ctypes.cast(values, c_void_p))

    def bounds(self, device: int, name: str, kind: str) -> tuple[float, float]:
        """Return minimum and maximum of a feature; ``kind`` is ``integer`` or ``float``. Raises ``AravisError``."""
        number: Any = c_int64 if kind == "integer" else c_double
        low, high = number(), number()
        self.call(f"arv_device_get_{kind}_feature_bounds", device, name.encode(), byref(low), byref(high))
        return low.value, high.value

    def image(self, buffer: int) -> tuple[bytes, int, int, int]:
        """Return an image's bytes without row padding, its width, height and pixel format code (PFNC)."""
        size, x_padding, y_padding = c_size_t(), c_int(), c_int()
        data = self.arv_buffer_get_image_data(buffer, byref(size))
        width, height = self.arv_buffer_get_image_width(buffer), self.arv_buffer_get_image_height(buffer)
        code = self.arv_buffer_get_image_pixel_format(buffer)
        self.arv_buffer_get_image_padding(buffer, byref(x_padding), byref(y_padding))
        raw = ctypes.string_at(data, size.value) if data else b""
        if x_padding.value > 0:
            used = width * (code >> 16 & 0xFF) // 8  # bits per pixel, from the format code
            step = used + x_padding.value
            raw = b"".join(raw[row * step : row * step + used] for row in range(height))
        return raw, width, height, code

"""Images that stay in the memory of a GPU until something on the host reads them.

A GPU decoder writes NV12: rows of luma, then rows of interleaved chroma at half the resolution. The engine copies and
reads these planes on the device; the host gets the RGB image at the first access.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Nv12 = npt.NDArray[np.uint8]
"""An NV12 image in host memory, uint8 (height * 3 // 2, width); height and width are even."""


class YuvColours(NamedTuple):
    """The conversion of a YUV image to RGB (ITU-T H.273)."""

    kr: float
    """Weight of red in luma, such as 0.299 in BT.601."""
    kb: float
    """Weight of blue in luma."""
    full_range: bool
    """True: luma has 0 to 255; False: 16 to 235."""


class DlpackPlane(Protocol):
    """A plane of a decoded image in device memory (DLPack)."""

    def __dlpack__(self) -> Any:  # noqa: ANN401 - a capsule
        """Return the plane as a DLPack capsule."""
        ...


class DevicePlanes(Protocol):
    """A copy of an NV12 image in device memory."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        ...

    @property
    def nbytes(self) -> int:
        """Used device memory in bytes."""
        ...

    def download(self) -> Nv12:
        """Return the image in host memory."""
        ...


class DeviceMemoryFullError(MemoryError):
    """The device has no memory for another image."""


CopyPlanes = Callable[[DlpackPlane, DlpackPlane], DevicePlanes]
"""Copies the luma plane and the chroma plane of a decoded image into memory of the engine's device.

When it returns, the copy is complete and the decoder may reuse its surface. It raises ``DeviceMemoryFullError`` if the
device has no memory for the copy.
"""


class DeviceImage:
    """An image in device memory. Several threads may share it."""

    __slots__ = ("_host", "_lock", "_to_rgb", "colours", "planes")

    def __init__(
        self, planes: DevicePlanes, colours: YuvColours, to_rgb: Callable[[Nv12], npt.NDArray[np.uint8]]
    ) -> None:
        """Create an image.

        Args:
            planes: the image in device memory.
            colours: the conversion to RGB.
            to_rgb: converts the downloaded image to RGB, uint8 (height, width, 3).
        """
        self.planes = planes
        self.colours = colours
        self._to_rgb = to_rgb
        self._lock = threading.Lock()
        self._host: npt.NDArray[np.uint8] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the image on the host: (height, width, 3)."""
        return (*self.planes.size, 3)

    @property
    def nbytes(self) -> int:
        """Memory in bytes that the image uses at most: on the device, and on the host once it is downloaded.

        Constant, so that what a queue adds for an image is what it subtracts later.
        """
        return self.planes.nbytes + math.prod(self.shape)

    @property
    def is_downloaded(self) -> bool:
        """True if the image is in host memory, too."""
        return self._host is not None

    def download(self) -> npt.NDArray[np.uint8]:
        """Return the RGB image in host memory, uint8 (height, width, 3), read-only; downloads it once."""
        with self._lock:
            if self._host is None:
                image = self._to_rgb(self.planes.download())
                image.flags.writeable = False
                self._host = image
            return self._host

"""Converts raw images to RGB: mono, colour, Bayer and YUV, with 8 or 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import SourceError
from pipeline.frames import Image
from stream.bit_depth import eight_bits, value_bits
from stream.limits import check_size

Form = Literal["raw", "compressed", "video"]

# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first row's first two.
_BAYER: Final = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}
_ALIASES: Final = {"8uc1": "mono8", "8uc3": "bgr8", "8uc4": "bgra8", "16uc1": "mono16", "16uc3": "bgr16"}
_CHANNELS: Final = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
_YUV: Final = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
}


@dataclass(frozen=True, slots=True)
class ImageMessage:
    """An image message of ROS or Foxglove, or a raw image of an industrial camera."""

    form: Form
    stamp_ns: int
    """Time in the message header, in Unix nanoseconds; 0: not set."""
    encoding: str
    """Pixel encoding of ``raw`` (``bgr8``), or format of ``compressed`` and ``video`` (``jpeg``, ``h264``)."""
    data: bytes
    width: int = 0
    height: int = 0
    step: int = 0
    """Bytes per row; ``raw`` only."""
    is_big_endian: bool = False


def is_convertible(encoding: str) -> bool:
    """Return whether raw pixels with this encoding can be converted; False for depth maps."""
    encoding = _ALIASES.get(encoding.lower(), encoding.lower())
    try:
        return encoding in _YUV or bool(_layout(encoding))
    except SourceError:
        return False


class PixelConverter:
    """Converts the raw images of one topic; 16-bit values are scaled by the largest depth seen."""

    def __init__(self, max_pixels: int | None = None) -> None:
        self._max_pixels = max_pixels
        self._bits = 0

    def convert(self, message: ImageMessage) -> Image:
        """Return a raw image as uint8 RGB (height, width, 3).

        Raises:
            SourceError: the encoding is not supported, or the data are shorter than the image.
        """
        check_size(message.width, message.height, self._max_pixels)
        encoding = message.encoding.lower()
        encoding = _ALIASES.get(encoding, encoding)
        if encoding in _YUV:
            if message.width % 2:
                size = f"{message.width}x{message.height}"
                raise SourceError(f"an image of {size} {message.encoding}: the width should be even; record it again")
            pixels = _rows(message, 2, np.dtype(np.uint8))
            return np.asarray(cv2.cvtColor(pixels, _YUV[encoding]), np.uint8)
        name, depth = _layout(encoding)
        order = ">" if message.is_big_endian else "<"
        dtype = np.dtype(np.uint8) if depth == 8 else np.dtype(f"{order}u2")
        pixels = _rows(message, 1 if name in _BAYER else _CHANNELS[name], dtype)
        return _as_rgb(name, self._eight_bits(pixels) if depth == 16 else pixels)

    def _eight_bits(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
        values = pixels.astype(np.uint16)
        self._bits = max(self._bits, value_bits(values))
        return eight_bits(values, self._bits)


def _layout(encoding: str) -> tuple[str, int]:
    """Return the channels (``rgb``) and the bits per value (8, 16). Raises ``SourceError``."""
    depth = 16 if encoding.endswith("16") else 8
    name = encoding.removesuffix(str(depth)).removeprefix("bayer_")
    if not encoding.endswith(("8", "16")) or name not in {*_CHANNELS, *_BAYER}:
        raise SourceError(
            f"encoding {encoding!r} is not supported; use mono8, mono16, rgb8, bgr8, rgba8, bgra8, rgb16, "
            "bgr16, bayer_*8, bayer_*16, yuv422 or yuv422_yuy2"
        )
    return name, depth


def _rows(message: ImageMessage, channels: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the pixels (height, width, channels) without row padding. Raises ``SourceError``."""
    used = message.width * channels * dtype.itemsize
    step = (message.step or used) if message.height > 1 else used  # the step of a single row is irrelevant
    needed = step * (message.height - 1) + used
    if message.width < 1 or message.height < 1 or step < used or len(message.data) < needed:
        raise SourceError(
            f"{len(message.data)} bytes in rows of {step} are too few for an image of {message.width}x{message.height} "
            f"{message.encoding}"
        )
    padded = np.frombuffer(message.data[:needed].ljust(step * message.height, b"\0"), np.uint8)
    rows = np.ascontiguousarray(padded.reshape(message.height, step)[:, :used])
    return rows.view(dtype).reshape(message.height, message.width, channels)


def _as_rgb(name: str, pixels: npt.NDArray[np.uint8]) -> Image:
    if name in _BAYER:
        return np.asarray(cv2.cvtColor(pixels, _BAYER[name]), np.uint8)
    if name == "mono":
        return np.repeat(pixels, 3, axis=2)
    rgb = pixels[:, :, 2::-1] if name.startswith("bgr") else pixels[:, :, :3]
    return np.ascontiguousarray(rgb)

"""Conversion of image messages to RGB: raw pixels, compressed images and video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext

from pipeline.errors import SourceError
from pipeline.frames import Image
from stream.bags.messages import ImageMessage
from stream.bit_depth import eight_bits, value_bits
from stream.convert import RgbConverter
from stream.image_file import ImageReader
from stream.limits import check_size

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
_MAX_STAMP_NS: Final = (1 << 63) - 1
_CODECS: Final = {"h264": "h264", "h265": "hevc", "hevc": "hevc", "vp9": "vp9", "av1": "libdav1d"}


def is_readable(message: ImageMessage) -> bool:
    """Return whether a message is a camera's image: not a depth map, a heat map or an unknown format."""
    encoding = message.encoding.lower()
    if message.form == "video":
        return encoding in _CODECS
    if message.form == "compressed":
        return "compresseddepth" not in encoding.replace(" ", "")
    encoding = _ALIASES.get(encoding, encoding)
    try:
        return encoding in _YUV or bool(_layout(encoding))
    except SourceError:
        return False


class PixelConverter:
    """Converts the raw images of one topic; 16-bit values are scaled by the depth in use so far."""

    def __init__(self, max_pixels: int | None = None) -> None:
        self._max_pixels = max_pixels
        self._bits = 0

    def convert(self, message: ImageMessage) -> Image:
        """Return a raw image as uint8 RGB (height, width, 3).

        Raises:
            SourceError: its encoding is not supported, or its data do not fit its size.
        """
        check_size(message.width, message.height, self._max_pixels)
        encoding = message.encoding.lower()
        encoding = _ALIASES.get(encoding, encoding)
        if encoding in _YUV:
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
    """Return the channels and the bits of a value. Raises ``SourceError``."""
    depth = 16 if encoding.endswith("16") else 8
    name = encoding.removesuffix(str(depth)).removeprefix("bayer_")
    if not encoding.endswith(("8", "16")) or name not in {*_CHANNELS, *_BAYER}:
        raise SourceError(
            f"encoding {encoding!r} is not an image for a network; mono8, mono16, rgb8, bgr8, rgba8, bgra8, rgb16, "
            "bgr16, bayer_*8, bayer_*16, yuv422 and yuv422_yuy2 are read"
        )
    return name, depth


def _rows(message: ImageMessage, channels: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the pixels without the padding of rows. Raises ``SourceError``."""
    used = message.width * channels * dtype.itemsize
    step = (message.step or used) if message.height > 1 else used  # of a single row, any step may be stated
    needed = step * (message.height - 1) + used
    if message.width < 1 or message.height < 1 or step < used or len(message.data) < needed:
        raise SourceError(
            f"{len(message.data)} bytes with rows of {step} do not hold an image of {message.width}x{message.height} "
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


class VideoTopic:
    """Decodes the video of one topic: one packet a message, without reordering."""

    def __init__(self, max_pixels: int | None = None) -> None:
        self._max_pixels = max_pixels
        self._codec: VideoCodecContext | None = None
        self._format = ""
        self._rgb = RgbConverter()
        self._stamps: dict[int, int] = {}
        self._packets = 0
        self._waits_for_key, self._has_begun = True, False

    def decode(self, message: ImageMessage | None, stamp_ns: int) -> Iterator[tuple[int, Image]]:
        """Yield the frames that are ready, each with its stamp in nanoseconds; ``None``: the end of the video.

        After damage, frames are left out up to the next key frame.

        Raises:
            SourceError: the packet is damaged, or its format is not supported.
        """
        packet = None
        if message is not None:
            self._open(message.encoding.lower())
            packet = av.Packet(message.data)
            packet.pts = packet.dts = self._packets
            self._stamps[self._packets] = stamp_ns
            self._packets += 1
        if self._codec is None:
            return
        try:
            frames = self._codec.decode(packet)
        except av.error.FFmpegError as error:
            self._skip(f"a damaged packet of {self._format} ({error})")
            return
        for frame in frames:
            stamp = self._stamps.pop(-1 if frame.pts is None else frame.pts, stamp_ns)
            if frame.is_corrupt or (self._waits_for_key and not frame.key_frame):
                self._skip(f"a frame of {self._format} is damaged, or refers to a damaged one")
                continue
            self._waits_for_key, self._has_begun = False, True
            check_size(frame.width, frame.height, self._max_pixels)
            yield stamp, self._rgb.convert(frame)

    def _skip(self, damage: str) -> None:
        """Leave frames out up to the next key frame; a recording may begin between two key frames without damage."""
        self._waits_for_key = True
        if self._has_begun:
            raise SourceError(damage)

    def _open(self, name: str) -> None:
        if self._codec is not None:
            return
        if name not in _CODECS:
            raise SourceError(f"video format {name!r} is not supported; {', '.join(_CODECS)} are read")
        codec = cast("VideoCodecContext", av.CodecContext.create(_CODECS[name], "r"))
        codec.thread_count = 1  # frame threads would hold frames back
        if self._max_pixels is not None:
            codec.options = {"max_pixels": str(self._max_pixels * 5 // 4 + (1 << 16))}
        self._codec, self._format = codec, name


def _valid_stamp(stamp_ns: int) -> int:
    """Return a stamp; 0 for one that no clock shows and that formats of 64 bits cannot hold."""
    return stamp_ns if 0 <= stamp_ns <= _MAX_STAMP_NS else 0


class TopicDecoder:
    """Decodes the messages of one topic to RGB images."""

    def __init__(self, parse: Callable[[bytes], ImageMessage], max_pixels: int | None = None) -> None:
        """Set the parser of the topic's messages and the maximum pixels of an image."""
        self._parse = parse
        self._pixels = PixelConverter(max_pixels)
        self._images = ImageReader(max_pixels=max_pixels, takes_bits=False)
        self._video = VideoTopic(max_pixels)

    def decode(self, data: bytes, log_ns: int) -> Iterator[tuple[int, Image]]:
        """Yield the images of a message and their stamps: those of the header, or ``log_ns`` where it has no valid one.

        Raises:
            SourceError: the message is damaged or has no image that can be read; the next one may be good.
        """
        message = self._parse(data)
        stamp_ns = _valid_stamp(message.stamp_ns) or _valid_stamp(log_ns)
        if message.form == "video":
            yield from self._video.decode(message, stamp_ns)
        elif message.form == "raw":
            yield stamp_ns, self._pixels.convert(message)
        else:
            yield stamp_ns, self._images.decode(message.data)

    def flush(self) -> Iterator[tuple[int, Image]]:
        """Yield the frames that a video decoder has held back. Raises ``SourceError``."""
        yield from self._video.decode(None, 0)

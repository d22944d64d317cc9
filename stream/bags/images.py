"""Conversion of image messages to RGB: compressed images and video; ``stream.pixels`` converts raw ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, cast

import av
import av.error
from av.video.codeccontext import VideoCodecContext

from pipeline.errors import SourceError
from pipeline.frames import Image
from stream.convert import RgbConverter
from stream.image_file import ImageReader
from stream.limits import check_size
from stream.pixels import ImageMessage, PixelConverter, is_convertible

_MAX_STAMP_NS: Final = (1 << 63) - 1
_CODECS: Final = {"h264": "h264", "h265": "hevc", "hevc": "hevc", "vp9": "vp9", "av1": "libdav1d"}


def is_readable(message: ImageMessage) -> bool:
    """Return whether a message is a camera image (no depth map) of a supported format."""
    encoding = message.encoding.lower()
    if message.form == "video":
        return encoding in _CODECS
    if message.form == "compressed":
        return "compresseddepth" not in encoding.replace(" ", "")
    return is_convertible(message.encoding)


class VideoTopic:
    """Decodes the video of one topic: one packet per message, without reordering."""

    def __init__(self, max_pixels: int | None = None) -> None:
        self._max_pixels = max_pixels
        self._codec: VideoCodecContext | None = None
        self._format = ""
        self._rgb = RgbConverter()
        self._stamps: dict[int, int] = {}
        self._packets = 0
        self._waits_for_key, self._has_begun = True, False

    def decode(self, message: ImageMessage | None, stamp_ns: int) -> Iterator[tuple[int, Image]]:
        """Yield the frames that are ready, each with its stamp in nanoseconds.

        ``None`` marks the end of the video. After damage, frames are dropped up to the next keyframe.

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
        """Drop frames up to the next keyframe.

        Raises ``SourceError``, unless no frame was decoded yet: an intact recording may begin between two keyframes.
        """
        self._waits_for_key = True
        if self._has_begun:
            raise SourceError(damage)

    def _open(self, name: str) -> None:
        if self._codec is not None:
            return
        if name not in _CODECS:
            raise SourceError(f"video format {name!r} is not supported; use one of {', '.join(_CODECS)}")
        codec = cast("VideoCodecContext", av.CodecContext.create(_CODECS[name], "r"))
        codec.thread_count = 1  # frame threads would delay frames
        if self._max_pixels is not None:
            codec.options = {"max_pixels": str(self._max_pixels * 5 // 4 + (1 << 16))}
        self._codec, self._format = codec, name


def _valid_stamp(stamp_ns: int) -> int:
    """Return ``stamp_ns``, or 0 if it is negative or exceeds 63 bits."""
    return stamp_ns if 0 <= stamp_ns <= _MAX_STAMP_NS else 0


class TopicDecoder:
    """Decodes the messages of one topic to RGB images."""

    def __init__(self, parse: Callable[[bytes], ImageMessage], max_pixels: int | None = None) -> None:
        """Create a decoder with the parser of the topic's messages and the maximum pixels of an image."""
        self._parse = parse
        self._pixels = PixelConverter(max_pixels)
        self._images = ImageReader(max_pixels=max_pixels, takes_bits=False)
        self._video = VideoTopic(max_pixels)

    def decode(self, data: bytes, log_ns: int) -> Iterator[tuple[int, Image]]:
        """Yield the images of a message with their stamps, in ns; ``log_ns`` replaces an invalid stamp.

        Raises:
            SourceError: the message is damaged or contains no readable image; the next message may still be decoded.
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
        """Yield the frames still in the video decoder. Raises ``SourceError``."""
        yield from self._video.decode(None, 0)

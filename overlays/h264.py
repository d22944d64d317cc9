"""Encodes RGB images as H.264 without delay, one access unit per image. Colours are BT.601, limited range."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

import av
import av.error
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from overlays.sinks.timeline import TICKS_PER_SECOND
from pipeline.errors import FrameError
from pipeline.frames import Image

ONE_THREAD_PIXELS: Final = 1280 * 720
"""Maximum number of pixels encoded in one thread, enough for 60 frames/s; more threads would slow down the engine."""

# ISO/IEC 23091-2: matrix 6 is BT.601, which OpenCV uses; primaries and transfer 1 are BT.709, as declared for sRGB.
_MATRIX_BT601: Final = 6
_BT709: Final = 1
_LIMITED_RANGE: Final = 1

IDR: Final = 5
SEI: Final = 6
SPS: Final = 7
PPS: Final = 8


@dataclass(frozen=True, slots=True)
class Rate:
    """Quality and bit rate of an encoder."""

    crf: int = 23
    """Constant rate factor of x264, 0 to 51; lower is better quality."""
    preset: str = "ultrafast"
    max_kilobits: int | None = None
    """Maximum bit rate in kbit/s; None: no limit."""
    frames_per_second: float = 30.0
    """Frame rate at which ``max_kilobits`` is met."""

    def options(self) -> dict[str, str]:
        """Return the options for libx264."""
        options = {"preset": self.preset, "crf": str(self.crf), "tune": "zerolatency", "forced-idr": "1"}
        options["x264-params"] = "keyint=infinite:scenecut=0"
        if self.max_kilobits is not None:
            options |= {"maxrate": f"{self.max_kilobits}k", "bufsize": f"{self.max_kilobits}k"}
        return options


@dataclass(frozen=True)
class AccessUnit:
    """One encoded image."""

    payload: bytes
    """NAL units with start codes (Rec. ITU-T H.264, Annex B); a key frame starts with its parameter sets."""
    ticks: int
    """Presentation time in units of 1 / ``TICKS_PER_SECOND`` s."""
    is_key: bool
    """True if decoders can start with this unit."""

    @cached_property
    def nal_units(self) -> tuple[bytes, ...]:
        """The NAL units, without start codes."""
        return split_nal_units(self.payload)

    def parameter_sets(self) -> tuple[bytes, bytes] | None:
        """Return the sequence and picture parameter sets of a key frame; None for other frames."""
        sps = next((unit for unit in self.nal_units if unit[0] & 31 == SPS), None)
        pps = next((unit for unit in self.nal_units if unit[0] & 31 == PPS), None)
        return None if sps is None or pps is None else (sps, pps)


class H264Encoder:
    """Encodes images of one size. Only one thread at a time may use it.

    The first image and images encoded with ``key=True`` become key frames.
    """

    def __init__(self, size: tuple[int, int], rate: Rate) -> None:
        """Create the encoder.

        Args:
            size: (width, height) of the images in pixels; odd sides are padded by one pixel.
            rate: quality and bit rate.

        Raises:
            FrameError: the encoder does not support this size.
        """
        self.size = size
        codec = av.CodecContext.create("libx264", "w")
        width, height = size
        codec.width, codec.height, codec.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        codec.time_base = Fraction(1, TICKS_PER_SECOND)
        codec.framerate = Fraction(rate.frames_per_second).limit_denominator(1001)
        codec.options = rate.options()
        codec.thread_count = 1 if width * height <= ONE_THREAD_PIXELS else 0
        tag_colours(codec)
        try:
            codec.open()
        except (av.error.FFmpegError, ValueError) as error:
            raise FrameError(f"an image of {width}x{height} cannot be encoded as H.264; send it smaller") from error
        self._codec = codec
        self._began = False

    def encode(self, image: Image, ticks: int, *, key: bool = False) -> AccessUnit:
        """Return an image encoded as an access unit.

        Args:
            image: RGB, ``(height, width, 3)``, uint8, of the encoder's size.
            ticks: presentation time in units of 1 / ``TICKS_PER_SECOND`` s; must increase strictly.
            key: True to make a key frame; the first image always becomes one.

        Raises:
            FrameError: the image cannot be encoded.
        """
        frame = yuv_frame(image, ticks)
        if key or not self._began:
            frame.pict_type = PictureType.I
        try:
            packets = list(self._codec.encode(frame))
        except (av.error.FFmpegError, ValueError) as error:
            raise FrameError(f"an image of {self.size[0]}x{self.size[1]} cannot be encoded as H.264") from error
        self._began = True
        return AccessUnit(b"".join(map(bytes, packets)), ticks, any(packet.is_keyframe for packet in packets))


def yuv_frame(image: Image, ticks: int) -> av.VideoFrame:
    """Return an RGB image, uint8 (height, width, 3), as a YUV 4:2:0 frame; odd sides are padded by one pixel."""
    height, width = image.shape[:2]
    if width % 2 or height % 2:
        padded = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        image = np.asarray(padded, np.uint8)
    planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), np.uint8)
    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    frame.pts = ticks
    frame.time_base = Fraction(1, TICKS_PER_SECOND)
    return frame


def tag_colours(codec: VideoCodecContext) -> None:
    """Declare the colour space of ``yuv_frame`` in the stream of a codec."""
    codec.colorspace, codec.color_primaries, codec.color_trc = _MATRIX_BT601, _BT709, _BT709
    codec.color_range = _LIMITED_RANGE


def split_nal_units(payload: bytes) -> tuple[bytes, ...]:
    """Return the NAL units of a byte stream (Rec. ITU-T H.264, Annex B) without their start codes."""
    units = (part.rstrip(b"\x00") for part in payload.split(b"\x00\x00\x01"))
    return tuple(unit for unit in units if unit)


def codec_string(sps: bytes) -> str:
    """Return the codec string (RFC 6381) of a sequence parameter set, such as ``avc1.42c01e``."""
    return f"avc1.{sps[1:4].hex()}"

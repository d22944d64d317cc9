"""H.264 for the page: one encoder per camera and image size, while at least one viewer decodes it.

A viewer must start with a key frame and decode every following unit. Units are therefore numbered, and a viewer that
missed a unit waits for the next key frame.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from overlays.h264 import H264Encoder, Rate, codec_string
from pipeline.frames import Image

log = logging.getLogger(__name__)

MAX_SIDE_PIXELS: Final = 4096
"""Maximum side of an H.264 image in pixels, a common limit of decoders; larger images are sent as JPEG."""
_RATE: Final = Rate(crf=23)
_STEP_TICKS: Final = 3000
"""Time step of the encoder's clock per unit. The frame's real times are in the message header."""
_KEY_SECONDS: Final = 10.0
"""Maximum interval between key frames, in seconds."""
_LOST_SECONDS: Final = 1.0
"""Minimum interval between key frames that are made for viewers that missed a unit, in seconds."""
_MAX_SHARE: Final = 0.25
"""Maximum share of all processors' time that ``auto`` uses for encoding."""
_MEASURED_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class VideoUnit:
    """One encoded image of a camera."""

    payload: bytes
    """An access unit as a byte stream (Rec. ITU-T H.264, Annex B)."""
    number: int
    """Sequence number; a unit that is no key frame can be decoded only after the unit with the previous number."""
    is_key: bool
    codec: str
    """Codec string (RFC 6381)."""


class _Camera:
    """The encoder of one camera and image size."""

    def __init__(self) -> None:
        # Held while an image is encoded, because the camera's thread and the sink's thread may encode concurrently.
        self.lock = threading.Lock()
        self.encoder: H264Encoder | None = None
        self.next_number = 0
        self.key_at = float("-inf")
        self.codec = ""


class VideoEncoders:
    """The H.264 encoders of a page. Any thread may encode; units are numbered in the order of encoding."""

    def __init__(self, *, is_limited: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty set of encoders.

        Args:
            is_limited: True to set ``given_up`` once encoding takes more than a quarter of all processors' time.
            clock: returns monotonic seconds.
        """
        self.given_up = False
        """True once encoding took too much time."""
        self._is_limited, self._clock = is_limited, clock
        # Guards the table of encoders and the measured load.
        self._lock = threading.Lock()
        self._cameras: dict[tuple[str, str], _Camera] = {}
        self._spent_seconds = 0.0
        self._measured_at = clock()

    def encode(self, camera: str, size: str, image: Image, *, is_new: bool, is_lost: bool) -> VideoUnit:
        """Encode an image and return its unit.

        Args:
            camera: name of the camera.
            size: ``plain`` or ``small``; each size has its own encoder.
            image: RGB, ``(height, width, 3)``, uint8; another size than before creates a new encoder and a key frame.
            is_new: True if a viewer has no image yet; makes a key frame.
            is_lost: True if a viewer missed a unit; makes a key frame, at most one per second.

        Raises:
            FrameError: the image cannot be encoded.
        """
        with self._lock:
            entry = self._cameras.setdefault((camera, size), _Camera())
        with entry.lock:
            begun_at = self._clock()
            shape = (image.shape[1], image.shape[0])
            if entry.encoder is None or entry.encoder.size != shape:
                entry.encoder, is_new = H264Encoder(shape, _RATE), True
            since_key = begun_at - entry.key_at
            key = is_new or since_key >= (_LOST_SECONDS if is_lost else _KEY_SECONDS)
            unit = entry.encoder.encode(image, entry.next_number * _STEP_TICKS, key=key)
            if unit.is_key:
                sets = unit.parameter_sets()
                entry.key_at, entry.codec = begun_at, entry.codec if sets is None else codec_string(sets[0])
            entry.next_number += 1
            self._record(self._clock() - begun_at)
            return VideoUnit(unit.payload, entry.next_number - 1, unit.is_key, entry.codec)

    def keep(self, is_watched: Callable[[str, str], bool]) -> None:
        """Release the encoders for which ``is_watched(camera, size)`` returns False."""
        with self._lock:
            self._cameras = {key: entry for key, entry in self._cameras.items() if is_watched(*key)}

    def forget(self, camera: str) -> None:
        """Release the encoders of a camera."""
        self.keep(lambda name, _size: name != camera)

    @property
    def count(self) -> int:
        """Number of open encoders."""
        return len(self._cameras)

    def _record(self, seconds: float) -> None:
        """Add the encoding time of an image; set ``given_up`` if the share over the last seconds is too large."""
        with self._lock:
            self._spent_seconds += seconds
            passed = self._clock() - self._measured_at
            if passed < _MEASURED_SECONDS:
                return
            share = self._spent_seconds / passed / (os.cpu_count() or 1)
            self._spent_seconds, self._measured_at = 0.0, self._clock()
            if self._is_limited and share > _MAX_SHARE and not self.given_up:
                self.given_up = True
                log.info(
                    "page: H.264 takes %.0f %% of the processors; images are sent as JPEG from now on, which needs "
                    "more bytes (video: h264 keeps H.264)",
                    100 * share,
                )

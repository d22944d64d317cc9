"""H.264 for the page: an encoder for each camera and size, as long as a viewer that decodes it looks.

A viewer decodes the units of an encoder from a key frame on, without a gap. So each unit has a number, and a viewer
that missed one waits for the next key frame.
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
"""Larger images are sent as JPEG: many decoders have this limit."""
_RATE: Final = Rate(crf=23)
_STEP_TICKS: Final = 3000
"""The encoder's clock counts units; the frame's own times stand in the header."""
_KEY_SECONDS: Final = 10.0
"""Interval of key frames where nobody needs one."""
_LOST_SECONDS: Final = 1.0
"""Interval of the key frames that are made for viewers that missed a unit."""
_MAX_SHARE: Final = 0.25
"""Share of all processors that ``auto`` may use for encoding."""
_MEASURED_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class VideoUnit:
    """One encoded image of a camera."""

    payload: bytes
    """An access unit (Rec. ITU-T H.264, Annex B)."""
    number: int
    """Follows that of the unit before it, which it refers to unless it is a key frame."""
    is_key: bool
    codec: str
    """As RFC 6381 writes it."""


class _Camera:
    """The encoder of a camera in one size."""

    def __init__(self) -> None:
        # Held while an image is encoded: the threads of the camera and of the sink may want it at once.
        self.lock = threading.Lock()
        self.encoder: H264Encoder | None = None
        self.next_number = 0
        self.key_at = float("-inf")
        self.codec = ""


class VideoEncoders:
    """The encoders of a page. Any thread may encode; the units of one camera are numbered in the order of encoding."""

    def __init__(self, *, is_limited: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Create no encoder yet.

        Args:
            is_limited: give up once encoding takes more than a quarter of the processors.
            clock: returns monotonic seconds.
        """
        self.given_up = False
        """True once encoding took too much time."""
        self._is_limited, self._clock = is_limited, clock
        # Guards the table of cameras and the figures of the load.
        self._lock = threading.Lock()
        self._cameras: dict[tuple[str, str], _Camera] = {}
        self._spent_seconds = 0.0
        self._measured_at = clock()

    def encode(self, camera: str, size: str, image: Image, *, is_new: bool, is_lost: bool) -> VideoUnit:
        """Encode an image.

        Args:
            camera: the camera.
            size: ``plain`` or ``small``: each has an encoder.
            image: RGB, ``(height, width, 3)``, uint8; if its size changes, a new encoder begins with a key frame.
            is_new: a viewer has no image yet: make a key frame.
            is_lost: a viewer missed a unit: make a key frame unless the last one is recent.

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
        """Release the encoders of cameras and sizes that nobody looks at."""
        with self._lock:
            self._cameras = {key: entry for key, entry in self._cameras.items() if is_watched(*key)}

    def forget(self, camera: str) -> None:
        """Release the encoders of a camera."""
        self.keep(lambda name, _size: name != camera)

    @property
    def count(self) -> int:
        """Number of encoders."""
        return len(self._cameras)

    def _record(self, seconds: float) -> None:
        """Add the time of an image; give up if the share of the last seconds is too large."""
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
                    "page: H.264 takes %.0f %% of the processors; images are sent as JPEG from now on, in more "
                    "bytes (video: h264 keeps H.264)",
                    100 * share,
                )

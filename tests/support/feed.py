"""A video feed: renders and encodes footage in real time, once for all clients."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from tests.support.footage import blocks, millis_now
from tests.support.limits import LIMIT_SECONDS

_START_CODE = re.compile(rb"\x00\x00\x00?\x01")
SPS, PPS, IDR = 7, 8, 5


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded frame."""

    number: int
    millis: int
    key: bool
    units: tuple[bytes, ...]
    """Its NAL units, without start codes."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameter sets that a decoder needs before the first frame."""

    sps: bytes
    pps: bytes

    @property
    def profile(self) -> str:
        """Profile and level, six hexadecimal digits."""
        return self.sps[1:4].hex()

    @property
    def sprop(self) -> str:
        """Both, as an SDP has them."""
        return f"{base64.b64encode(self.sps).decode()},{base64.b64encode(self.pps).decode()}"


class Feed:
    """Pictures numbered from 0, ``rate`` a second; hands each to all listeners, in its own thread.

    It also runs without listeners, so that missed images are visible from the numbers.
    """

    def __init__(
        self,
        size: tuple[int, int] = (320, 240),
        *,
        rate: int = 10,
        bit_rate: int = 300_000,
        key_every: int | None = None,
        grain: int = 0,
        cabac: bool = False,
        aspect: Fraction = Fraction(1),
    ) -> None:
        """Add a receiver of encoded images.

        A key picture comes each second where ``key_every`` (pictures) is None. ``grain`` is the noise (grey levels)
        of the sensor: with it pictures use up their bit rate, without they are very small. ``cabac``: the entropy
        coding of H.264's main profile; damage shows less in it. ``aspect``: how many times as wide as high a pixel is
        shown.
        """
        self.rate = rate
        self.size = size
        """May be changed at any time; the next frame has the new size, and is a keyframe."""
        self.number = -1
        """The last frame."""
        self.parameters: Parameters | None = None
        """The parameter sets of the last frame; None before the first."""
        self._bit_rate = bit_rate
        self._key_every = key_every or rate
        self._grain = grain
        self._cabac = cabac
        self._aspect = aspect
        self._chance = np.random.default_rng(0)
        self._listeners: dict[object, Callable[[Picture], None]] = {}
        self._lock = threading.Lock()  # guards the listeners, which come and go in other threads
        self._key_asked = threading.Event()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(LIMIT_SECONDS):
            self._stop.set()
            raise TimeoutError("the encoder gave no frame for 10 s")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def listen(self, key: object, listener: Callable[[Picture], None]) -> None:
        """Call ``listener`` with each following frame; ``key`` identifies it for ``forget``."""
        with self._lock:
            self._listeners[key] = listener

    def forget(self, key: object) -> None:
        """Remove the listener ``key``."""
        with self._lock:
            self._listeners.pop(key, None)

    def ask_key(self) -> None:
        """Make the next frame a keyframe."""
        self._key_asked.set()

    def _run(self) -> None:
        due, encoder, size = time.monotonic(), None, (0, 0)
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            if encoder is None or size != self.size:
                size = self.size
                encoder = self._encoder(size)
            image = self._take(encoder, size)
            with self._lock:
                listeners = list(self._listeners.values())
            for listener in listeners:
                listener(image)
            self._ready.set()
            # After a delay of more than one picture the schedule restarts now: a camera sends no bursts.
            due = max(due + 1 / self.rate, time.monotonic() - 1 / self.rate)

    def _encoder(self, size: tuple[int, int]) -> VideoCodecContext:
        encoder = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, 1000), Fraction(self.rate)
        encoder.sample_aspect_ratio = self._aspect
        encoder.bit_rate, encoder.gop_size, encoder.thread_count = self._bit_rate, self._key_every, 1
        encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "forced-idr": "1", "slices": "1"}
        encoder.options |= {"coder": "cabac" if self._cabac else "cavlc"}
        return encoder

    def _grainy(self, grey: np.ndarray) -> np.ndarray:
        if not self._grain:
            return grey
        noise = self._chance.integers(-self._grain, self._grain + 1, grey.shape, np.int16)
        return np.clip(grey + noise, 0, 255).astype(np.uint8)

    def _take(self, encoder: VideoCodecContext, size: tuple[int, int]) -> Picture:
        number, millis = self.number + 1, millis_now()
        grey = self._grainy(blocks(*size, number, millis))
        frame = av.VideoFrame.from_ndarray(grey, format="gray8").reformat(format="yuv420p")
        frame.pts, frame.time_base = millis, Fraction(1, 1000)
        if self._key_asked.is_set():
            self._key_asked.clear()
            frame.pict_type = PictureType.I
        stream = b"".join(bytes(packet) for packet in encoder.encode(frame))
        units = tuple(unit for unit in _START_CODE.split(stream) if unit)
        kinds = [unit[0] & 31 for unit in units]
        if SPS in kinds and PPS in kinds:
            self.parameters = Parameters(units[kinds.index(SPS)], units[kinds.index(PPS)])
        self.number = number
        return Picture(number, millis, IDR in kinds, units)

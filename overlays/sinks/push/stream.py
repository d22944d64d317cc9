"""The stream of one camera to a media server: encodes, connects, and reconnects with back-off."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from overlays.h264 import H264Encoder, Rate
from overlays.render.jpeg import bounded_image, scale_image
from overlays.sinks.push.connection import Publisher, PushError, ServerClosedError
from overlays.sinks.settings import PushSettings
from overlays.sinks.timeline import TICKS_PER_SECOND, Timeline
from pipeline.frames import Image, Overlay

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = (1.0, 30.0)
"""Wait before the next attempt to connect: first and maximum."""
_SLOW_RETRY_SECONDS: Final = 10.0
"""Wait after a wrong password or path: servers lock out a client that retries too often."""
_STEADY_SECONDS: Final = 10.0
"""After a connection of at least this duration, the wait starts again at its minimum."""
_REFUSAL_SECONDS: Final = 1.0
"""If a server closes a connection within this time, it refuses the stream: nginx does so after it has accepted."""
_FALLBACK_RATE: Final = 30.0


class Numbered(NamedTuple):
    """An overlay and its sequence number within its camera."""

    overlay: Overlay
    number: int


@dataclass(slots=True)
class PushCounts:
    """Counts of one camera, including images of signal losses."""

    sent: int = 0
    sent_bytes: int = 0
    lost: int = 0
    """Number of images that were not sent: without a connection, or replaced by a newer image."""
    connections: int = 0


class CameraStream:
    """Publishes the images of one camera. ``handle``, ``idle`` and ``close`` are for one thread at a time."""

    def __init__(
        self,
        url: str,
        settings: PushSettings,
        make_publisher: Callable[[], Publisher],
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the options; the first image opens the connection.

        Args:
            url: the address for messages.
            settings: quality, rates and time limits.
            make_publisher: returns a publisher for a new connection.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.
        """
        self.url = url
        self.counts = PushCounts()
        self.reason = "not yet connected"
        """Reason why the stream is not open; empty while it is open."""
        self.newest = -1
        """Number of the newest waiting image; set by the thread that queues images."""
        self.handled = -1
        """Number of the last image that was sent or dropped."""
        self._settings, self._make_publisher = settings, make_publisher
        self._wall_clock, self._clock = wall_clock, clock
        limit = settings.max_kilobits
        self._rate = Rate(settings.crf, settings.preset, limit, settings.max_rate or _FALLBACK_RATE)
        self._publisher: Publisher | None = None
        self._is_open = self._is_ending = False
        self._encoder: H264Encoder | None = None
        self._timeline = Timeline()
        self._key_ticks = 0
        self._resumed_at = 0
        """Number of the first image that is sent on this connection; older images waited while it was opened."""
        self._last: Numbered | None = None
        self._retry_at, self._backoff_seconds = float("-inf"), _RETRY_SECONDS[0]
        self._opened_at = float("-inf")
        self._logged_reason = ""

    @property
    def is_open(self) -> bool:
        """True while the server accepts the stream."""
        return self._is_open

    @property
    def is_idle(self) -> bool:
        """True if no image waits."""
        return self.handled >= self.newest

    def handle(self, item: Numbered) -> None:
        """Send an image; drop it without a connection, or if it waited since before the connection was opened.

        Raises:
            FrameError: the image cannot be encoded; the stream continues with the next image.
        """
        self._last = item
        try:
            if not self._is_open and not self._is_ending and self._clock() >= self._retry_at:
                self._open(item.overlay)
            if self._is_open and item.number >= self._resumed_at:
                self._send(item.overlay)
            else:
                self.counts.lost += 1
        finally:
            self.handled = item.number

    def idle(self) -> None:
        """Serve the connection; without a connection, try to connect if an attempt is due."""
        if self._is_open and self._publisher is not None:
            try:
                self._publisher.serve()
            except OSError as error:
                self._fail(error)
        elif self._last is not None and not self._is_ending and self._clock() >= self._retry_at:
            self.handle(self._last)

    def end(self) -> None:
        """Prevent further connections. For any thread."""
        self._is_ending = True

    def abort(self) -> None:
        """End all waiting calls. For any thread, after ``end``."""
        publisher = self._publisher
        if publisher is not None:
            publisher.abort()

    def close(self) -> None:
        """End the stream."""
        if self._publisher is not None:
            self._publisher.close()
        self._publisher, self._is_open = None, False

    def _open(self, overlay: Overlay) -> None:
        """Connect, and announce a stream of this image's size."""
        image = self._prepared(overlay)
        size = (image.shape[1], image.shape[0])
        first = H264Encoder(size, self._rate).encode(image, 0)  # for its parameter sets
        self._encoder, self._timeline = H264Encoder(size, self._rate), Timeline()
        self._publisher = self._make_publisher()
        try:
            self._publisher.open(first, (size[0] + size[0] % 2, size[1] + size[1] % 2))
        except OSError as error:
            self._fail(error)
            return
        self._is_open, self._resumed_at = True, self.newest
        self._opened_at, self.reason = self._clock(), ""
        self.counts.connections += 1
        log.info("%s: publishing %dx%d", self.url, *size)

    def _send(self, overlay: Overlay) -> None:
        image = self._prepared(overlay)
        if self._encoder is None or (image.shape[1], image.shape[0]) != self._encoder.size:
            log.info("%s: images are now %dx%d; the stream begins again", self.url, image.shape[1], image.shape[0])
            self.close()
            self._open(overlay)
        publisher, encoder = self._publisher, self._encoder
        if publisher is None or encoder is None:
            self.counts.lost += 1
            return
        frame = overlay.explanation.frame
        silent_seconds = 0.0 if overlay.signal_loss is None else overlay.signal_loss.seconds
        ticks = self._timeline.ticks(None, frame.captured_at, silent_seconds=silent_seconds)
        is_key = ticks - self._key_ticks >= self._settings.keyframe_seconds * TICKS_PER_SECOND
        unit = encoder.encode(image, ticks, key=is_key)
        if unit.is_key:
            self._key_ticks = ticks
        captured_unix = self._wall_clock() - (self._clock() - frame.captured_at) + silent_seconds
        try:
            publisher.serve()
            publisher.send(unit, captured_unix)
        except OSError as error:
            self.counts.lost += 1
            self._fail(error)
            return
        self.counts.sent += 1
        self.counts.sent_bytes += len(unit.payload)

    def _prepared(self, overlay: Overlay) -> Image:
        return scale_image(bounded_image(overlay.image), self._settings.scale)

    def _fail(self, error: OSError) -> None:
        """Record that there is no connection, log each new reason once, and set the time of the next attempt."""
        now = self._clock()
        if self._is_open and now - self._opened_at >= _STEADY_SECONDS:
            self._backoff_seconds, self._logged_reason = _RETRY_SECONDS[0], ""
        self.close()
        if self._is_ending:
            return
        is_slow = isinstance(error, PushError) and error.is_slow
        self.reason = str(error) or type(error).__name__
        if isinstance(error, ServerClosedError) and now - self._opened_at < _REFUSAL_SECONDS:
            is_slow = True
            self.reason += " at once; it may refuse the stream: check its path or stream key, and the permissions"
        self._retry_at = now + (_SLOW_RETRY_SECONDS if is_slow else self._backoff_seconds)
        self._backoff_seconds = min(2 * self._backoff_seconds, _RETRY_SECONDS[1])
        if self._logged_reason != self.reason:
            self._logged_reason = self.reason
            log.warning("%s: publishing failed (%s); further attempts follow", self.url, self.reason)

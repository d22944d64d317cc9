"""Passes the newest frame of each camera from the thread of the sink to the viewers in the event loop.

No client has a queue: it has one slot per camera, which a newer frame replaces, and at most ``MAX_IN_FLIGHT`` frames
are sent before it acknowledges one. So a slow browser, a slow network or a hidden tab misses frames, and no buffer
fills with old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Final, Literal

MAX_IN_FLIGHT: Final = 2
"""Maximum number of unacknowledged frames of a camera: one being shown, and the next one."""


Kind = Literal["plain", "small", "painted"]
"""Without heat map (the page draws it), the same at a small size (many cameras, a phone), or with heat map (MJPEG)."""


@dataclass(frozen=True, slots=True, eq=False)
class WebFrame:
    """One frame, encoded once for all viewers."""

    camera: str
    kind: Kind
    number: int
    packed: bytes


class WebClient:
    """A viewer: a page (all cameras, plain images) or an MJPEG stream (one camera, painted images).

    Belongs to the event loop; any thread may call ``wants`` and ``can_accept``.
    """

    def __init__(self, camera: str | None = None) -> None:
        """Set the camera of an MJPEG stream; None for a page."""
        self.camera = camera
        self.rendered = camera is not None
        self.small = False
        """True if the client takes small images of all cameras but ``large``."""
        self.large = ""
        self.session = ""
        """Session identifier of its cookie."""
        self.sent = 0
        self.skipped = 0
        """Number of frames that were replaced by a newer one before they were sent."""
        self.closed = False
        self._offered: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._slots: dict[str, WebFrame] = {}
        self._event = asyncio.Event()

    def set_view(self, *, small: bool, large: str) -> None:
        """Set the image sizes that the client requests; if they changed, send the newest frames again."""
        if (small, large) != (self.small, self.large):
            self.small, self.large = small, large
            self._offered.clear()

    def wants(self, camera: str, kind: Kind) -> bool:
        """Return whether the client takes frames of this camera and kind."""
        page_kind: Kind = "small" if self.small and camera != self.large else "plain"
        return kind == ("painted" if self.rendered else page_kind) and self.camera in {None, camera}

    def can_accept(self, camera: str, number: int, kind: Kind) -> bool:
        """Return whether this frame would be sent at once: it is of a kind the client takes, and new to it."""
        return (
            self.wants(camera, kind)
            and self._offered.get(camera) != number
            and self._in_flight.get(camera, 0) < MAX_IN_FLIGHT
        )

    def put(self, frame: WebFrame) -> None:
        """Put a frame into the slot of its camera, in place of a frame that waits there."""
        if not self.wants(frame.camera, frame.kind) or self._offered.get(frame.camera) == frame.number:
            return
        self.skipped += frame.camera in self._slots
        self._offered[frame.camera] = frame.number
        self._slots[frame.camera] = frame
        self._event.set()

    async def next(self) -> WebFrame | None:
        """Wait for a frame that may be sent, the cameras in turn; return None at the end."""
        while not self.closed:
            for camera in self._slots:
                if self._in_flight.get(camera, 0) < MAX_IN_FLIGHT:
                    self._in_flight[camera] = self._in_flight.get(camera, 0) + 1
                    self.sent += 1
                    return self._slots.pop(camera)
            self._event.clear()
            await self._event.wait()
        return None

    def acknowledge(self, camera: str) -> None:
        """Record that the client has received and processed one frame of the camera."""
        if self._in_flight.get(camera, 0) > 0:
            self._in_flight[camera] -= 1
            self._event.set()

    def close(self) -> None:
        """Make ``next`` return None."""
        self.closed = True
        self._event.set()


class Broadcaster:
    """The clients, and the hand-over of frames to them."""

    def __init__(self) -> None:
        # Guards the frames that wait for the loop; either side holds it only briefly.
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, Kind], WebFrame] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        # Replaced as a whole by the loop, read by any thread.
        self.clients: tuple[WebClient, ...] = ()
        self.closed = False

    def has_viewers(self, camera: str, kind: Kind) -> bool:
        """Return whether a client takes frames of this camera and kind. For any thread."""
        return any(client.wants(camera, kind) for client in self.clients)

    def is_wanted(self, camera: str, number: int, kind: Kind) -> bool:
        """Return whether a client would be sent this frame at once. For any thread."""
        return any(client.can_accept(camera, number, kind) for client in self.clients)

    def publish(self, frame: WebFrame) -> None:
        """Pass a frame to all clients that take it. For the sink's thread; never waits."""
        with self._lock:
            loop, is_first = self._loop, not self._waiting
            if loop is None or self.closed:
                return
            self._waiting[frame.camera, frame.kind] = frame
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(self._deliver)

    def subscribe(self, client: WebClient) -> None:
        """Add a client. For the event loop."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self.clients = (*self.clients, client)
        if self.closed:
            client.close()

    def unsubscribe(self, client: WebClient) -> None:
        """Remove a client. For the event loop."""
        self.clients = tuple(other for other in self.clients if other is not client)

    def close(self) -> None:
        """End all clients. For any thread."""
        with self._lock:
            self.closed = True
            self._waiting.clear()
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end)

    def _deliver(self) -> None:
        with self._lock:
            frames = list(self._waiting.values())
            self._waiting.clear()
        for frame in frames:
            for client in self.clients:
                client.put(frame)

    def _end(self) -> None:
        for client in self.clients:
            client.close()

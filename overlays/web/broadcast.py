"""From the one thread that puts to the one loop that serves: the newest shot of each camera, for each who looks on.

Nobody queues. A client has one place per camera, which a newer shot takes; at most ``MAX_IN_FLIGHT`` shots are on their
way to it until it says that it has shown one. So a slow browser, a slow network and a hidden tab miss shots, and
neither their buffers nor ours fill with old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Final, Literal

MAX_IN_FLIGHT: Final = 2
"""Shots of a camera that may be on their way: one being shown, one to show next."""


Kind = Literal["plain", "small", "painted"]
"""The heat is beside the picture (the page), which may be a small one (many cameras, a phone), or in it (MJPEG)."""


@dataclass(frozen=True, slots=True, eq=False)
class WebFrame:
    """One frame, packed for all who look on."""

    camera: str
    kind: Kind
    number: int
    packed: bytes


class WebClient:
    """Somebody who looks on: a page (all cameras, plain) or an MJPEG stream (one, painted).

    Belongs to the loop; ``takes`` may be asked by any thread.
    """

    def __init__(self, camera: str | None = None) -> None:
        """Take the camera of an MJPEG stream; None is a page."""
        self.camera = camera
        self.rendered = camera is not None
        self.small = False
        """Whether small pictures will do, of all cameras but ``large``."""
        self.large = ""
        self.session = ""
        """Whose cookie it came with."""
        self.sent = 0
        self.skipped = 0
        """Shots that were overtaken by a newer one before they could be sent."""
        self.closed = False
        self._offered: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._slots: dict[str, WebFrame] = {}
        self._event = asyncio.Event()

    def set_view(self, *, small: bool, large: str) -> None:
        """Take what it shows from now on; of what it has, the newest comes again in its new size."""
        if (small, large) != (self.small, self.large):
            self.small, self.large = small, large
            self._offered.clear()

    def wants(self, camera: str, kind: Kind) -> bool:
        """Say whether shots of this kind concern it at all."""
        wanted: Kind = "small" if self.small and camera != self.large else "plain"
        return kind == ("painted" if self.rendered else wanted) and self.camera in {None, camera}

    def can_accept(self, camera: str, number: int, kind: Kind) -> bool:
        """Say whether it would send this shot at once: it concerns it, is new to it, and there is room."""
        return (
            self.wants(camera, kind)
            and self._offered.get(camera) != number
            and self._in_flight.get(camera, 0) < MAX_IN_FLIGHT
        )

    def put(self, shot: WebFrame) -> None:
        """Put a shot into the camera's place, over the one that waits there."""
        if not self.wants(shot.camera, shot.kind) or self._offered.get(shot.camera) == shot.number:
            return
        self.skipped += shot.camera in self._slots
        self._offered[shot.camera] = shot.number
        self._slots[shot.camera] = shot
        self._event.set()

    async def next(self) -> WebFrame | None:
        """Wait for a shot that may be sent, the cameras in turn; None at the end."""
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
        """Note that one shot of the camera has arrived and been dealt with."""
        if self._in_flight.get(camera, 0) > 0:
            self._in_flight[camera] -= 1
            self._event.set()

    def close(self) -> None:
        """End ``next``."""
        self.closed = True
        self._event.set()


class Broadcaster:
    """Who looks on, and the way to them."""

    def __init__(self) -> None:
        # Guards what waits for the loop; held for a few instructions by either side.
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, Kind], WebFrame] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        # Replaced as a whole by the loop, read by any.
        self.clients: tuple[WebClient, ...] = ()
        self.closed = False

    def has_viewers(self, camera: str, kind: Kind) -> bool:
        """Say whether anybody looks at such shots. For any thread."""
        return any(client.wants(camera, kind) for client in self.clients)

    def is_wanted(self, camera: str, number: int, kind: Kind) -> bool:
        """Say whether anybody would take this shot at once. For any thread."""
        return any(client.can_accept(camera, number, kind) for client in self.clients)

    def publish(self, shot: WebFrame) -> None:
        """Give a shot to all whom it concerns. For the thread that puts; never waits."""
        with self._lock:
            loop, idle = self._loop, not self._waiting
            if loop is None or self.closed:
                return
            self._waiting[shot.camera, shot.kind] = shot
        if idle:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(self._deliver)

    def subscribe(self, client: WebClient) -> None:
        """Let a client look on. For the loop."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self.clients = (*self.clients, client)
        if self.closed:
            client.close()

    def unsubscribe(self, client: WebClient) -> None:
        """Forget a client. For the loop."""
        self.clients = tuple(other for other in self.clients if other is not client)

    def close(self) -> None:
        """End every client. For any thread."""
        with self._lock:
            self.closed = True
            self._waiting.clear()
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end)

    def _deliver(self) -> None:
        with self._lock:
            shots = list(self._waiting.values())
            self._waiting.clear()
        for shot in shots:
            for client in self.clients:
                client.put(shot)

    def _end(self) -> None:
        for client in self.clients:
            client.close()

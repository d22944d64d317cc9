"""Passes the newest frame of each camera from the sink's thread to the viewers in the event loop.

Each client has one slot per camera; a newer JPEG replaces the waiting one. At most ``MAX_IN_FLIGHT`` frames of a camera
are sent without an acknowledgement. A slow browser, a slow network or a hidden tab therefore skips frames, and no
buffer fills with old frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

MAX_IN_FLIGHT: Final = 2
"""Maximum number of unacknowledged JPEG frames per camera: the frame on the screen and the next frame."""


MAX_VIDEO_IN_FLIGHT: Final = 4
"""Maximum number of unacknowledged H.264 frames per camera. Greater than for JPEG: no H.264 frame may be skipped."""
MAX_VIDEO_WAITING: Final = 8
"""Maximum number of H.264 frames per camera that wait for a slow viewer; then it skips to the next key frame."""

Kind = Literal["plain", "small", "painted", "plain-video", "small-video"]
"""Form of an image.

``plain``: JPEG without heat map, which the page draws. ``small``: the same, smaller, for many cameras or a phone.
``painted``: JPEG with heat map, for MJPEG streams. ``plain-video`` and ``small-video``: the first two in H.264.
"""
VIDEO_KINDS: Final[tuple[Kind, Kind]] = ("plain-video", "small-video")


@dataclass(frozen=True, slots=True, eq=False)
class WebFrame:
    """One frame, encoded once for all viewers."""

    camera: str
    kind: Kind
    number: int
    packed: bytes
    unit: int = -1
    """Number of the H.264 access unit; -1 for a JPEG."""
    is_key: bool = True
    """True if a viewer can decode this frame without an earlier one."""


def _max_in_flight(kind: Kind) -> int:
    return MAX_VIDEO_IN_FLIGHT if kind in VIDEO_KINDS else MAX_IN_FLIGHT


class WebClient:
    """A viewer: a page (all cameras, plain images) or an MJPEG stream (one camera, painted images).

    Only the event loop may use it, except ``wants``, ``can_accept`` and ``needs_key``, which any thread may call.
    """

    def __init__(self, camera: str | None = None) -> None:
        """Create the client of an MJPEG stream of ``camera``; None for a page."""
        self.camera = camera
        self.rendered = camera is not None
        self.small = False
        """True if the client takes small images of all cameras except the camera ``large``."""
        self.large = ""
        self.decodes_video = False
        """True if the client takes H.264."""
        self.takes_frames = True
        """False for a page that shows events only."""
        self.session = ""
        """Session identifier in the client's cookie."""
        self.sent = 0
        self.skipped = 0
        """Number of frames that were replaced by a newer one before they were sent."""
        self.closed = False
        self._offered: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._slots: dict[str, deque[WebFrame]] = {}
        self._units: dict[str, int | None] = {}
        """Number of the last H.264 unit by camera; None after a skipped unit; no entry before the first unit."""
        self._event = asyncio.Event()

    def set_video(self, *, decodes_video: bool) -> None:
        """Set whether the client takes H.264."""
        if decodes_video != self.decodes_video:
            self.decodes_video = decodes_video
            self._restart()

    def lose(self, camera: str) -> None:
        """Record that the client needs a key frame before it can decode further units of a camera."""
        self._units[camera] = None
        self._slots.pop(camera, None)

    def _restart(self) -> None:
        """Forget which frames were sent, so that the newest frames are sent again."""
        self._offered.clear()
        self._units.clear()
        self._slots.clear()

    def set_view(self, *, small: bool, large: str) -> None:
        """Set the image sizes that the client requests; if they changed, send the newest frames again."""
        if (small, large) != (self.small, self.large):
            self.small, self.large = small, large
            self._restart()

    def wants(self, camera: str, kind: Kind) -> bool:
        """Return whether the client takes frames of this camera and kind."""
        is_small = self.small and camera != self.large
        page_kind: Kind = VIDEO_KINDS[is_small] if self.decodes_video else ("small" if is_small else "plain")
        is_own_kind = kind == ("painted" if self.rendered else page_kind)
        return self.takes_frames and is_own_kind and self.camera in {None, camera}

    def can_accept(self, camera: str, number: int, kind: Kind) -> bool:
        """Return whether this frame would be sent at once: the client wants its kind and has not received it."""
        return (
            self.wants(camera, kind)
            and self._offered.get(camera) != number
            and self._in_flight.get(camera, 0) < _max_in_flight(kind)
        )

    def needs_key(self, camera: str, kind: Kind) -> Literal["new", "lost", ""]:
        """Return why the client needs a key frame: no frame yet ("new"), or a skipped unit ("lost"); "" if neither."""
        if not self.wants(camera, kind) or self._in_flight.get(camera, 0) >= _max_in_flight(kind):
            return ""
        if camera not in self._units:
            return "new"
        return "lost" if self._units[camera] is None else ""

    def put(self, frame: WebFrame) -> None:
        """Store a frame in the slot of its camera; a waiting JPEG is replaced, an H.264 unit is appended."""
        if not self.wants(frame.camera, frame.kind):
            return
        if frame.kind in VIDEO_KINDS:
            self._put_unit(frame)
        elif self._offered.get(frame.camera) != frame.number:
            self.skipped += frame.camera in self._slots
            self._offered[frame.camera] = frame.number
            self._slots[frame.camera] = deque((frame,))
            self._event.set()

    def _put_unit(self, frame: WebFrame) -> None:
        """Append an H.264 unit to the slot; if its predecessor was skipped, wait for a key frame instead."""
        camera, waiting = frame.camera, self._slots.setdefault(frame.camera, deque())
        if self._units.get(camera, -1) == frame.unit and frame.unit >= 0:
            return  # this unit was published twice
        if frame.is_key:
            self.skipped += len(waiting)
            waiting.clear()
        elif camera not in self._units:
            return  # a new client starts with the next key frame
        elif self._units[camera] != frame.unit - 1 or len(waiting) >= MAX_VIDEO_WAITING:
            self.skipped += 1 + len(waiting)
            self.lose(camera)
            return
        self._offered[camera], self._units[camera] = frame.number, frame.unit
        waiting.append(frame)
        self._event.set()

    async def next(self) -> WebFrame | None:
        """Wait for the next frame to send and return it, cameras in turn; None once the client is closed."""
        while not self.closed:
            for camera, waiting in self._slots.items():
                if waiting and self._in_flight.get(camera, 0) < _max_in_flight(waiting[0].kind):
                    self._in_flight[camera] = self._in_flight.get(camera, 0) + 1
                    self.sent += 1
                    frame = waiting.popleft()
                    del self._slots[camera]  # inserted again behind the other cameras
                    if waiting:
                        self._slots[camera] = waiting
                    return frame
            self._event.clear()
            await self._event.wait()
        return None

    def acknowledge(self, camera: str) -> None:
        """Record that the client has received and processed one frame of the camera."""
        if self._in_flight.get(camera, 0) > 0:
            self._in_flight[camera] -= 1
            self._event.set()

    def close(self) -> None:
        """Close the client: ``next`` returns None from now on."""
        self.closed = True
        self._event.set()


class Broadcaster:
    """Holds the connected clients and passes published frames to them."""

    def __init__(self) -> None:
        # Guards the frames that wait for the event loop; both threads hold it only for moments.
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, Kind], list[WebFrame]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        # Only the event loop replaces this tuple; any thread may read it.
        self.clients: tuple[WebClient, ...] = ()
        self.closed = False

    def has_viewers(self, camera: str, kind: Kind) -> bool:
        """Return whether any client takes frames of this camera and kind. For any thread."""
        return any(client.wants(camera, kind) for client in self.clients)

    def is_wanted(self, camera: str, number: int, kind: Kind) -> bool:
        """Return whether any client can be sent this frame at once. For any thread."""
        return any(client.can_accept(camera, number, kind) for client in self.clients)

    def key_reason(self, camera: str, kind: Kind) -> tuple[bool, bool]:
        """Return whether a new viewer, and whether a viewer that skipped a unit, needs a key frame. For any thread."""
        reasons = {client.needs_key(camera, kind) for client in self.clients}
        return "new" in reasons, "lost" in reasons

    def publish(self, frame: WebFrame) -> None:
        """Pass a frame to all clients that take it. For the sink's thread; never waits."""
        with self._lock:
            loop, is_first = self._loop, not self._waiting
            if loop is None or self.closed:
                return
            waiting = self._waiting.setdefault((frame.camera, frame.kind), [])
            if frame.kind not in VIDEO_KINDS:
                waiting.clear()
            del waiting[:-MAX_VIDEO_WAITING]
            waiting.append(frame)
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(self._deliver)

    def stop_video(self) -> None:
        """Send JPEG instead of H.264 to all clients. For any thread."""
        with self._lock:
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(self._stop_video)

    def _stop_video(self) -> None:
        for client in self.clients:
            client.set_video(decodes_video=False)

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
        """Close all clients, and every client that subscribes later. For any thread."""
        with self._lock:
            self.closed = True
            self._waiting.clear()
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end)

    def _deliver(self) -> None:
        with self._lock:
            frames = [frame for waiting in self._waiting.values() for frame in waiting]
            self._waiting.clear()
        for frame in frames:
            for client in self.clients:
                client.put(frame)

    def _end(self) -> None:
        for client in self.clients:
            client.close()

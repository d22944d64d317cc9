"""The network: overlays published over ZeroMQ as version 1 of the wire, one JPEG for all viewers of a camera.

An XPUB socket tells who watches: while nobody watches a camera, nothing is compressed, and ``needs_picture`` lets the
renderer rest too. Whoever joins late gets the last frame at once. Nobody is waited for: a viewer that does not keep up
misses frames.
"""

from __future__ import annotations

import errno
import logging
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import zmq

from overlays.address import Address, parse_address
from overlays.jpeg import encode_picture
from overlays.sinks.options import SinkOptions
from overlays.wire import encode, topic_of
from pipeline.errors import SinkError
from pipeline.frames import Overlay

log = logging.getLogger(__name__)

_QUEUE_MESSAGES: Final = 4
"""Messages that may wait for each viewer: what waits is old."""
_SEND_BUFFER_BYTES: Final = 1 << 20
_SUBSCRIPTION_BYTES: Final = 8192
"""Viewers send nothing but the names they want."""
_HEARTBEAT_MS: Final = 500
_HEARTBEAT_TIMEOUT_MS: Final = 1000
_HEARTBEAT_TTL_MS: Final = 2000
_PLAIN_SECONDS: Final = 0.5
"""After somebody has joined, frames drawn before that have no heat on them; so long they are held back."""


class ZeroMqSink:
    """Publishes on ``tcp://host:port`` or ``ipc://path``; the topic is the camera's name.

    Entering, ``put``, ``idle`` and leaving belong to one thread at a time; ``needs_picture`` to any.
    """

    lossless = False

    def __init__(
        self,
        uri: str,
        *,
        options: SinkOptions | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to bind.

        Raises:
            SinkError: the address is written wrong.
        """
        try:
            self._address = parse_address(uri)
        except ValueError as error:
            raise SinkError(f"{uri}: {error}") from None
        self.uri = uri
        self.endpoint = uri
        """Where it is bound, once it is: a port of 0 has become a real one."""
        self._options = options or SinkOptions()
        self._wall = wall
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        # Replaced as a whole, by the thread that puts; read by any.
        self._watched: frozenset[bytes] = frozenset()
        self._woken: dict[str, float] = {}
        """Since when each camera has been watched, on our clock."""
        self._last: dict[str, Overlay] = {}
        self._packed: dict[str, tuple[Overlay, bytes]] = {}
        """The last JPEG of each camera, with what it shows."""
        self._owed: set[str] = set()
        """Cameras whose newest viewer has not got a frame yet."""

    def __enter__(self) -> Self:
        _check_path(self._address)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        for option, setting in (
            (zmq.XPUB_VERBOSE, 1),
            (zmq.SNDHWM, _QUEUE_MESSAGES),
            (zmq.MAXMSGSIZE, _SUBSCRIPTION_BYTES),
            (zmq.SNDBUF, _SEND_BUFFER_BYTES),
            (zmq.LINGER, round(self._options.linger_seconds * 1000)),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, _HEARTBEAT_TTL_MS),
            (zmq.IPV6, int(self._address.is_ipv6)),
        ):
            self._socket.setsockopt(option, setting)
        try:
            self._socket.bind(self.uri)
        except zmq.ZMQError as error:
            self._close(0)
            raise _unbound(self.uri, error) from None
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return self

    @property
    def topics(self) -> frozenset[bytes]:
        """What the viewers have subscribed to."""
        return self._watched

    def needs_picture(self, camera: str) -> bool:
        """Say whether somebody watches this camera, as far as the last ``put`` or ``idle`` heard."""
        topic = topic_of(camera)
        return any(topic.startswith(watched) for watched in self._watched)

    def put(self, overlay: Overlay) -> None:
        """Publish one frame if somebody watches its camera; never waits for a viewer.

        Raises:
            SinkError: the frame breaks a limit of the wire.
        """
        camera = overlay.explanation.frame.camera
        self._last[camera] = overlay
        self._hear()
        if not self.needs_picture(camera):
            return
        plain = overlay.image is overlay.explanation.frame.image
        if not plain or self._clock() - self._woken[camera] > _PLAIN_SECONDS:
            self._send(camera)
        self._settle()

    def idle(self) -> None:
        """Serve who joined while nothing was put. Call it now and then when frames are rare."""
        self._hear()
        self._settle()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close(round(self._options.linger_seconds * 1000))

    def _hear(self) -> None:
        """Read who came and went; each newcomer is owed the last frame of what it watches."""
        if self._socket is None:
            raise SinkError(f"{self.uri}: is not open")
        watched = set(self._watched)
        before = {camera for camera in self._last if self.needs_picture(camera)}
        while self._socket.poll(0, zmq.POLLIN):
            event = self._socket.recv()
            if event[:1] == b"\x01":
                watched.add(event[1:])
                self._owed.update(camera for camera in self._last if topic_of(camera).startswith(event[1:]))
            elif event[:1] == b"\x00":
                watched.discard(event[1:])
        self._watched = frozenset(watched)
        for camera in self._last:
            if not self.needs_picture(camera):
                self._woken.pop(camera, None)
                self._owed.discard(camera)
                self._packed.pop(camera, None)
            elif camera not in before or camera not in self._woken:
                self._woken[camera] = self._clock()

    def _settle(self) -> None:
        """Send the last frame to those who are owed one, plain only if no drawn one came in time."""
        for camera in sorted(self._owed):
            overlay = self._last[camera]
            plain = overlay.image is overlay.explanation.frame.image
            if not plain or self._clock() - self._woken[camera] > _PLAIN_SECONDS:
                self._send(camera)

    def _send(self, camera: str) -> None:
        overlay = self._last[camera]
        shown, picture = self._packed.get(camera, (None, b""))
        if shown is not overlay:
            picture = encode_picture(overlay.image, self._options.jpeg_quality)
            self._packed[camera] = (overlay, picture)
        parts = encode(overlay, sent_at_unix=self._wall(), now_monotonic=self._clock(), picture=picture)
        self._owed.discard(camera)
        if self._socket is not None:
            # XPUB drops for viewers whose queue is full; it never waits.
            self._socket.send_multipart(parts)

    def _close(self, linger_ms: int) -> None:
        if self._socket is not None:
            self._socket.close(linger_ms)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = None


def _check_path(address: Address) -> None:
    """Keep libzmq from deleting a file, or from taking the socket of a run that still lives."""
    if not address.path or address.path.startswith("@"):
        return
    path = Path(address.path)
    if not path.parent.is_dir():
        raise SinkError(f"{address.uri}: the folder {path.parent} does not exist; create it: mkdir -p {path.parent}")
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SinkError(f"{address.uri}: {path} is a file, and not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise SinkError(f"{address.uri}: is in use by another run; choose another path, or stop that run")


def _unbound(uri: str, error: zmq.ZMQError) -> SinkError:
    cures = {
        errno.EADDRINUSE: "is in use; choose another port, or stop the program that has it (ss -ltnp shows which)",
        errno.EADDRNOTAVAIL: "is not an address of this machine; bind tcp://0.0.0.0:port to serve other machines",
        errno.ENODEV: "is not an address of this machine; bind tcp://0.0.0.0:port to serve other machines",
        errno.EACCES: "may not be used by this user; choose a port above 1023",
    }
    return SinkError(f"{uri}: {cures.get(error.errno or 0, f'cannot be bound ({error.strerror})')}")

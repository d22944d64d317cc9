"""The other end of the wire: receives overlays and gives the newest of each camera, never an old one.

libzmq cannot keep only the newest message of several parts, so the viewer reads all there is and passes on the last of
each camera. It connects again by itself, without end.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import zmq

from overlays.address import parse_address
from overlays.jpeg import MAX_PICTURE_BYTES, decode_picture
from overlays.wire import Header, as_overlay, decode_message
from pipeline.errors import SourceError, WireError, WireVersionError
from pipeline.frames import Image, Overlay

log = logging.getLogger(__name__)

_POLL_MS: Final = 50
"""How long reading waits before it looks whether it should stop."""
_DRAIN_MESSAGES: Final = 256
"""Messages read in one go: even a flood lets the newest through now and then."""
_QUEUE_MESSAGES: Final = 8
_RENEW_SECONDS: Final = 5.0
_MAX_CAMERAS: Final = 1024
_SAME_FRAME_SECONDS: Final = 0.005
"""Two readings of a publisher's clocks differ by less, two frames with one index by more."""


@dataclass(frozen=True, eq=False)
class Received:
    """One message that arrived: what was seen, why, and how fresh it is."""

    header: Header
    payload: bytes
    """The JPEG."""
    received_at_unix: float
    missed: int = 0
    """Frames of this camera since the one given before that never arrived: dropped on the way, or by the camera."""
    skipped: int = 0
    """Frames that did arrive and were passed over because a newer one was there."""

    @property
    def camera(self) -> str:
        """The camera's name."""
        return self.header.camera

    @functools.cached_property
    def image(self) -> Image:
        """The picture, uint8 RGB, (height, width, 3), read-only; decoded when first asked for.

        Raises:
            WireError: it is damaged.
        """
        return decode_picture(self.payload)

    def age_seconds(self, now_unix: float | None = None) -> float:
        """Return the seconds from decode at the camera to ``now``; two machines' clocks may differ by more."""
        return (time.time() if now_unix is None else now_unix) - self.header.taken_at_unix

    def overlay(self) -> Overlay:
        """Return it as the overlay it was; its frame is the received picture.

        Raises:
            WireError: the picture is damaged.
        """
        return as_overlay(self.header, self.image, now_unix=time.time(), now_monotonic=time.monotonic())


class Viewer:
    """Watches a publisher: ``with Viewer("tcp://host:5555") as viewer: for received in viewer: ...``.

    Entering, ``messages`` and leaving belong to one thread at a time. Whoever takes longer for a message than the
    publisher needs for the next one misses some, and gets the newest.

    Args:
        address: ``tcp://host:port`` or ``ipc://path``.
        topics: cameras to watch, by the beginnings of their names; "" is all of them.
        maximum_bytes: a part larger than this closes the connection before it is stored.
        clock: monotonic seconds.

    Raises:
        SourceError: the address is written wrong, or (on entering) its host is unknown.
    """

    def __init__(
        self,
        address: str,
        topics: Sequence[str] = ("",),
        *,
        maximum_bytes: int = MAX_PICTURE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            self._address = parse_address(address)
        except ValueError as error:
            raise SourceError(f"{address}: {error}") from None
        if self._address.host == "*" or (not self._address.path and self._address.port == 0):
            raise SourceError(f"{address}: a viewer needs a host and a port; for instance tcp://127.0.0.1:5555")
        self.uri = address
        self.damaged = 0
        """Messages that could not be read."""
        self._topics = tuple(topics)
        self._maximum_bytes = maximum_bytes
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._heard_at = clock()
        self._renewed_at = self._heard_at
        self._last: dict[str, Header] = {}

    @property
    def silent_seconds(self) -> float:
        """How long nothing readable has come."""
        return self._clock() - self._heard_at

    def __enter__(self) -> Self:
        address = self._address
        if address.host:
            try:
                socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            except OSError as error:
                reason = error.strerror or error
                raise SourceError(f"{self.uri}: the host {address.host!r} is unknown ({reason})") from None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, setting in (
            (zmq.RCVHWM, _QUEUE_MESSAGES),
            (zmq.MAXMSGSIZE, self._maximum_bytes),
            (zmq.LINGER, 0),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 2000),
            (zmq.HEARTBEAT_IVL, 500),
            (zmq.HEARTBEAT_TIMEOUT, 2000),
            (zmq.IPV6, int(address.is_ipv6)),
        ):
            self._socket.setsockopt(option, setting)
        for topic in self._topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        try:
            self._socket.connect(self.uri)
        except zmq.ZMQError as error:
            self._close()
            raise SourceError(f"{self.uri}: cannot be connected to ({error.strerror})") from None
        self._heard_at = self._clock()
        return self

    def __iter__(self) -> Iterator[Received]:
        return self.messages()

    def messages(self, stop: threading.Event | None = None) -> Iterator[Received]:
        """Give the newest message of each camera as it comes, until ``stop`` is set.

        Damaged messages are counted, said once, and left out.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        for received in self.messages_or_silence(stop):
            if received is not None:
                yield received

    def messages_or_silence(self, stop: threading.Event | None = None) -> Iterator[Received | None]:
        """Give the same as ``messages``, and None whenever a moment has passed in which nothing new came.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        while stop is None or not stop.is_set():
            given = 0
            for parts, passed_over in self._newest().values():
                received = self._read(parts, passed_over)
                if received is not None:
                    given += 1
                    yield received
            if not given:
                yield None

    def overlays(self, stop: threading.Event | None = None) -> Iterator[Overlay]:
        """Give the same as ``messages``, as overlays for sinks.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        for received in self.messages(stop):
            try:
                yield received.overlay()
            except WireError as error:
                self._say_damaged(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close()

    def _newest(self) -> dict[bytes, tuple[list[bytes], int]]:
        """Wait a moment, then read all there is: by topic the last message, and how many it overtook."""
        if self._socket is None:
            raise SourceError(f"{self.uri}: is not open; use it in a with block")
        self._renew_if_silent(self._socket)
        newest: dict[bytes, tuple[list[bytes], int]] = {}
        wait_ms = _POLL_MS
        for _ in range(_DRAIN_MESSAGES):
            if not self._socket.poll(wait_ms, zmq.POLLIN):
                break
            wait_ms = 0
            parts = self._message(self._socket)
            overtaken = newest.get(parts[0], ([], -1))[1]
            if parts[0] in newest or len(newest) < _MAX_CAMERAS:
                newest[parts[0]] = (parts, overtaken + 1)
        return newest

    def _renew_if_silent(self, connected: zmq.Socket[bytes]) -> None:
        """Connect anew after a silence: libzmq gives a connection up for good after a message beyond its limits."""
        now = self._clock()
        if now - max(self._heard_at, self._renewed_at) < _RENEW_SECONDS:
            return
        self._renewed_at = now
        with contextlib.suppress(zmq.ZMQError):  # it has given it up already
            connected.disconnect(self.uri)
        connected.connect(self.uri)

    @staticmethod
    def _message(source: zmq.Socket[bytes]) -> list[bytes]:
        """Read one message; of one with too many parts only so many that it is known for damaged."""
        parts = [source.recv()]
        while source.getsockopt(zmq.RCVMORE):
            part = source.recv()
            if len(parts) < 4:
                parts.append(part)
        return parts

    def _read(self, parts: list[bytes], passed_over: int) -> Received | None:
        """Decode a message up to its picture; None for a damaged one, and for a frame that was given before."""
        try:
            header, payload = decode_message(parts)
        except WireVersionError:
            raise
        except WireError as error:
            self._say_damaged(error)
            return None
        self._heard_at = self._clock()
        last = self._last.get(header.camera)
        if last is not None and _is_same(last, header):
            return None  # sent again for somebody who joined late
        if last is None and len(self._last) >= _MAX_CAMERAS:
            self._last.clear()
        self._last[header.camera] = header
        gap = 0 if last is None or header.index <= last.index else header.index - last.index - 1
        skipped = min(passed_over, gap)
        return Received(header, payload, time.time(), missed=gap - skipped, skipped=passed_over)

    def _say_damaged(self, error: WireError) -> None:
        if self.damaged == 0:
            log.warning("%s: a message cannot be read, and is left out: %s", self.uri, error)
        self.damaged += 1

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = None


def _is_same(one: Header, other: Header) -> bool:
    """Say whether both tell of the same frame: a publisher that was started again counts from 0 again."""
    if one.silence != other.silence or one.index != other.index:
        return False
    return abs(one.taken_at_unix - other.taken_at_unix) < _SAME_FRAME_SECONDS

"""A subscriber's connection: keeps the newest message of each topic, and can say in words why nothing comes.

It is made again by itself without end. A thread of its own reads all the time: what waits in libzmq is old, and a pipe
that is full when its connection is made again can abort the process (libzmq issue 3937).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import zmq

from overlays.wire.curve.handshake_errors import FAILED, SocketMonitor, refused_because
from overlays.wire.curve.keys import ViewerKeys
from overlays.wire.endpoint import Endpoint
from pipeline.errors import SourceError
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger(__name__)

_QUEUE_MESSAGES: Final = 256
_POLL_MS: Final = 50
"""How long reading waits before it looks how the connection does, and whether it should stop."""
_DRAIN_MESSAGES: Final = 256
"""Messages read in one go: even a flood lets the newest through now and then."""
MAX_TOPICS: Final = 1024
_WANTED: Final = (
    FAILED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
)
_RENEW_SECONDS: Final = 2.0
"""How long after a refusal, and after nothing at all, it is tried anew: libzmq itself gives up after some."""
_RETRY_SECONDS: Final = 0.3
"""When a publisher goes, libzmq says within this that it tries again; when it closed the connection itself, never."""
_NO_PUBLISHER: Final = "nobody answers there"
_WAITING: Final = "somebody answers there and has not let us in yet; it is stopped, or too busy to answer"


class LatestMessage(NamedTuple):
    """A topic's newest message."""

    parts: list[bytes]
    at_unix: float
    passed_over: int
    """How many it overtook that nobody has taken."""


class Subscriber:
    """One ``SUB`` socket and the thread that reads it. Opening, ``take`` and closing belong to one thread at a time."""

    def __init__(
        self,
        address: Endpoint,
        topics: Sequence[str],
        *,
        maximum_bytes: int,
        keys: ViewerKeys | None,
        clock: Callable[[], float],
    ) -> None:
        self.problem = ""
        """Why nothing comes, in words; empty where nothing is known against it."""
        self.refused = 0
        """How many handshakes failed."""
        self.oversized = 0
        """How often a message beyond ``maximum_bytes`` ended the connection before it was stored."""
        self._address, self._topics = address, tuple(topics)
        self._maximum_bytes, self._keys, self._clock = maximum_bytes, keys, clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._events: SocketMonitor | None = None
        self._renewed_at = clock()
        self._calling: int | None = None
        """The file descriptor of a connection whose handshake is under way."""
        self._joined: int | None = None
        """The one of a connection that stands."""
        self._lost_at: float | None = None
        self._logged = ""
        # The bell guards the newest messages: the reading thread puts them there, ``take`` takes them away.
        self._condition = threading.Condition()
        self._newest: dict[bytes, LatestMessage] = {}
        self._closing = threading.Event()
        self._worker: ThreadWorker | None = None

    @property
    def uri(self) -> str:
        """Where it connects to."""
        return self._address.uri

    def take(self, wait_seconds: float) -> dict[bytes, LatestMessage]:
        """Wait until something is there, but not longer, and return the newest message of each topic, once.

        Raises:
            SourceError: it is not open.
        """
        if self._worker is None or self._worker.ended:
            reason = self._worker.error if self._worker is not None else "use it in a with block"
            raise SourceError(f"{self.uri}: is not open; {reason}")
        with self._condition:
            self._condition.wait_for(lambda: self._newest, wait_seconds)
            taken, self._newest = self._newest, {}
        return taken

    def open(self) -> None:
        """Connect; nobody need be there yet.

        Raises:
            SourceError: the host is unknown.
        """
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
        if self._keys is not None:
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.own.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.own.secret)
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, self._keys.server)
        for topic in self._topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._events = SocketMonitor(self._socket, _WANTED)
        self._renewed_at = self._clock()
        try:
            self._socket.connect(self.uri)
        except zmq.ZMQError as error:
            self.close()
            raise SourceError(f"{self.uri}: cannot be connected to ({error.strerror})") from None
        connected = self._socket
        self._closing.clear()
        self._newest = {}
        self._worker = ThreadWorker(
            f"viewer of {self.uri}", lambda: self._read(connected), self._closing.set
        ).__enter__()

    def _read(self, connected: zmq.Socket[bytes]) -> None:
        """Read all there is, again and again; keep the last message of each topic."""
        while not self._closing.is_set():
            self._poll_events(connected)
            wait_ms = _POLL_MS
            for _ in range(_DRAIN_MESSAGES):
                if not connected.poll(wait_ms, zmq.POLLIN):
                    break
                wait_ms = 0
                parts = _message(connected)
                self.problem = self._logged = ""  # whatever the events, which come by another way, have yet to tell
                with self._condition:
                    before = self._newest.get(parts[0])
                    if before is not None or len(self._newest) < MAX_TOPICS:
                        overtaken = 0 if before is None else before.passed_over + 1
                        self._newest[parts[0]] = LatestMessage(parts, time.time(), overtaken)
                        self._condition.notify_all()

    def _poll_events(self, connected: zmq.Socket[bytes]) -> None:
        """Hear how the connection does, and make it anew where libzmq has given it up."""
        for event, value in self._events or ():
            self._on_event(event, value)
        now = self._clock()
        if self._lost_at is not None and now - self._lost_at > _RETRY_SECONDS:
            self.oversized += 1
            self._set_problem(
                f"a message larger than {self._maximum_bytes} bytes came; the connection was ended before it"
            )
            self._renew(connected, now)
        elif self._joined is None and self._calling is None and now - self._renewed_at > _RENEW_SECONDS:
            self._renew(connected, now)

    def close(self) -> None:
        """End it."""
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
        self._worker = None
        if self._events is not None:
            self._events.close()
        if self._socket is not None:
            self._socket.close(0)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = self._events = None
        self._calling = self._joined = self._lost_at = None

    def _on_event(self, event: int, value: int) -> None:
        if event & FAILED:
            self._on_refusal(event, value)
        elif event == zmq.EVENT_CONNECTED:
            self._calling = value
            if self.problem in {"", _NO_PUBLISHER}:
                self.problem = _WAITING
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._joined, self._calling, self._lost_at = self._calling, None, None
            self.problem = self._logged = ""
        elif event == zmq.EVENT_DISCONNECTED:
            if value == self._joined:
                self._joined, self._lost_at = None, self._clock()
            self._calling = None if value == self._calling else self._calling
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self.problem = self.problem if self._lost_at is None else _NO_PUBLISHER
            self._lost_at = None
        elif event == zmq.EVENT_CLOSED:
            self.problem, self._logged = _NO_PUBLISHER, ""

    def _on_refusal(self, event: int, value: int) -> None:
        self.refused += 1
        self._calling = None
        # The same refusal comes in plain words or, when the other end was faster, as a hang-up: the words stay.
        vague = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        if not (vague and self._logged):
            self._set_problem(refused_because(event, value, keys=self._keys is not None))

    def _set_problem(self, trouble: str) -> None:
        """Keep the reason, and say it once as long as it is the same."""
        self.problem = trouble
        if trouble != self._logged:
            self._logged = trouble
            log.warning("%s: %s; still trying", self.uri, trouble)

    def _renew(self, connected: zmq.Socket[bytes], now: float) -> None:
        self._renewed_at = now
        self._lost_at = self._joined = self._calling = None
        with contextlib.suppress(zmq.ZMQError):  # it has given it up already
            connected.disconnect(self.uri)
        connected.connect(self.uri)


def _message(connected: zmq.Socket[bytes]) -> list[bytes]:
    """Read one message; of one with too many parts only so many that it is known for damaged."""
    parts = [connected.recv()]
    while connected.getsockopt(zmq.RCVMORE):
        part = connected.recv()
        if len(parts) < 4:
            parts.append(part)
    return parts

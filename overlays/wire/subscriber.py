"""ZeroMQ subscriber: stores the newest message of each topic, and reports why no message arrives.

It reconnects until it is closed. A separate thread reads all messages at once, for two reasons: messages that wait in
libzmq become old, and a full pipe at a reconnection can abort the process (libzmq issue 3937).
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
"""Maximum wait of one read in milliseconds; afterwards connection events and ``close`` are checked."""
_DRAIN_MESSAGES: Final = 256
"""Maximum number of messages read between two checks of connection events."""
MAX_TOPICS: Final = 1024
_MONITORED_EVENTS: Final = (
    FAILED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
)
_RENEW_SECONDS: Final = 2.0
"""Time without a connection after which the subscriber reconnects, because libzmq stops after some refusals."""
_RETRY_SECONDS: Final = 0.3
"""Maximum time in seconds from a disconnection by the publisher to libzmq's report of a retry.

Without a report, libzmq itself has closed the connection, because a message was too large.
"""
_NO_PUBLISHER: Final = "no publisher answers at this address"
_WAITING: Final = "a publisher accepts the connection, but does not complete it; it is stopped or overloaded"


class LatestMessage(NamedTuple):
    """The newest message of a topic, and the time of its arrival."""

    parts: list[bytes]
    at_unix: float
    passed_over: int
    """Number of older messages that were replaced before ``take`` returned them."""


class Subscriber:
    """A ``SUB`` socket with a reading thread. Only one thread at a time may call ``open``, ``take`` and ``close``."""

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
        """Reason why no message arrives; empty if no reason is known."""
        self.refused = 0
        """Number of failed handshakes."""
        self.oversized = 0
        """Number of connections that were closed because a message exceeded ``maximum_bytes``."""
        self._address, self._topics = address, tuple(topics)
        self._maximum_bytes, self._keys, self._clock = maximum_bytes, keys, clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._events: SocketMonitor | None = None
        self._renewed_at = clock()
        self._connecting: int | None = None
        """File descriptor of the connection during its handshake; None if there is none."""
        self._connected: int | None = None
        """File descriptor of the established connection; None if there is none."""
        self._lost_at: float | None = None
        self._logged = ""
        # Guards the newest messages, which the reading thread adds and ``take`` removes.
        self._condition = threading.Condition()
        self._newest: dict[bytes, LatestMessage] = {}
        self._closing = threading.Event()
        self._worker: ThreadWorker | None = None

    @property
    def uri(self) -> str:
        """The publisher's address."""
        return self._address.uri

    def take(self, wait_seconds: float) -> dict[bytes, LatestMessage]:
        """Return the newest message of each topic since the last call; wait at most ``wait_seconds`` for the first.

        Raises:
            SourceError: the subscriber is not open.
        """
        if self._worker is None or self._worker.ended:
            if self._worker is None:
                raise SourceError(f"{self.uri}: is not open; use it in a with block")
            raise SourceError(f"{self.uri}: the receiving thread has ended ({self._worker.error})")
        with self._condition:
            self._condition.wait_for(lambda: self._newest, wait_seconds)
            messages, self._newest = self._newest, {}
        return messages

    def open(self) -> None:
        """Start to connect; the publisher may start later.

        Raises:
            SourceError: the host cannot be resolved, or libzmq refuses the address.
        """
        address = self._address
        if address.host:
            try:
                socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            except OSError as error:
                reason = error.strerror or error
                raise SourceError(f"{self.uri}: cannot resolve host {address.host!r} ({reason})") from None
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
        self._events = SocketMonitor(self._socket, _MONITORED_EVENTS)
        self._renewed_at = self._clock()
        try:
            self._socket.connect(self.uri)
        except zmq.ZMQError as error:
            self.close()
            raise SourceError(f"{self.uri}: cannot be connected to ({error.strerror})") from None
        socket_ = self._socket
        self._closing.clear()
        self._newest = {}
        self._worker = ThreadWorker(f"viewer of {self.uri}", lambda: self._read(socket_), self._closing.set).__enter__()

    def _read(self, subscriber: zmq.Socket[bytes]) -> None:
        """Read messages until ``close`` is called; store the newest message of each topic."""
        while not self._closing.is_set():
            self._poll_events(subscriber)
            wait_ms = _POLL_MS
            for _ in range(_DRAIN_MESSAGES):
                if not subscriber.poll(wait_ms, zmq.POLLIN):
                    break
                wait_ms = 0
                parts = _message(subscriber)
                self.problem = self._logged = ""  # a message is newer than a waiting event of a problem
                with self._condition:
                    before = self._newest.get(parts[0])
                    if before is not None or len(self._newest) < MAX_TOPICS:
                        passed_over = 0 if before is None else before.passed_over + 1
                        self._newest[parts[0]] = LatestMessage(parts, time.time(), passed_over)
                        self._condition.notify_all()

    def _poll_events(self, subscriber: zmq.Socket[bytes]) -> None:
        """Handle connection events, and reconnect if libzmq has stopped trying."""
        for event, value in self._events or ():
            self._handle_event(event, value)
        now = self._clock()
        if self._lost_at is not None and now - self._lost_at > _RETRY_SECONDS:
            self.oversized += 1
            self._set_problem(f"a message larger than {self._maximum_bytes} bytes arrived; the connection was ended")
            self._renew(subscriber, now)
        elif self._connected is None and self._connecting is None and now - self._renewed_at > _RENEW_SECONDS:
            self._renew(subscriber, now)

    def close(self) -> None:
        """Stop reading and close the connection."""
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
        self._connecting = self._connected = self._lost_at = None

    def _handle_event(self, event: int, value: int) -> None:
        if event & FAILED:
            self._handle_refusal(event, value)
        elif event == zmq.EVENT_CONNECTED:
            self._connecting = value
            if self.problem in {"", _NO_PUBLISHER}:
                self.problem = _WAITING
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected, self._connecting, self._lost_at = self._connecting, None, None
            self.problem = self._logged = ""
        elif event == zmq.EVENT_DISCONNECTED:
            if value == self._connected:
                self._connected, self._lost_at = None, self._clock()
            self._connecting = None if value == self._connecting else self._connecting
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self.problem = self.problem if self._lost_at is None else _NO_PUBLISHER
            self._lost_at = None
        elif event == zmq.EVENT_CLOSED:
            self.problem, self._logged = _NO_PUBLISHER, ""

    def _handle_refusal(self, event: int, value: int) -> None:
        self.refused += 1
        self._connecting = None
        # libzmq may report a refusal again without a reason, if the peer closes fast. Keep the known reason.
        has_no_reason = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        if not (has_no_reason and self._logged):
            self._set_problem(refused_because(event, value, keys=self._keys is not None))

    def _set_problem(self, problem: str) -> None:
        """Set ``problem``, and log it if it differs from the last one."""
        self.problem = problem
        if problem != self._logged:
            self._logged = problem
            log.warning("%s: %s; still trying", self.uri, problem)

    def _renew(self, subscriber: zmq.Socket[bytes], now: float) -> None:
        self._renewed_at = now
        self._lost_at = self._connected = self._connecting = None
        with contextlib.suppress(zmq.ZMQError):  # libzmq may have closed the connection already
            subscriber.disconnect(self.uri)
        subscriber.connect(self.uri)


def _message(subscriber: zmq.Socket[bytes]) -> list[bytes]:
    """Return the parts of one message, at most four: a valid message has three."""
    parts = [subscriber.recv()]
    while subscriber.getsockopt(zmq.RCVMORE):
        part = subscriber.recv()
        if len(parts) < 4:
            parts.append(part)
    return parts

"""A subscriber's connection: made again by itself without end, and able to say in words why nothing comes over it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from overlays.address import Address
from overlays.curve.handshakes import FAILED, Events, refused_because
from overlays.curve.keys import ViewerKeys
from pipeline.errors import SourceError

log = logging.getLogger(__name__)

_QUEUE_MESSAGES: Final = 8
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
_NOBODY: Final = "nobody answers there"
_WAITING: Final = "somebody answers there and has not let us in yet; a stream lets viewers in once its network is built"


class Connection:
    """One ``SUB`` socket. All of it belongs to one thread at a time; anybody may read ``trouble``."""

    def __init__(
        self,
        address: Address,
        topics: Sequence[str],
        *,
        maximum_bytes: int,
        keys: ViewerKeys | None,
        clock: Callable[[], float],
    ) -> None:
        self.trouble = ""
        """Why nothing comes, in words; empty where nothing is known against it."""
        self.refused = 0
        """How many handshakes failed."""
        self.oversized = 0
        """How often a message beyond ``maximum_bytes`` ended the connection before it was stored."""
        self._address, self._topics = address, tuple(topics)
        self._maximum_bytes, self._keys, self._clock = maximum_bytes, keys, clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._events: Events | None = None
        self._renewed_at = clock()
        self._calling: int | None = None
        """The file descriptor of a connection whose handshake is under way."""
        self._joined: int | None = None
        """The one of a connection that stands."""
        self._lost_at: float | None = None
        self._said = ""

    @property
    def uri(self) -> str:
        """Where it connects to."""
        return self._address.uri

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The open socket.

        Raises:
            SourceError: it is not open.
        """
        if self._socket is None:
            raise SourceError(f"{self.uri}: is not open; use it in a with block")
        return self._socket

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
        self._events = Events(self._socket, _WANTED)
        self._renewed_at = self._clock()
        try:
            self._socket.connect(self.uri)
        except zmq.ZMQError as error:
            self.close()
            raise SourceError(f"{self.uri}: cannot be connected to ({error.strerror})") from None

    def tend(self) -> None:
        """Hear how the connection does, and make it anew where libzmq has given it up."""
        for event, value in self._events or ():
            self._hear(event, value)
        now = self._clock()
        if self._lost_at is not None and now - self._lost_at > _RETRY_SECONDS:
            self.oversized += 1
            self._tell(f"a message larger than {self._maximum_bytes} bytes came; the connection was ended before it")
            self._renew(now)
        elif self._joined is None and self._calling is None and now - self._renewed_at > _RENEW_SECONDS:
            self._renew(now)

    def close(self) -> None:
        """End it."""
        if self._events is not None:
            self._events.close()
        if self._socket is not None:
            self._socket.close(0)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = self._events = None
        self._calling = self._joined = self._lost_at = None

    def _hear(self, event: int, value: int) -> None:
        if event & FAILED:
            self._be_refused(event, value)
        elif event == zmq.EVENT_CONNECTED:
            self._calling = value
            if self.trouble in {"", _NOBODY}:
                self.trouble = _WAITING
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._joined, self._calling, self._lost_at = self._calling, None, None
            self.trouble = self._said = ""
        elif event == zmq.EVENT_DISCONNECTED:
            if value == self._joined:
                self._joined, self._lost_at = None, self._clock()
            self._calling = None if value == self._calling else self._calling
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self.trouble = self.trouble if self._lost_at is None else _NOBODY
            self._lost_at = None
        elif event == zmq.EVENT_CLOSED:
            self.trouble, self._said = _NOBODY, ""

    def _be_refused(self, event: int, value: int) -> None:
        self.refused += 1
        self._calling = None
        # The same refusal comes in plain words or, when the other end was faster, as a hang-up: the words stay.
        vague = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        if not (vague and self._said):
            self._tell(refused_because(event, value, keys=self._keys is not None))

    def _tell(self, trouble: str) -> None:
        """Keep the reason, and say it once as long as it is the same."""
        self.trouble = trouble
        if trouble != self._said:
            self._said = trouble
            log.warning("%s: %s; still trying", self.uri, trouble)

    def _renew(self, now: float) -> None:
        self._renewed_at = now
        self._lost_at = self._joined = self._calling = None
        with contextlib.suppress(zmq.ZMQError):  # it has given it up already
            self.socket.disconnect(self.uri)
        self.socket.connect(self.uri)

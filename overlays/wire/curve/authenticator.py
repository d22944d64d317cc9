"""Server side of CURVE: admits viewers whose keys are on the list, counts and logs refusals, limits connections.

libzmq requests each decision over ZAP (ZeroMQ RFC 27), a socket inside the process, and reports connections to a
monitor. A separate thread serves both, so that neither handshakes nor the connection limit wait for the next frame.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final

import zmq
from zmq.utils import z85

from overlays.wire.curve.allowlist import AllowList
from overlays.wire.curve.connection_limit import HANDSHAKE_MS, ConnectionTable, peer_address, shut_down
from overlays.wire.curve.handshake_errors import FAILED, RateLimitedLog, RefusalReason, SocketMonitor, refusal
from overlays.wire.curve.keys import KeyPair
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger(__name__)

_ZAP: Final = "inproc://zeromq.zap.01"
_REREAD_SECONDS: Final = 0.5
_POLL_MS: Final = 50
_MAX_REQUESTS: Final = 100
"""Maximum number of ZAP requests answered between two reads of the monitor."""
_LOG_SECONDS: Final = 60.0


class CurveAuthenticator:
    """Authenticates the connections of a bound socket; without keys, it admits all connections and counts them.

    Only the socket's thread may call ``attach``, ``bound`` and ``close``; any thread may use the other members.
    """

    def __init__(self, uri: str, keys: KeyPair | None, allowed: AllowList | None, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._allowed = allowed
        self._clock = clock
        self._reread_at = clock()
        self._rate_limited_log = RateLimitedLog(log, uri)
        self.connections = ConnectionTable(clock=clock)
        self._admitted: set[bytes] = set()
        self._zap: zmq.Socket[bytes] | None = None
        self._events: SocketMonitor | None = None
        self._worker: ThreadWorker | None = None
        self._ending = threading.Event()
        self._revoked = threading.Event()
        self._uri = uri
        self._local_address: object = None
        self._full_logged_at = float("-inf")
        self.closed = True
        """True once the socket has stopped listening. The sink resets it before unbinding, and waits for it after."""

    @property
    def refused(self) -> Mapping[RefusalReason, int]:
        """Number of failed handshakes by reason."""
        return dict(self._rate_limited_log.counts)

    @property
    def viewers(self) -> int:
        """Number of connections with a subscription."""
        return self.connections.viewers

    def attach(self, socket: zmq.Socket[bytes]) -> None:
        """Start to handle the handshakes of a socket. Call this before the socket binds."""
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._events = SocketMonitor(socket, FAILED | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        if self._keys is not None:
            self._zap = socket.context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(_ZAP)
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, b"recipro-stream")
        self._ending.clear()
        self._worker = ThreadWorker(f"handshakes of {self._uri}", self._run, self._ending.set).__enter__()

    def has_revoked(self) -> bool:
        """Return whether an admitted viewer's key was revoked since the previous call."""
        if not self._revoked.is_set():
            return False
        self._revoked.clear()
        return True

    def end(self, descriptor: int) -> None:
        """Close the connection with this file descriptor, if the connection belongs to this socket."""
        shut_down(descriptor, self._is_ours)

    def close(self) -> None:
        """Stop the thread and close its sockets. Call this before the attached socket is closed."""
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
        if self._events is not None:
            self._events.close()
        if self._zap is not None:
            self._zap.close(0)
        self._events = self._zap = self._worker = None
        self.connections.clear()

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._zap, None if self._events is None else self._events.socket):
            if source is not None:
                poller.register(source, zmq.POLLIN)
        while not self._ending.is_set():
            poller.poll(_POLL_MS)
            now = self._clock()
            self._read_monitor(now)
            self._answer_zap()
            self._reread_list(now)
            self._rate_limited_log.flush(now)

    def _read_monitor(self, now: float) -> None:
        """Read all events, then close the surplus connections that are still open."""
        surplus: dict[int, None] = {}
        for event, value in self._events or ():
            if event == zmq.EVENT_ACCEPTED:
                surplus.pop(value, None)  # the descriptor is reused by a new connection
                ended = self.connections.accept(value, peer_address(value))
                if ended is not None:
                    surplus[ended] = None
            elif event == zmq.EVENT_DISCONNECTED:
                surplus.pop(value, None)
                self.connections.remove(value)
            elif event == zmq.EVENT_CLOSED:
                self.closed = True
                self.connections.clear()
            elif event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # _admits has logged an unknown key already
                self._rate_limited_log.record(refusal(event, value, keys=self._keys is not None), now)
        for descriptor in surplus:
            self._refuse(descriptor, now)

    def _refuse(self, descriptor: int, now: float) -> None:
        self.end(descriptor)
        if now - self._full_logged_at > _LOG_SECONDS:
            self._full_logged_at = now
            log.warning(
                "%s: %d connections are open, and no more are accepted; connections that do not complete their "
                "handshake are ended",
                self._uri,
                len(self.connections),
            )

    def _is_ours(self, connection: socket.socket) -> bool:
        """Return whether a connection belongs to this socket, because a reused descriptor may not."""
        return _local_address_of(connection.getsockname()) == self._local_address

    def bound(self, endpoint: str) -> None:
        """Record the address to which the socket is bound."""
        path = endpoint.removeprefix("ipc://")
        self._local_address = path if path != endpoint else int(endpoint.rpartition(":")[2])

    def _reread_list(self, now: float) -> None:
        if self._allowed is None or now - self._reread_at < _REREAD_SECONDS:
            return
        self._reread_at = now
        self._allowed.changed()
        revoked = self._admitted - self._allowed.names.keys()
        self._admitted -= revoked
        if revoked:
            self._revoked.set()

    def _answer_zap(self) -> None:
        for _ in range(_MAX_REQUESTS):
            if self._zap is None or not self._zap.poll(0, zmq.POLLIN):
                return
            version, number, _domain, address, _identity, mechanism, *credentials = self._zap.recv_multipart()
            if self._admits(mechanism, credentials, address):
                answer = (b"200", b"OK")
            else:
                answer = (b"400", b"this key is not on the list")
            self._zap.send_multipart([version, number, *answer, b"", b""])

    def _admits(self, mechanism: bytes, credentials: list[bytes], address: bytes) -> bool:
        if mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32 or self._allowed is None:
            return False
        self._allowed.changed()
        key = z85.encode(credentials[0])
        owner = self._allowed.names.get(key)
        where = address.decode("utf-8", "replace")
        if owner is None:
            self._rate_limited_log.record("unknown key", self._clock(), f"{key.decode()} from {where}")
            return False
        log.info("%s: %s connected, from %s", self._uri, owner, where)
        self._admitted.add(key)
        return True


def _local_address_of(name: object) -> object:
    """Return the port (TCP) or path (ipc) of a connection's local address."""
    if isinstance(name, tuple):
        return name[1]
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name

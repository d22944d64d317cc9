"""Limits the number of connections of a bound ZeroMQ socket.

libzmq itself has no limit. Its monitor reports the file descriptor of each connection. A surplus connection is shut
down through its descriptor, and libzmq then closes it as if the peer had closed it.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from overlays.file_limits import connection_limit, is_loopback_address, shared_address

T = TypeVar("T")

MAX_CONNECTIONS: Final = 256
HANDSHAKE_MS: Final = 3000
"""Maximum duration of a handshake in ms. With libzmq's default of 30 s, clients could occupy all descriptors."""
_EARLY_SECONDS: Final = 1.0
"""Maximum time in seconds between a connection's first message and its event ACCEPTED, if the message is read first."""


@dataclass(slots=True)
class _Connection:
    serial: int
    accepted_at: float
    address: str
    """Address under which connections are counted; "" (not limited) for this machine, where a proxy may run."""
    is_viewer: bool = False
    """True after a message has shown that the handshake is complete."""


class ConnectionTable:
    """The open connections by file descriptor.

    Only the thread that reads the monitor may call ``accept``, ``remove`` and ``clear``; any thread may use the rest.
    """

    def __init__(self, limit: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the maximum; None: the number that the process's file descriptors permit, up to ``MAX_CONNECTIONS``."""
        self._limit = connection_limit(MAX_CONNECTIONS) if limit is None else limit
        self._clock = clock
        self._connections: dict[int, _Connection] = {}
        self._early: dict[int, float] = {}
        """Time of a message that was read before the connection's event ACCEPTED, by descriptor."""
        self._lock = threading.Lock()
        """Guards the first message and the acceptance of a connection, which two threads record in either order."""
        self._serial = 0
        self.refused = 0
        """Number of connections that were closed because of the limit."""

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def viewers(self) -> int:
        """Number of connections that have sent a subscription."""
        return sum(connection.is_viewer for connection in list(self._connections.values()))

    def serial(self, descriptor: int) -> int:
        """Return the unique serial number of the connection with this descriptor; 0 if it is unknown."""
        connection = self._connections.get(descriptor)
        return 0 if connection is None else connection.serial

    def mark_as_viewer(self, descriptor: int) -> None:
        """Record that a message was received from the connection, so its handshake is complete."""
        with self._lock:
            connection = self._connections.get(descriptor)
            if connection is None:
                self._early[descriptor] = self._clock()
            else:
                connection.is_viewer = True

    def accept(self, descriptor: int, host: str) -> int | None:
        """Add a connection; return the descriptor of a connection to close, or None within the limits.

        At a limit, this is the oldest connection in its handshake, otherwise the new connection itself.

        Args:
            descriptor: file descriptor, from the monitor.
            host: address of the peer; "" for ipc.
        """
        self._serial += 1
        address = "" if not host or is_loopback_address(host) else shared_address(host)
        now = self._clock()
        with self._lock:
            early = self._early.pop(descriptor, None)
            is_viewer = early is not None and now - early < _EARLY_SECONDS
            self._connections[descriptor] = _Connection(self._serial, now, address, is_viewer)
        candidates = {
            known: connection
            for known, connection in self._connections.items()
            if address and connection.address == address
        }
        if len(candidates) <= self._limit // 2:
            candidates = dict(self._connections)
            if len(candidates) <= self._limit:
                return None
        self.refused += 1
        return self._remove_surplus(candidates, descriptor, now)

    def remove(self, descriptor: int) -> None:
        """Remove a closed connection."""
        self._connections.pop(descriptor, None)

    def clear(self) -> None:
        """Remove all connections."""
        self._connections.clear()
        self._early.clear()

    def _remove_surplus(self, candidates: dict[int, _Connection], newest: int, now: float) -> int:
        """Remove and return the oldest connection in its handshake, or ``newest`` if none is in its handshake."""
        for descriptor, connection in candidates.items():
            in_handshake = not connection.is_viewer and now - connection.accepted_at < HANDSHAKE_MS / 1000
            if in_handshake and descriptor != newest:
                self._connections.pop(descriptor)
                return descriptor
        self._connections.pop(newest)
        return newest


def peer_address(descriptor: int) -> str:
    """Return the peer's address of a connection; "" for ipc, or if the connection is closed."""

    def address(connection: socket.socket) -> str:
        peer = connection.getpeername()
        return str(peer[0]) if isinstance(peer, tuple) else ""

    return _borrow(descriptor, address, "")


def shut_down(descriptor: int, is_ours: Callable[[socket.socket], bool]) -> bool:
    """Shut down a connection that another thread owns and will close; return whether it was open.

    Args:
        descriptor: file descriptor of the connection; another file may use it by now.
        is_ours: returns whether a socket belongs to the own endpoint.
    """

    def end(connection: socket.socket) -> bool:
        if not is_ours(connection):
            return False
        connection.shutdown(socket.SHUT_RDWR)
        return True

    return _borrow(descriptor, end, False)


def _borrow(descriptor: int, use: Callable[[socket.socket], T], otherwise: T) -> T:
    """Return ``use(socket)`` for another thread's descriptor; ``otherwise`` if it is closed or not a socket."""
    try:
        held = os.dup(descriptor)  # a duplicate keeps its file, even if the original descriptor is reused
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            return otherwise
        held = None
    connection: socket.socket | None = None
    try:
        connection = socket.socket(fileno=descriptor if held is None else held)
        return use(connection)
    except OSError:
        return otherwise
    finally:
        if connection is not None:
            connection.detach()
        if held is not None:
            os.close(held)

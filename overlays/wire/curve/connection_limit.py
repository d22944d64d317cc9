"""Limit of the connections of a ZeroMQ socket that binds.

libzmq accepts connections without a limit. Its monitor reports each connection with its file descriptor; a surplus
connection is shut down there, and libzmq closes it as if the peer had closed it.
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
"""Maximum duration of a handshake; libzmq's default of 30 s would let clients hold all file handles."""
_EARLY_SECONDS: Final = 1.0
"""Maximum time by which a connection's first message may be read before the event that it was accepted."""


@dataclass(slots=True)
class _Connection:
    serial: int
    accepted_at: float
    address: str
    """The address that is limited; "" for this machine, from where a proxy or many programs may connect."""
    is_viewer: bool = False
    """True once it is known to have completed its handshake."""


class ConnectionTable:
    """The open connections by file descriptor.

    ``accept``, ``remove`` and ``clear`` belong to the thread that reads the monitor; the rest to any.
    """

    def __init__(self, limit: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the maximum; None: as many as the process has file handles for, up to ``MAX_CONNECTIONS``."""
        self._limit = connection_limit(MAX_CONNECTIONS) if limit is None else limit
        self._clock = clock
        self._connections: dict[int, _Connection] = {}
        self._early: dict[int, float] = {}
        """When something was received on a descriptor whose connection was not known yet."""
        self._lock = threading.Lock()
        """Orders a connection's first message and its acceptance, which two threads record."""
        self._serial = 0
        self.refused = 0
        """Number of connections that were ended because of the limit."""

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def viewers(self) -> int:
        """Number of connections with a subscription; the others are in their handshake, or idle."""
        return sum(connection.is_viewer for connection in list(self._connections.values()))

    def serial(self, descriptor: int) -> int:
        """Return a number that no other connection with this descriptor had; 0 if the connection is unknown."""
        connection = self._connections.get(descriptor)
        return 0 if connection is None else connection.serial

    def mark_as_viewer(self, descriptor: int) -> None:
        """Record that the connection has completed its handshake: something was received on it."""
        with self._lock:
            connection = self._connections.get(descriptor)
            if connection is None:
                self._early[descriptor] = self._clock()
            else:
                connection.is_viewer = True

    def accept(self, descriptor: int, host: str) -> int | None:
        """Add a new connection; return the descriptor of a connection that has to be ended, possibly this one.

        Args:
            descriptor: file descriptor, from the monitor.
            host: address of the peer; "" if it has none (ipc).
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
        """Remove a connection that has ended."""
        self._connections.pop(descriptor, None)

    def clear(self) -> None:
        """Remove all connections."""
        self._connections.clear()
        self._early.clear()

    def _remove_surplus(self, candidates: dict[int, _Connection], newest: int, now: float) -> int:
        """Remove and return the oldest connection that is still in its handshake, or the newest if there is none."""
        for descriptor, connection in candidates.items():
            in_handshake = not connection.is_viewer and now - connection.accepted_at < HANDSHAKE_MS / 1000
            if in_handshake and descriptor != newest:
                self._connections.pop(descriptor)
                return descriptor
        self._connections.pop(newest)
        return newest


def peer_address(descriptor: int) -> str:
    """Return the address of the peer of a connection; "" if it has none or the connection is closed."""

    def address(connection: socket.socket) -> str:
        peer = connection.getpeername()
        return str(peer[0]) if isinstance(peer, tuple) else ""

    return _borrow(descriptor, address, "")


def shut_down(descriptor: int, is_ours: Callable[[socket.socket], bool]) -> bool:
    """End a connection that another thread owns and will close; return whether it was still open.

    Args:
        descriptor: its file descriptor, which may belong to another file by now.
        is_ours: returns whether a socket is a connection of our own endpoint.
    """

    def end(connection: socket.socket) -> bool:
        if not is_ours(connection):
            return False
        connection.shutdown(socket.SHUT_RDWR)
        return True

    return _borrow(descriptor, end, False)


def _borrow(descriptor: int, use: Callable[[socket.socket], T], otherwise: T) -> T:
    """Return the result of ``use`` on another thread's socket; ``otherwise`` if it is not a socket, or closed."""
    try:
        held = os.dup(descriptor)  # the duplicate stays the same file, even if the original is closed and reused
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

"""Connections of a ZeroMQ socket that binds: how many there may be, and which are ended for want of room.

libzmq accepts whoever comes, without a limit. Its monitor tells of each connection with its file descriptor; one too
many is shut down there, and libzmq closes it as if the other end had.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from overlays.file_limits import connection_limit, is_loopback_address, shared_address

T = TypeVar("T")

MAX_CONNECTIONS: Final = 256
HANDSHAKE_MS: Final = 3000
"""How long a handshake may take; libzmq's own default of 30 s lets strangers hold every file handle."""


@dataclass(slots=True)
class _Place:
    serial: int
    accepted_at: float
    address: str
    """What is limited; "" for this machine, where a proxy or many programs may connect from."""
    is_viewer: bool = False
    """Whether its handshake is known to be done."""


class Places:
    """The open connections, by file descriptor.

    ``accept``, ``leave`` and ``clear`` belong to the thread that reads the monitor; the rest to any.
    """

    def __init__(self, limit: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Take how many there may be; None: as many as the process has file handles for, up to ``MAX_CONNECTIONS``."""
        self._limit = connection_limit(MAX_CONNECTIONS) if limit is None else limit
        self._clock = clock
        self._places: dict[int, _Place] = {}
        self._serial = 0
        self.refused = 0
        """Connections that were ended because there was no room."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def viewers(self) -> int:
        """How many of them have subscribed to something: the others are in their handshake, or idle."""
        return sum(place.is_viewer for place in list(self._places.values()))

    def serial(self, descriptor: int) -> int:
        """Return a number that no other connection with this descriptor had; 0 where it is not known."""
        place = self._places.get(descriptor)
        return 0 if place is None else place.serial

    def settle(self, descriptor: int) -> None:
        """Note that the connection has passed its handshake: something was received on it."""
        place = self._places.get(descriptor)
        if place is not None:
            place.is_viewer = True

    def accept(self, descriptor: int, host: str) -> int | None:
        """Note a new connection; return the descriptor of the one that has to be ended, perhaps its own.

        Args:
            descriptor: as the monitor told it.
            host: the other end's address; "" where there is none (ipc).
        """
        self._serial += 1
        address = "" if not host or is_loopback_address(host) else shared_address(host)
        now = self._clock()
        self._places[descriptor] = _Place(self._serial, now, address)
        among = {one: place for one, place in self._places.items() if address and place.address == address}
        if len(among) <= self._limit // 2:
            among = dict(self._places)
            if len(among) <= self._limit:
                return None
        self.refused += 1
        return self._first_to_go(among, descriptor, now)

    def leave(self, descriptor: int) -> None:
        """Note that a connection has ended."""
        self._places.pop(descriptor, None)

    def clear(self) -> None:
        """Note that all have ended."""
        self._places.clear()

    def _first_to_go(self, among: dict[int, _Place], newest: int, now: float) -> int:
        """Return the oldest connection that is still in its handshake: a viewer needs a moment for it."""
        for descriptor, place in among.items():
            if not place.is_viewer and now - place.accepted_at < HANDSHAKE_MS / 1000 and descriptor != newest:
                self._places.pop(descriptor)
                return descriptor
        self._places.pop(newest)
        return newest


def peer_of(descriptor: int) -> str:
    """Return the address at the other end of a connection; "" where there is none or the connection has gone."""

    def address(connection: socket.socket) -> str:
        peer = connection.getpeername()
        return str(peer[0]) if isinstance(peer, tuple) else ""

    return _borrow(descriptor, address, "")


def shut_down(descriptor: int, is_ours: Callable[[socket.socket], bool]) -> bool:
    """End a connection that another thread owns and will close; say whether it was still there.

    Args:
        descriptor: its file descriptor; it may be another file's by now.
        is_ours: tells a connection of our own endpoint from another file.
    """

    def end(connection: socket.socket) -> bool:
        if not is_ours(connection):
            return False
        connection.shutdown(socket.SHUT_RDWR)
        return True

    return _borrow(descriptor, end, False)


def _borrow(descriptor: int, use: Callable[[socket.socket], T], otherwise: T) -> T:
    """Return what ``use`` makes of another's socket; ``otherwise`` where it is none, or has gone."""
    try:
        held = os.dup(descriptor)  # this stays the same file, whoever closes and opens meanwhile
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

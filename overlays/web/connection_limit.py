"""Accepts connections to the page within limits: total number, number per address, and rate.

asyncio's own server has no such limits, and logs every failed accept when no file descriptor is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from overlays.file_limits import is_loopback_address, shared_address

log = logging.getLogger(__name__)

_ACCEPTS_PER_SECOND: Final = 800.0
_BURST_ACCEPTS: Final = 128
_REFUSED_CREDIT: Final = 0.8
"""Part of the rate limiter's credit that is returned for a refused connection, because refusing costs little."""
_ACCEPTS_AT_ONCE: Final = 16
"""Maximum number of connections accepted in one step of the event loop."""
_RETRY_SECONDS: Final = 1.0
"""Time between two attempts to accept while no file descriptor is free, in seconds."""
_LOG_EVERY_SECONDS: Final = 60.0
_MAX_CLOSING: Final = 32
"""Maximum number of aborted connections whose file descriptor is still open."""


class Connection(socket.socket):
    """An accepted connection that counts its bytes and calls ``on_close`` when it is closed.

    ``transport`` is None until the event loop has created the transport.
    """

    def __init__(self, accepted: socket.socket, address: str, on_close: Callable[[Connection], None]) -> None:
        """Take over the accepted socket; ``on_close`` is called once, when the connection is closed."""
        family, kind, protocol = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, protocol, fileno=accepted.detach())
        self.setblocking(False)
        self.address = address
        """Address under which connections are counted; see ``overlays.file_limits.shared_address``."""
        self.sent_bytes = self.received_bytes = 0
        self.transport: asyncio.Transport | None = None
        self.ended = False
        """True after ``abort``, until the file descriptor is closed."""
        self.accepted_at = time.monotonic()
        self.stalled: tuple[float, int] | None = None
        """(monotonic seconds, sent bytes) when the current data started to wait for sending; None if no data waits."""
        self.heard = (self.accepted_at, 0)
        """(monotonic seconds, received bytes) at the last check of the receive rate."""
        self._on_close: Callable[[Connection], None] | None = on_close

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive at most ``size`` bytes and count them."""
        data = super().recv(size, flags)
        self.received_bytes += len(data)
        return data

    def send(self, data: Any, flags: int = 0, /) -> int:  # noqa: ANN401 - any buffer
        """Send and count bytes."""
        count = super().send(data, flags)
        self.sent_bytes += count
        return count

    def sendmsg(self, buffers: Any, *rest: Any) -> int:  # noqa: ANN401 - any buffers
        """Send and count bytes."""
        count = super().sendmsg(buffers, *rest)
        self.sent_bytes += count
        return count

    def close(self) -> None:
        """Close the file descriptor and call ``on_close``."""
        super().close()
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self)

    def abort(self) -> None:
        """Close the connection at once and discard unsent data."""
        self.ended = True
        if self.transport is not None:
            self.transport.abort()


class Acceptor:
    """Accepts the connections of one listening socket in the event loop that starts it.

    Args:
        listener: a bound, listening socket, which the caller closes.
        protocol: creates the asyncio protocol of one connection.
        limit: maximum number of connections.
        limit_per_address: maximum number of connections per client address. Loopback addresses have no such limit,
            because a reverse proxy may connect from them.
        choose_evicted: returns which of the given connections is closed for a new one; None refuses the new one.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        limit: int,
        limit_per_address: int,
        choose_evicted: Callable[[list[Connection]], Connection | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener, self._protocol = listener, protocol
        self._limit, self._limit_per_address = limit, limit_per_address
        self._choose_evicted, self._clock = choose_evicted, clock
        self._open: dict[Connection, None] = {}
        self._ended: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._credit, self._credit_at = float(_BURST_ACCEPTS), clock()
        self._logged_at: dict[str, float] = {}
        self.refused = 0
        """Number of connections refused because of a limit."""

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Start or resume accepting."""
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        """Stop accepting; open connections stay open."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._loop is not None and self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
        self._loop = None

    def _pause(self, seconds: float) -> None:
        """Stop accepting for ``seconds``; meanwhile connections wait in the kernel's backlog."""
        if self._loop is None:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._resume = self._loop.call_later(seconds, self.start)

    def _accept(self) -> None:
        now = self._clock()
        self._credit = min(self._credit + (now - self._credit_at) * _ACCEPTS_PER_SECOND, _BURST_ACCEPTS)
        self._credit_at = now
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._credit < 1:
                self._pause(_ACCEPTS_AT_ONCE / _ACCEPTS_PER_SECOND)
                return
            try:
                accepted, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError as error:
                self._warn(f"no connection can be accepted ({error.strerror}); accepting is tried again every second")
                self._pause(_RETRY_SECONDS)
                return
            self._credit -= 1
            self._take(accepted, str(peer[0]))

    def _take(self, accepted: socket.socket, host: str) -> None:
        address = shared_address(host)
        if not self._is_within_limits(address, is_local=is_loopback_address(host)):
            self.refused += 1
            self._credit += _REFUSED_CREDIT
            self._warn(f"{len(self._open)} connections are open, and no more are accepted")
            accepted.close()
            return
        try:
            connection = Connection(accepted, address, self._remove)
        except OSError:
            accepted.close()
            return
        self._open[connection] = None
        self._by_address[address] += 1
        task = asyncio.ensure_future(self._hand_over(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_within_limits(self, address: str, *, is_local: bool) -> bool:
        """Return whether a connection may be accepted; at a limit, close another connection for it if possible."""
        if not is_local and self._by_address[address] >= self._limit_per_address:
            return self._evict([c for c in self._open if c.address == address and not c.ended])
        if len(self._open) - len(self._ended) < self._limit:
            return True
        return len(self._ended) < _MAX_CLOSING and self._evict([c for c in self._open if not c.ended])

    def _evict(self, candidates: list[Connection]) -> bool:
        connection = self._choose_evicted(candidates)
        if connection is None:
            return False
        self._ended.add(connection)
        connection.abort()
        return True

    async def _hand_over(self, connection: Connection) -> None:
        if self._loop is None:
            connection.close()
            return
        try:
            connection.transport, _ = await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()

    def _remove(self, connection: Connection) -> None:
        if self._open.pop(connection, self) is self:
            return
        self._ended.discard(connection)
        self._by_address[connection.address] -= 1
        if self._by_address[connection.address] <= 0:
            del self._by_address[connection.address]

    def _warn(self, text: str) -> None:
        """Log a warning, at most once a minute per kind."""
        kind = text.rpartition("(")[0] or "full"
        now = self._clock()
        if now - self._logged_at.get(kind, float("-inf")) >= _LOG_EVERY_SECONDS:
            self._logged_at[kind] = now
            with contextlib.suppress(OSError):
                log.warning("page: %s", text)

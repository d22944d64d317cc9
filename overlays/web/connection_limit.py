"""Accepts the page's connections: how many in all and from each address, how fast, and who gives way to a newcomer.

asyncio's own server accepts without a limit, and logs each accept that fails for want of file handles.
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
"""What a connection gives back that is closed at once: that costs little."""
_ACCEPTS_AT_ONCE: Final = 16
"""Connections accepted before the loop does something else."""
_RETRY_SECONDS: Final = 1.0
"""How long accepting rests where no file handle is free."""
_LOG_EVERY_SECONDS: Final = 60.0
_CLOSING: Final = 32
"""Connections that have been ended and may not have given their handle back yet."""


class Connection(socket.socket):
    """An accepted connection: counts the bytes that come and leave, and tells when it is closed.

    ``transport`` is None until the loop has taken it over.
    """

    def __init__(self, accepted: socket.socket, address: str, on_close: Callable[[Connection], None]) -> None:
        """Take over the accepted socket, and who is told of its end."""
        family, kind, protocol = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, protocol, fileno=accepted.detach())
        self.setblocking(False)
        self.address = address
        """What is limited: see ``overlays.file_limits.shared_address``."""
        self.sent_bytes = self.received_bytes = 0
        self.transport: asyncio.Transport | None = None
        self.ended = False
        """Whether it has been aborted, and only its handle is still open."""
        self.accepted_at = time.monotonic()
        self.stalled: tuple[float, int] | None = None
        """Since when something waits to leave, and how much had left then."""
        self.heard = (self.accepted_at, 0)
        """When it was last looked at how much is received, and how much that was."""
        self._on_close: Callable[[Connection], None] | None = on_close

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive, and count."""
        data = super().recv(size, flags)
        self.received_bytes += len(data)
        return data

    def send(self, data: Any, flags: int = 0, /) -> int:  # noqa: ANN401 - any buffer
        """Send, and count."""
        count = super().send(data, flags)
        self.sent_bytes += count
        return count

    def sendmsg(self, buffers: Any, *rest: Any) -> int:  # noqa: ANN401 - any buffers
        """Send, and count."""
        count = super().sendmsg(buffers, *rest)
        self.sent_bytes += count
        return count

    def close(self) -> None:
        """Give the handle back."""
        super().close()
        if self._on_close is not None:
            told, self._on_close = self._on_close, None
            told(self)

    def abort(self) -> None:
        """End it at once, whatever still waits to leave."""
        self.ended = True
        if self.transport is not None:
            self.transport.abort()


class Acceptor:
    """Accepts what arrives at one listening socket, for the loop it is started in.

    Args:
        listener: bound and listening; stays its owner's.
        protocol: makes the protocol of one connection.
        limit: connections in all.
        limit_per_address: connections of one client; those of this machine are a reverse proxy's, and not limited.
        give_way: chooses which of these connections is ended for a newcomer; None: none of them, the newcomer is.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        limit: int,
        limit_per_address: int,
        give_way: Callable[[list[Connection]], Connection | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener, self._protocol = listener, protocol
        self._limit, self._limit_per_address = limit, limit_per_address
        self._give_way, self._clock = give_way, clock
        self._open: dict[Connection, None] = {}
        self._ended: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._credit, self._credit_at = float(_BURST_ACCEPTS), clock()
        self._said_at: dict[str, float] = {}
        self.refused = 0
        """Connections closed because there was no room."""

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Accept from now on."""
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more; what is open stays open."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._loop is not None and self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
        self._loop = None

    def _rest(self, seconds: float) -> None:
        """Accept nothing for a while: what waits stays with the kernel, which refuses what is too much."""
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
                self._rest(_ACCEPTS_AT_ONCE / _ACCEPTS_PER_SECOND)
                return
            try:
                accepted, place = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError as error:
                self._say(f"no connection can be accepted ({error.strerror}); it is tried again every second")
                self._rest(_RETRY_SECONDS)
                return
            self._credit -= 1
            self._take(accepted, str(place[0]))

    def _take(self, accepted: socket.socket, host: str) -> None:
        address = shared_address(host)
        if not self._has_room(address, is_local=is_loopback_address(host)):
            self.refused += 1
            self._credit += _REFUSED_CREDIT
            self._say(f"{len(self._open)} connections are open, and no more are accepted")
            accepted.close()
            return
        try:
            connection = Connection(accepted, address, self._forget)
        except OSError:
            accepted.close()
            return
        self._open[connection] = None
        self._by_address[address] += 1
        task = asyncio.ensure_future(self._hand_over(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _has_room(self, address: str, *, is_local: bool) -> bool:
        """Say whether a connection may be taken; where there is no room, one that gives way is ended first."""
        if not is_local and self._by_address[address] >= self._limit_per_address:
            return self._end_one([one for one in self._open if one.address == address and not one.ended])
        if len(self._open) - len(self._ended) < self._limit:
            return True
        return len(self._ended) < _CLOSING and self._end_one([one for one in self._open if not one.ended])

    def _end_one(self, among: list[Connection]) -> bool:
        one = self._give_way(among)
        if one is None:
            return False
        self._ended.add(one)
        one.abort()
        return True

    async def _hand_over(self, connection: Connection) -> None:
        if self._loop is None:
            connection.close()
            return
        try:
            connection.transport, _ = await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()

    def _forget(self, connection: Connection) -> None:
        if self._open.pop(connection, self) is self:
            return
        self._ended.discard(connection)
        self._by_address[connection.address] -= 1
        if self._by_address[connection.address] <= 0:
            del self._by_address[connection.address]

    def _say(self, text: str) -> None:
        """Warn, once a minute for each kind."""
        kind = text.rpartition("(")[0] or "full"
        now = self._clock()
        if now - self._said_at.get(kind, float("-inf")) >= _LOG_EVERY_SECONDS:
            self._said_at[kind] = now
            with contextlib.suppress(OSError):
                log.warning("page: %s", text)

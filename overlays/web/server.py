"""The server under the page: uvicorn, which waits neither for those who do not speak nor for those who do not read."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from overlays.file_limits import connection_limit
from overlays.web.connection_limit import Acceptor, Connection

MAX_CONNECTIONS: Final = 256
REQUEST_TIMEOUT_SECONDS: Final = 6.0
"""How long somebody may be connected and not have said what is wanted."""
_CROWDED_REQUEST_TIMEOUT_SECONDS: Final = 0.5
READ_SECONDS: Final = 8.0
_MIN_READ_BYTES: Final = 16 << 10
"""A client that is sent something reads at least so much within ``READ_SECONDS``, or is disconnected."""
_MAX_RECEIVED_BYTES: Final = 1 << 20
"""A second, of one client: it only asks, and says what it has shown. More is a flood of pings, say."""
_MAX_WAITING_BYTES: Final = 64 << 20
"""What may wait to leave to one client."""
_UNADMITTED_SECONDS: Final = 30.0
"""How long the answer to a request without the token may take in all."""
_SAY_EVERY_SECONDS: Final = 60.0
_MAX_SAID: Final = 100
_FAREWELL_SECONDS: Final = 0.3
"""How long what waits may still leave at the end."""


class RepeatFilter(logging.Filter):
    """Lets the same be said once a minute: whoever sends nonsense must not fill the disk that the log is on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take monotonic seconds."""
        super().__init__()
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line may be written; that a request was cut short by the page's own end is no news."""
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False
        said = f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
        now = self._clock()
        if now - self._said_at.get(said, float("-inf")) < _SAY_EVERY_SECONDS:
            return False
        if len(self._said_at) >= _MAX_SAID:
            self._said_at.clear()
        self._said_at[said] = now
        return True


logging.getLogger("uvicorn.error").addFilter(RepeatFilter())


class PageProtocol(H11Protocol):
    """HTTP/1.1 of one connection, which knows since when its client owes a request and whether it showed the token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's arguments
        """Take what uvicorn gives."""
        super().__init__(*args, **kwargs)
        self.idle_since = self.began_at = time.monotonic()
        self.was_admitted = False

    def handle_events(self) -> None:
        """Note when a request begins."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.began_at = time.monotonic()

    def on_response_complete(self) -> None:
        """Note when an answer ends."""
        self.idle_since = time.monotonic()
        self.was_admitted = self.was_admitted or _is_admitted(self)
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Say whether no request is being answered."""
        # Whole words make a cycle; uvicorn declares that there always is one.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete


class Server(uvicorn.Server):
    """Ends connections of those who do not ask, and of those who do not read.

    Places and file handles are for those who look on. Where all are taken, one who has not shown the token gives way
    to a newcomer, who may have it.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        """Take how to serve."""
        super().__init__(config)
        self._limit = connection_limit(MAX_CONNECTIONS)
        self._acceptors: list[Acceptor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept at the sockets."""
        await super().startup(sockets=[])

        def protocol() -> asyncio.BaseProtocol:
            return PageProtocol(self.config, self.server_state, self.lifespan.state)

        for listener in sockets or []:
            limit = self._limit
            acceptor = Acceptor(listener, protocol, limit=limit, limit_per_address=limit // 2, give_way=give_way)
            self._acceptors.append(acceptor)
            acceptor.start()

    async def on_tick(self, counter: int) -> bool:
        """Look around; called ten times a second."""
        now = time.monotonic()
        for acceptor in self._acceptors:
            patience = REQUEST_TIMEOUT_SECONDS if len(acceptor) < self._limit // 2 else _CROWDED_REQUEST_TIMEOUT_SECONDS
            for one in acceptor:
                if not one.ended and _is_overdue(one, now, patience):
                    one.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, without waiting for those who do not read."""
        for acceptor in self._acceptors:
            acceptor.stop()
        ending = asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._close_idle_connections)
        await super().shutdown(sockets)
        ending.cancel()
        self._close_idle_connections()
        await asyncio.sleep(0)  # for the transports to hear of it

    def _close_idle_connections(self) -> None:
        for acceptor in self._acceptors:
            for one in acceptor:
                one.abort()


def _is_overdue(one: Connection, now: float, patience: float) -> bool:
    """Say whether a client owes a request, does not read what is sent to it, or sends far too much."""
    if one.transport is None:
        return False
    if _floods(one, now) or _does_not_read(one, one.transport.get_write_buffer_size(), now):
        return True
    protocol = one.transport.get_protocol()
    if not isinstance(protocol, PageProtocol):
        return not _is_admitted(protocol) and now - one.accepted_at > _UNADMITTED_SECONDS
    if not protocol.idle:
        return not _is_admitted(protocol) and now - protocol.began_at > _UNADMITTED_SECONDS
    return one.stalled is None and now - protocol.idle_since > patience


def _is_admitted(protocol: asyncio.BaseProtocol) -> bool:
    """Say whether the request that is or was answered last, or the WebSocket, showed what the page asks for."""
    asked = getattr(protocol, "cycle", None) if isinstance(protocol, PageProtocol) else protocol
    # A WebSocket's scope is there once its request was read; uvicorn declares that both always are.
    return bool((getattr(asked, "scope", None) or {}).get("admitted"))


def _floods(one: Connection, now: float) -> bool:
    """Say whether more was received than a viewer has to say."""
    since, received = one.heard
    if now - since < 1.0:
        return False
    one.heard = (now, one.received_bytes)
    return one.received_bytes - received > _MAX_RECEIVED_BYTES * (now - since)


def _does_not_read(one: Connection, waiting: int, now: float) -> bool:
    """Say whether ``waiting`` bytes are too many, or too few have left for too long."""
    if not waiting:
        one.stalled = None
        return False
    since, sent = one.stalled = one.stalled or (now, one.sent_bytes)
    if now - since <= READ_SECONDS:
        return waiting > _MAX_WAITING_BYTES
    one.stalled = (now, one.sent_bytes)
    return one.sent_bytes - sent < _MIN_READ_BYTES


def give_way(among: list[Connection]) -> Connection | None:
    """Return whose connection ends for a newcomer: who never showed the token, then who asks for nothing."""
    ranked: list[tuple[int, float, Connection]] = []
    for one in among:
        protocol = None if one.transport is None else one.transport.get_protocol()
        if isinstance(protocol, PageProtocol) and protocol.idle:
            ranked.append((1 if protocol.was_admitted else 0, protocol.idle_since, one))
        elif protocol is not None and not _is_admitted(protocol):
            ranked.append((0, protocol.began_at if isinstance(protocol, PageProtocol) else one.accepted_at, one))
    return min(ranked, key=lambda entry: entry[:2])[2] if ranked else None

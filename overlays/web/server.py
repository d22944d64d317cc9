"""HTTP server of the page: uvicorn with limits and time-outs for clients that do not send or do not read."""

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
"""Maximum time from the connection, or from the last response, to the next complete request, in seconds."""
_CROWDED_REQUEST_TIMEOUT_SECONDS: Final = 0.5
READ_SECONDS: Final = 8.0
_MIN_READ_BYTES: Final = 16 << 10
"""Minimum number of bytes that a client must read within ``READ_SECONDS`` while data waits to be sent."""
_MAX_RECEIVED_BYTES: Final = 1 << 20
"""Maximum rate of received data per client in bytes/s: clients send only requests and acknowledgements."""
_MAX_WAITING_BYTES: Final = 64 << 20
"""Maximum size of unsent data per client in bytes."""
_UNADMITTED_SECONDS: Final = 30.0
"""Maximum duration of a response to an unauthenticated request, in seconds."""
_REPEAT_SECONDS: Final = 60.0
_MAX_REMEMBERED: Final = 100
_SHUTDOWN_SECONDS: Final = 0.3
"""Time limit for sending the remaining data at shutdown, in seconds."""


class RepeatFilter(logging.Filter):
    """Passes each log message at most once a minute, so that invalid requests cannot fill the disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the clock, a function that returns monotonic seconds."""
        super().__init__()
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged; requests that the shutdown cancels are not logged."""
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False
        text = f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
        now = self._clock()
        if now - self._logged_at.get(text, float("-inf")) < _REPEAT_SECONDS:
            return False
        if len(self._logged_at) >= _MAX_REMEMBERED:
            self._logged_at.clear()
        self._logged_at[text] = now
        return True


logging.getLogger("uvicorn.error").addFilter(RepeatFilter())


class PageProtocol(H11Protocol):
    """HTTP/1.1 protocol of one connection; records when it became idle and whether a request was authenticated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's arguments
        """Create the protocol with uvicorn's arguments."""
        super().__init__(*args, **kwargs)
        self.idle_since = self.began_at = time.monotonic()
        self.was_admitted = False

    def handle_events(self) -> None:
        """Handle received data, and record the time when a request starts."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.began_at = time.monotonic()

    def on_response_complete(self) -> None:
        """Record the time when a response ends."""
        self.idle_since = time.monotonic()
        self.was_admitted = self.was_admitted or _is_admitted(self)
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """True while no request is being answered."""
        # A cycle exists after the first complete request; uvicorn's annotation omits None.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete


class Server(uvicorn.Server):
    """uvicorn server that closes connections of clients that send no request or do not read.

    At the connection limit, it closes an unauthenticated connection to accept a new one.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        """Set uvicorn's configuration."""
        super().__init__(config)
        self._limit = connection_limit(MAX_CONNECTIONS)
        self._acceptors: list[Acceptor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections on the sockets."""
        await super().startup(sockets=[])

        def protocol() -> asyncio.BaseProtocol:
            return PageProtocol(self.config, self.server_state, self.lifespan.state)

        for listener in sockets or []:
            limit = self._limit
            acceptor = Acceptor(
                listener, protocol, limit=limit, limit_per_address=limit // 2, choose_evicted=choose_evicted
            )
            self._acceptors.append(acceptor)
            acceptor.start()

    async def on_tick(self, counter: int) -> bool:
        """Close overdue connections; uvicorn calls this method ten times a second."""
        now = time.monotonic()
        for acceptor in self._acceptors:
            timeout = REQUEST_TIMEOUT_SECONDS if len(acceptor) < self._limit // 2 else _CROWDED_REQUEST_TIMEOUT_SECONDS
            for connection in acceptor:
                if not connection.ended and _is_overdue(connection, now, timeout):
                    connection.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down without waiting for clients that do not read."""
        for acceptor in self._acceptors:
            acceptor.stop()
        ending = asyncio.get_running_loop().call_later(_SHUTDOWN_SECONDS, self._abort_connections)
        await super().shutdown(sockets)
        ending.cancel()
        self._abort_connections()
        await asyncio.sleep(0)  # the transports close in the next step of the loop

    def _abort_connections(self) -> None:
        for acceptor in self._acceptors:
            for connection in acceptor:
                connection.abort()


def _is_overdue(connection: Connection, now: float, timeout: float) -> bool:
    """Return whether a connection exceeds a time-out or a rate limit."""
    if connection.transport is None:
        return False
    waiting = connection.transport.get_write_buffer_size()
    if _sends_too_much(connection, now) or _does_not_read(connection, waiting, now):
        return True
    protocol = connection.transport.get_protocol()
    if not isinstance(protocol, PageProtocol):
        return not _is_admitted(protocol) and now - connection.accepted_at > _UNADMITTED_SECONDS
    if not protocol.idle:
        return not _is_admitted(protocol) and now - protocol.began_at > _UNADMITTED_SECONDS
    return connection.stalled is None and now - protocol.idle_since > timeout


def _is_admitted(protocol: asyncio.BaseProtocol) -> bool:
    """Return whether the last request, or the WebSocket, was authenticated or needs no token."""
    source = getattr(protocol, "cycle", None) if isinstance(protocol, PageProtocol) else protocol
    # The scope exists after the request was read; uvicorn's annotation omits None.
    return bool((getattr(source, "scope", None) or {}).get("admitted"))


def _sends_too_much(connection: Connection, now: float) -> bool:
    """Return whether the client sends faster than ``_MAX_RECEIVED_BYTES`` per second."""
    since, received = connection.heard
    if now - since < 1.0:
        return False
    connection.heard = (now, connection.received_bytes)
    return connection.received_bytes - received > _MAX_RECEIVED_BYTES * (now - since)


def _does_not_read(connection: Connection, waiting: int, now: float) -> bool:
    """Return whether too many bytes wait to be sent, or the client reads them too slowly."""
    if not waiting:
        connection.stalled = None
        return False
    since, sent = connection.stalled = connection.stalled or (now, connection.sent_bytes)
    if now - since <= READ_SECONDS:
        return waiting > _MAX_WAITING_BYTES
    connection.stalled = (now, connection.sent_bytes)
    return connection.sent_bytes - sent < _MIN_READ_BYTES


def choose_evicted(candidates: list[Connection]) -> Connection | None:
    """Return the connection to close for a new one; None if none may be closed.

    Connections that were never authenticated come first, then idle ones; within each group, the oldest.
    """
    ranked: list[tuple[int, float, Connection]] = []
    for connection in candidates:
        protocol = None if connection.transport is None else connection.transport.get_protocol()
        if isinstance(protocol, PageProtocol) and protocol.idle:
            ranked.append((1 if protocol.was_admitted else 0, protocol.idle_since, connection))
        elif protocol is not None and not _is_admitted(protocol):
            since = protocol.began_at if isinstance(protocol, PageProtocol) else connection.accepted_at
            ranked.append((0, since, connection))
    return min(ranked, key=lambda entry: entry[:2])[2] if ranked else None

"""The server under the page: uvicorn, which waits neither for those who do not speak nor for those who do not read."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

MOST_CONNECTIONS: Final = 256
MUTE_SECONDS: Final = 6.0
"""How long somebody may be connected and not have said what is wanted."""
_MUTE_SECONDS_IN_A_CROWD: Final = 0.5
_SAY_EVERY_SECONDS: Final = 60.0
_MOST_SAID: Final = 100
_FAREWELL_SECONDS: Final = 0.3
"""How long what waits may still leave at the end."""


class OnceAMinute(logging.Filter):
    """Lets the same be said once a minute: whoever sends nonsense must not fill the disk that the log is on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take monotonic seconds."""
        super().__init__()
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line may be written."""
        said = f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
        now = self._clock()
        if now - self._said_at.get(said, float("-inf")) < _SAY_EVERY_SECONDS:
            return False
        if len(self._said_at) >= _MOST_SAID:
            self._said_at.clear()
        self._said_at[said] = now
        return True


logging.getLogger("uvicorn.error").addFilter(OnceAMinute())


class Server(uvicorn.Server):
    """Hangs up on those who keep a place and say nothing: places and file handles are for those who look on."""

    def __init__(self, config: uvicorn.Config) -> None:
        """Take how to serve."""
        super().__init__(config)
        self._mute: dict[H11Protocol, tuple[RequestResponseCycle | None, float]] = {}
        """After which request somebody fell silent, and since when."""

    async def on_tick(self, counter: int) -> bool:
        """Look around; called ten times a second."""
        now = time.monotonic()
        connections = list(self.server_state.connections)
        patience = MUTE_SECONDS if len(connections) < MOST_CONNECTIONS // 2 else _MUTE_SECONDS_IN_A_CROWD
        known, self._mute = self._mute, {}
        for one in connections:
            if not isinstance(one, H11Protocol):
                continue  # a WebSocket: it was asked for in words
            # Whole words make a cycle; uvicorn declares that there always is one.
            cycle: RequestResponseCycle | None = one.cycle
            if cycle is None or cycle.response_complete:
                last, since = known.get(one, (None, now))
                self._mute[one] = (cycle, since if last is cycle else now)
                if now - self._mute[one][1] > patience and one.transport is not None:
                    one.transport.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, without waiting for those who do not read."""
        ending = asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._hang_up)
        await super().shutdown(sockets)
        ending.cancel()
        self._hang_up()
        await asyncio.sleep(0)  # for the transports to hear of it

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

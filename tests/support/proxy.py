"""A TCP proxy between a client and a server that causes network faults on command.

with Proxy(server.port) as line:
    source = build_source(f"rtsp://127.0.0.1:{line.port}/live")
    line.blackholed = True
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, Self

from tests.support.loops import LoopThread

_PIECE_BYTES: Final = 16_384
_LOOK_SECONDS: Final = 0.02  # interval at which a blackholed connection checks whether data may pass again


class Proxy:
    """Passes bytes both ways between its own port and ``port``, on the loopback. One thread.

    The attributes may be changed at any time and count from the next piece on.
    """

    def __init__(self, port: int) -> None:
        """Create a proxy for the server's port."""
        self.port = 0
        self.delay_seconds = 0.0
        """Delay of each piece of data."""
        self.bytes_per_second: float | None = None
        """Maximum data rate towards the client; None: no limit."""
        self.blackholed = False
        """No data passes, and no connection is closed; new connections are accepted."""
        self.truncate_after_bytes: int | None = None
        """Bytes that each connection passes to the client before it is closed (FIN)."""
        self.connections = 0
        """Total number of connections."""
        self._server_port = port
        self._thread = LoopThread("proxy")
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self._thread.__enter__()
        self._server = self._thread.wait_for(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._thread.call(self._server.close)
        self.close()
        self._thread.__exit__(None, None, None)

    def close(self) -> None:
        """End every connection on both sides (FIN)."""
        self._thread.call(lambda: [writer.close() for writer in list(self._open)])

    def reset(self) -> None:
        """Break every connection on both sides (RST)."""

        def broken() -> None:
            for writer in list(self._open):
                plug = writer.get_extra_info("socket")
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

        self._thread.call(broken)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        beyond: asyncio.StreamWriter | None = None
        try:
            await self._clear()
            answers, beyond = await asyncio.open_connection("127.0.0.1", self._server_port)
            self._open.add(beyond)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, beyond, towards_client=False))
                both.create_task(self._carry(answers, writer, towards_client=True))
        except* (OSError, asyncio.CancelledError):  # one side is gone: so is the other
            pass
        finally:
            for end in (writer, beyond):
                if end is not None:
                    self._open.discard(end)
                    end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, towards_client: bool) -> None:
        """Pass pieces on until one side ends; then raise ``ConnectionError``, which ends the other way too."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1000)
        carried, begun_at = 0, None

        async def arrive() -> None:
            while piece := await reader.read(_PIECE_BYTES):
                await pieces.put((loop.time() + self.delay_seconds, piece))
            await pieces.put((loop.time() + self.delay_seconds, b""))

        async with asyncio.TaskGroup() as group:
            group.create_task(arrive())
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._clear()
                limit = self.truncate_after_bytes if towards_client else None
                if limit is not None:
                    begun_at = carried if begun_at is None else begun_at
                    piece = piece[: max(0, limit - (carried - begun_at))]
                if not piece:
                    raise ConnectionAbortedError("this side has ended")
                writer.write(piece)
                await writer.drain()
                carried += len(piece)
                if towards_client and self.bytes_per_second is not None:
                    await asyncio.sleep(len(piece) / self.bytes_per_second)

    async def _clear(self) -> None:
        while self.blackholed:  # noqa: ASYNC110 - set from another thread, as a plain attribute
            await asyncio.sleep(_LOOK_SECONDS)

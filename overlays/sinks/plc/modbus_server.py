"""Modbus TCP server in a thread: answers requests in order, and disconnects clients that it cannot serve."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from pymodbus.constants import ExcCodes
from pymodbus.pdu import ModbusPDU
from pymodbus.server import ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice

from overlays.sinks.plc.loop_thread import LoopThread
from overlays.wire.endpoint import Endpoint
from pipeline.errors import SinkError

log = logging.getLogger(__name__)
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # a refused port is reported once, by the sink

MAX_CONNECTIONS: Final = 64
"""Maximum number of connections; a further connection replaces the one that has been idle longest."""
_DEVICE_OF_ALL: Final = 0
"""Unit identifier of the device that answers requests for all unit identifiers; controllers send 1, 255 or 0."""
_START_SECONDS: Final = 10.0
_HEADER: Final = struct.Struct(">HHH")
"""Transaction, protocol and number of the bytes that follow (Modbus Messaging on TCP/IP, section 3.1.3)."""
_MIN_LENGTH, _MAX_LENGTH = 2, 254
_MAX_LOGGED_REFUSALS: Final = 100
_MAX_REQUESTS: Final = 64
"""Maximum number of requests of one client that wait for their answers."""
_MAX_RECEIVED_BYTES: Final = 1 << 20
"""Limit of pymodbus for the bytes that arrive together; more than asyncio reads at once."""
_SEND_BUFFER_BYTES: Final = 1 << 14
_MAX_UNREAD_BYTES: Final = 1 << 14
"""A client with more unread answers than this, beside those in the kernel's buffers, is disconnected."""


class ModbusServerThread:
    """Runs the server with its event loop in its own thread."""

    def __init__(self, address: Endpoint, read: Callable[[int, int], list[int]], registers: int) -> None:
        """Set the address; ``start`` listens.

        Args:
            address: the address.
            read: returns the values of the registers from the first argument on, as many as the second says.
            registers: number of registers.
        """
        self._address, self._read, self._registers = address, read, registers
        self.port = 0
        self._ready = threading.Event()
        self._thread = LoopThread(f"modbus {address.port}", self._serve)
        self._failure = ""
        self._uri = ""

    def start(self, uri: str) -> None:
        """Start to listen. Raises ``SinkError``."""
        self._uri = uri
        self._thread.start()
        is_ready = self._ready.wait(_START_SECONDS)
        if not is_ready or self._failure:
            self.stop()
            raise SinkError(
                f"{uri}: cannot be served ({self._failure or 'the server does not start'}); if the port is in use, "
                "choose another port, or stop the program that uses it (ss -ltnp shows which); ports below "
                "1024 need root"
            )

    def check(self, uri: str) -> None:
        """Raise ``SinkError`` if the server has ended by itself."""
        if self._thread.ended:
            raise SinkError(f"{uri}: the server has ended ({self._thread.error}); start the run again")

    def stop(self) -> None:
        """End the server and its thread."""
        self._thread.stop()

    async def _serve(self, end: asyncio.Event) -> None:
        data = SimData(0, count=self._registers, values=0, datatype=DataType.REGISTERS)
        device = SimDevice(_DEVICE_OF_ALL, simdata=data, action=self._answer)
        server = _LimitedServer(device, address=(self._address.host, self._address.port))
        server.uri = self._uri
        try:
            await server.serve_forever(background=True)
            self.port = int(cast("asyncio.Server", server.transport).sockets[0].getsockname()[1])
        except (RuntimeError, OSError) as error:
            self._failure = str(error.__cause__ or error) or type(error).__name__
            return
        finally:
            self._ready.set()
        try:
            await end.wait()
        finally:
            await server.shutdown()  # type: ignore[no-untyped-call]

    async def _answer(  # noqa: PLR0917 - pymodbus's signature
        self,
        function: int,  # noqa: ARG002 - the same for all
        start: int,
        address: int,
        count: int,
        current: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Fill the registers that a client reads; refuse writes."""
        if values is not None:
            return ExcCodes.ILLEGAL_FUNCTION
        current[address - start : address - start + count] = self._read(address, count)
        return None


class _Connection(ServerRequestHandler):
    """A connection that answers all its requests in order, and records the time of the last one.

    pymodbus answers one request of a TCP segment, and loses bytes that arrive before an answer is sent.
    """

    used_at = 0.0
    """Time of the last complete request; other bytes do not count."""

    def __init__(self, owner: ModbusTcpServer) -> None:
        super().__init__(owner, owner.trace_packet, owner.trace_pdu, owner.trace_connect)  # type: ignore[no-untyped-call]
        self.used_at = time.monotonic()
        self.max_buffer_size = _MAX_RECEIVED_BYTES
        self._received = bytearray()
        self._requests: deque[ModbusPDU] = deque()

    def callback_connected(self) -> None:
        """Shorten the kernel's send buffer: answers that wait in it are old."""
        super().callback_connected()
        link = cast("asyncio.WriteTransport", self.transport).get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def callback_data(self, data: bytes, addr: tuple[Any, ...] | None = None) -> int:
        """Queue the requests in received bytes, and keep the beginning of a further one."""
        transport = cast("asyncio.WriteTransport | None", self.transport)
        if transport is None:  # closed by this side
            return len(data)
        if transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self._refuse("does not read its answers")
            return len(data)
        self._received += data
        while len(self._received) >= _HEADER.size:
            _, protocol, length = _HEADER.unpack_from(self._received)
            if protocol or not _MIN_LENGTH <= length <= _MAX_LENGTH:
                self._refuse("does not speak Modbus TCP")
                break
            end = _HEADER.size + length
            if len(self._received) < end:
                break
            request = bytes(self._received[:end])
            del self._received[:end]
            super().callback_data(request, addr)
            if self.last_pdu is not None:
                self.used_at = time.monotonic()
                self._requests.append(self.last_pdu)
            if len(self._requests) > _MAX_REQUESTS:
                self._refuse(f"sends more than {_MAX_REQUESTS} requests without waiting for answers")
                self._requests.clear()
                break
        return len(data)

    async def handle_request(self) -> None:
        """Answer the oldest request; called once for each."""
        if self._requests:
            self.last_pdu = self._requests.popleft()
            await super().handle_request()  # type: ignore[no-untyped-call]

    def _refuse(self, reason: str) -> None:
        """Close the connection; the first ones are logged."""
        server = cast("_LimitedServer", self.server)
        if server.refusals < _MAX_LOGGED_REFUSALS:
            server.refusals += 1
            log.warning("%s: a client %s; its connection is closed", server.uri, reason)
        self._received.clear()
        self.close()


class _LimitedServer(ModbusTcpServer):
    """A server that closes the connection that has been idle longest when there are too many."""

    uri = ""
    """The sink's URI, for messages."""
    refusals = 0
    """Number of logged refusals."""

    def callback_new_connection(self) -> _Connection:
        """Return the handler of a new connection."""
        if len(self.active_connections) >= MAX_CONNECTIONS:
            connections = cast("dict[str, _Connection]", self.active_connections)
            least_used = min(connections.values(), key=lambda each: each.used_at)
            log.warning(
                "%s: more than %d connections; the connection that has been idle longest is closed",
                self.uri,
                MAX_CONNECTIONS,
            )
            least_used.close()
        return _Connection(self)

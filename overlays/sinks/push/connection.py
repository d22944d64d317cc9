"""A TCP or TLS connection with a time limit for every step, and the interface of the protocols above it.

FFmpeg's own RTSP and RTMP clients are not used: PyAV holds Python's global lock while they connect and disconnect, so
that a server that does not answer would block the whole run, and no time limit of PyAV ends a blocked write.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from abc import ABC, abstractmethod
from typing import Final

from overlays.h264 import AccessUnit

_SEND_BUFFER_BYTES: Final = 128 << 10
"""Size of the kernel's send buffer; it is small, because data that waits there is old."""
_RECEIVE_BYTES: Final = 1 << 16


class PushError(OSError):
    """An error of a server or connection; the message contains no secret."""

    def __init__(self, message: str, *, is_slow: bool = False) -> None:
        super().__init__(message)
        self.is_slow = is_slow
        """True if the user has to correct the configuration before a new attempt can succeed."""


class ServerClosedError(PushError):
    """The server closed the connection."""


class ServerSocket:
    """A TCP or TLS connection to a server. For one thread, except ``abort``, which is for any thread."""

    def __init__(self, host: str, port: int, seconds: float, context: ssl.SSLContext | None = None) -> None:
        """Set the address; ``connect`` connects.

        Args:
            host: host name or address.
            port: TCP port.
            seconds: time limit of each step.
            context: verifies the server's certificate; None: no TLS.
        """
        self._host, self._port, self._seconds, self._context = host, port, seconds, context
        self._socket: socket.socket | None = None
        self._is_aborted = False

    def connect(self) -> None:
        """Connect. Raises ``PushError``."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            reason = error.strerror or error
            raise PushError(f"cannot resolve host {self._host!r} ({reason}); check the address") from None
        errors: list[PushError] = []
        for family, _, _, _, address in found:
            try:
                self._connect(family, address)
            except OSError as error:
                self.close()
                errors.append(self._explained(error))
            else:
                return
        raise errors[0]

    def send(self, data: bytes) -> None:
        """Send all of ``data`` within the time limit. Raises ``PushError``."""
        try:
            if self._context is None:
                self._open_socket().sendall(data)
            else:
                self._send_all(memoryview(data))
        except OSError as error:
            raise self._explained(error) from None

    def receive(self) -> bytes:
        """Wait for bytes within the time limit and return them. Raises ``PushError``, also if the server closed."""
        return self._receive(self._seconds)

    def receive_waiting(self) -> bytes:
        """Return the bytes that have arrived, without waiting. Raises ``PushError``, also if the server closed."""
        try:
            return self._receive(0.0)
        except BlockingIOError:
            return b""

    def is_full(self) -> bool:
        """Return whether ``send`` would have to wait for the server."""
        if self._socket is None:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        return not poll.poll(0)

    def abort(self) -> None:
        """End every wait of the other thread, and all further use."""
        self._is_aborted = True
        connected = self._socket
        if connected is not None:
            try:
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # that of ssl.SSLSocket is for its own thread only
            except OSError:
                return  # it is closed, or not connected yet

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, family: int, address: tuple[object, ...]) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open_socket().connect(address)
        if self._context is not None:
            self._socket = self._context.wrap_socket(self._socket, server_hostname=self._host)

    def _send_all(self, data: memoryview) -> None:
        """Send by TLS, whose ``sendall`` has the time limit for each record, not for all."""
        deadline = Deadline(self._seconds)
        while data:
            data = data[self._open_socket().send(data) :]
            deadline.check()

    def _open_socket(self) -> socket.socket:
        if self._socket is None or self._is_aborted:
            raise PushError("the connection is closed")
        self._socket.settimeout(self._seconds)
        return self._socket

    def _receive(self, seconds: float) -> bytes:
        try:
            connected = self._open_socket()
            connected.settimeout(seconds)
            data = connected.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise BlockingIOError from None
        except OSError as error:
            raise self._explained(error) from None
        if not data:
            raise ServerClosedError("the server closed the connection")
        return data

    def _explained(self, error: OSError) -> PushError:
        if isinstance(error, (PushError, ssl.SSLError)):
            return error if isinstance(error, PushError) else _tls_error(error)
        if isinstance(error, TimeoutError):
            return PushError(f"the server does not answer or take data for {self._seconds:g} s")
        if isinstance(error, ConnectionRefusedError):
            return PushError("connection refused: no server listens at this host and port")
        if isinstance(error, (ConnectionResetError, BrokenPipeError)):
            return ServerClosedError("the server closed the connection")
        return PushError(error.strerror or type(error).__name__)


def _tls_error(error: ssl.SSLError) -> PushError:
    """Explain an error of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return PushError(
            f"the server's certificate is refused ({error.verify_message}); set ca_file to the certificate of its "
            "authority (PEM), and write the host name that stands in the certificate",
            is_slow=True,
        )
    return PushError(f"TLS fails ({error.reason or error}); check whether this port is the server's port for TLS")


class Deadline:
    """The time limit of an exchange of several messages."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds

    def check(self) -> None:
        """Raise ``PushError`` after the time limit, even if the server still sends bytes that are no answer."""
        if time.monotonic() > self._ends_at:
            raise PushError(f"the server does not answer within {self._seconds:g} s")


class Publisher(ABC):
    """One stream on a server. For one thread, except ``abort``, which is for any thread."""

    @abstractmethod
    def open(self, first: AccessUnit, size: tuple[int, int]) -> None:
        """Connect and announce a stream. Raises ``PushError``.

        Args:
            first: a key frame, whose parameter sets are announced; it is not sent.
            size: (width, height) in pixels.
        """

    @abstractmethod
    def send(self, unit: AccessUnit, captured_unix: float) -> None:
        """Send one access unit that was captured at ``captured_unix`` (Unix seconds). Raises ``PushError``."""

    @abstractmethod
    def serve(self) -> None:
        """Handle received data without waiting. Raises ``PushError`` if the connection has ended."""

    @abstractmethod
    def abort(self) -> None:
        """End every wait of the other thread, and all further use."""

    @abstractmethod
    def close(self) -> None:
        """End the stream and close the connection; does not wait for the server."""

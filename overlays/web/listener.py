"""Creates the listening socket of the page."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from overlays.web.auth import PageAddress
from pipeline.errors import SinkError

_SEND_BUFFER_BYTES: Final = 128 << 10
"""Size of the kernel's send buffer per viewer in bytes; small, because frames that wait there become old."""
_UNACKNOWLEDGED_MS: Final = 20_000
"""Time after which a client that acknowledges no TCP data is disconnected, in milliseconds (TCP_USER_TIMEOUT)."""


def listen(uri: str, address: PageAddress) -> socket.socket:
    """Return a listening socket with small send buffers.

    Args:
        uri: the page's address, for error messages.
        address: the parsed address to bind.

    Raises:
        SinkError: the host cannot be resolved, or the address cannot be bound.
    """
    hints = {
        errno.EADDRINUSE: "is in use; choose another port, or stop the program that uses it (ss -ltnp shows which)",
        errno.EADDRNOTAVAIL: "is not an address of this machine; serve on http://0.0.0.0:port for other machines",
        errno.EACCES: "may not be used by this user; choose a port above 1023",
    }
    try:
        family, _, _, _, socket_address = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SinkError(
            f"{uri}: cannot resolve host {address.host!r} ({error.strerror}); use an address such as "
            "http://127.0.0.1:8000"
        ) from None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise SinkError(f"{uri}: cannot be served ({error.strerror})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, struct.pack("i", 1))
        # Accepted connections inherit these options from the listener.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        listener.bind(socket_address)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise SinkError(f"{uri}: {hints.get(error.errno or 0, f'cannot be served ({error.strerror})')}") from None
    return listener

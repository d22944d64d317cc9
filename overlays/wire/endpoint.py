"""Addresses of the network door, checked before libzmq sees them. Pure.

libzmq itself takes port 99999 for 34463, ``5555x`` for 5555, and deletes whatever file an ``ipc://`` path names.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/@\s]+):(?P<port>\d+)")
_MAX_IPC_PATH = 107
"""Bytes in a Unix socket's path (Linux: sizeof sun_path less one)."""


class Endpoint(NamedTuple):
    """A checked address."""

    uri: str
    host: str
    """Host of a ``tcp`` address, without brackets; empty for ``ipc``."""
    port: int
    """0 for ``ipc``, and for "any free port"."""
    path: str
    """Path of an ``ipc`` address; empty for ``tcp``."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host in {"localhost", "lo"}:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is a literal IPv6 address."""
        return ":" in self.host


def parse_address(uri: str) -> Endpoint:
    """Read ``tcp://host:port`` or ``ipc://path``.

    Raises:
        ValueError: it is neither; the message says what is wrong and how it is written.
    """
    if uri.startswith("ipc://"):
        path = uri.removeprefix("ipc://")
        if not path or len(path.encode("utf-8", "surrogateescape")) > _MAX_IPC_PATH:
            raise ValueError(f"a path has 1 to {_MAX_IPC_PATH} bytes; write ipc:///tmp/overlays")
        return Endpoint(uri, "", 0, path)
    match = _TCP.fullmatch(uri)
    if not match:
        raise ValueError("it is not written like tcp://host:port or ipc://path, for instance tcp://127.0.0.1:5555")
    port = int(match["port"])
    if port > 65535:
        raise ValueError(f"port {port} is larger than 65535; write for instance tcp://127.0.0.1:5555")
    return Endpoint(uri, match["host"].strip("[]"), port, "")


def without_user(uri: str) -> str:
    """Return an address as a message may show it: a user and a password that stand in it by mistake are left out."""
    scheme, colon, rest = uri.partition("://")
    return f"{scheme}{colon}***@{rest.rpartition('@')[2]}" if colon and "@" in rest else uri

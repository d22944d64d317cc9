"""Parses and validates addresses of ZeroMQ sockets, without side effects.

libzmq itself accepts invalid ports (99999 as 34463, ``5555x`` as 5555) and deletes a file at an ``ipc://`` path.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/@\s]+):(?P<port>\d+)")
_MAX_IPC_PATH = 107
"""Maximum length of a Unix socket's path in bytes (Linux: size of ``sun_path`` minus one)."""


class Endpoint(NamedTuple):
    """A validated address of a ZeroMQ socket."""

    uri: str
    host: str
    """Host of a ``tcp`` address, without brackets; empty for ``ipc``."""
    port: int
    """Port of a ``tcp`` address, where 0 selects any free port; 0 for ``ipc``."""
    path: str
    """Path of an ``ipc`` address; empty for ``tcp``."""

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the address."""
        if self.path or self.host in {"localhost", "lo"}:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_ipv6(self) -> bool:
        """True if the host is a literal IPv6 address."""
        return ":" in self.host


def parse_address(uri: str) -> Endpoint:
    """Return the endpoint of an address ``tcp://host:port`` or ``ipc://path``.

    Raises:
        ValueError: the address is invalid; the message shows a valid one.
    """
    if uri.startswith("ipc://"):
        path = uri.removeprefix("ipc://")
        if not path or len(path.encode("utf-8", "surrogateescape")) > _MAX_IPC_PATH:
            raise ValueError(f"a path has 1 to {_MAX_IPC_PATH} bytes; write ipc:///tmp/overlays")
        return Endpoint(uri, "", 0, path)
    match = _TCP.fullmatch(uri)
    if not match:
        raise ValueError("write the address as tcp://host:port or ipc://path, for instance tcp://127.0.0.1:5555")
    port = int(match["port"])
    if port > 65535:
        raise ValueError(f"port {port} is larger than 65535; write for instance tcp://127.0.0.1:5555")
    return Endpoint(uri, match["host"].strip("[]"), port, "")


def without_user(uri: str) -> str:
    """Return an address for messages: user and password are replaced by ``***``."""
    scheme, colon, rest = uri.partition("://")
    return f"{scheme}{colon}***@{rest.rpartition('@')[2]}" if colon and "@" in rest else uri

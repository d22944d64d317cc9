"""How many connections a server may hold: file handles that strangers take are missing where frames are recorded."""

from __future__ import annotations

import ipaddress
from typing import Final

RESERVED_HANDLES: Final = 256
"""Left to cameras, recordings, logs and the allow list, whatever strangers do; half of all where there are few."""
_SERVERS: Final = 3
"""Servers of one process that may be full at the same time."""
_MIN_CONNECTIONS: Final = 16


def connection_limit(wanted: int, soft_limit: int | None = None) -> int:
    """Return how many connections one server may hold: ``wanted``, or fewer where the process may open few files.

    Args:
        wanted: the limit where there are handles enough.
        soft_limit: files that the process may have open (``ulimit -n``); None: the system is asked.
    """
    limit = _soft_limit() if soft_limit is None else soft_limit
    if limit is None:
        return wanted
    reserved = min(RESERVED_HANDLES, limit // 2)
    return max(min(wanted, (limit - reserved) // _SERVERS), _MIN_CONNECTIONS)


def _soft_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows counts no descriptors
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def shared_address(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network that an IPv6 client chooses from."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def is_loopback_address(address: str) -> bool:
    """Say whether an address is this machine's own, where a reverse proxy connects from for many clients."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return parsed.is_loopback or (mapped is not None and mapped.is_loopback)

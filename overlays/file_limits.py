"""Connection limits of servers, so that clients cannot use up the file descriptors that recordings need."""

from __future__ import annotations

import ipaddress
from typing import Final

RESERVED_HANDLES: Final = 256
"""Number of file descriptors reserved for cameras, recordings and logs; at most half of the process's limit."""
_SERVERS: Final = 3
"""Maximum number of servers in one process that are full at the same time."""
_MIN_CONNECTIONS: Final = 16


def connection_limit(requested: int, soft_limit: int | None = None) -> int:
    """Return the maximum number of connections of one server, reduced if the process may open only few files.

    Args:
        requested: the limit if there are enough file descriptors.
        soft_limit: maximum number of open files of the process (``ulimit -n``); None: read from the system.
    """
    limit = _soft_limit() if soft_limit is None else soft_limit
    if limit is None:
        return requested
    reserved = min(RESERVED_HANDLES, limit // 2)
    return max(min(requested, (limit - reserved) // _SERVERS), _MIN_CONNECTIONS)


def _soft_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def shared_address(address: str) -> str:
    """Return the address under which a client is counted: an IPv4 address, or the /64 network of an IPv6 address."""
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
    """Return whether an IP address is a loopback address, also as an IPv4-mapped IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return parsed.is_loopback or (mapped is not None and mapped.is_loopback)

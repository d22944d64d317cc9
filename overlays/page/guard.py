"""Who may look at the page: addresses, host names, origins, and the token. Pure.

A page on the loopback address is open to whoever uses this machine, but not to other web sites in the same browser:
requests name a host we know (else a foreign name could be pointed at us: DNS rebinding), and whoever opens a WebSocket
or sends a form comes from our own page. Beyond the loopback a token is asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

SHORTEST_TOKEN: Final = 16
"""Characters. Whoever guesses has the whole night."""
COOKIE_SECONDS: Final = 30 * 24 * 3600
_PAGE = re.compile(r"http://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s]+):(?P<port>\d{1,5})/?")


class PageAddress(NamedTuple):
    """Where the page is served."""

    host: str
    """Without brackets."""
    port: int
    """0: any free one."""


def parse_page_address(uri: str) -> PageAddress:
    """Read ``http://host:port``.

    Raises:
        ValueError: it is something else; the message says how it is written.
    """
    match = _PAGE.fullmatch(uri)
    if match is None:
        raise ValueError("it is not written like http://host:port, for instance http://127.0.0.1:8000")
    if int(match["port"]) > 65535:
        raise ValueError(f"port {match['port']} is larger than 65535; write for instance http://127.0.0.1:8000")
    return PageAddress(match["host"].strip("[]"), int(match["port"]))


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach ``host``: every address it stands for is a loopback one."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)
    except (OSError, ValueError):
        return False


def check_token(token: str) -> str:
    """Return the token without the white space around it.

    Raises:
        ValueError: it is too short, or holds what a header cannot carry.
    """
    token = token.strip()
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            f"a token has at least {SHORTEST_TOKEN} printable ASCII characters and no space; "
            "make one: openssl rand -hex 24 > FILE"
        )
    return token


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides; knows no request."""

    address: PageAddress
    token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()
    """Further names the page is reached by, such as a proxy's; without port, in lower case."""

    def knows_host(self, header: str) -> bool:
        """Say whether the Host header names this page.

        Where a token is asked for, any name will do: a foreign one has no cookie of ours.
        """
        name = _name_of(header)
        if self.token is not None or name in self.hosts | {"localhost", self.address.host.lower()}:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # A name can be pointed anywhere by whoever owns it; an address cannot.
        return address.is_loopback or not is_loopback(self.address.host)

    def knows_origin(self, origin: str | None, host_header: str) -> bool:
        """Say whether a browser's Origin is this page's own; programs send none."""
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
            same = (parts.hostname or "", parts.port or _standard(parts.scheme)) == (
                _name_of(host_header),
                urlsplit(f"//{host_header}").port or _standard(parts.scheme),
            )
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and (same or (parts.hostname or "") in self.hosts)

    def admits(self, authorization: str | None, cookie: str | None, now_unix: float) -> bool:
        """Say whether a request brings the token, or the cookie that was given for it."""
        if self.token is None:
            return True
        kind, _, given = (authorization or "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        expires, _, seal = (cookie or "").partition(".")
        if not expires.isascii() or not expires.isdigit() or len(expires) > 12 or int(expires) < now_unix:
            return False
        return hmac.compare_digest(seal.encode(), self._seal(expires).encode())

    def is_token(self, given: str) -> bool:
        """Compare in a time that tells nothing."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def cookie(self, now_unix: float) -> str:
        """Return a cookie's value: when it expires, sealed with the token. The token cannot be read from it."""
        expires = str(int(now_unix) + COOKIE_SECONDS)
        return f"{expires}.{self._seal(expires)}"

    def _seal(self, expires: str) -> str:
        return hmac.new((self.token or "").encode(), f"page until {expires}".encode(), hashlib.sha256).hexdigest()


def _name_of(host_header: str) -> str:
    try:
        return (urlsplit(f"//{host_header}").hostname or "").lower()
    except ValueError:
        return ""


def _standard(scheme: str) -> int:
    return 443 if scheme == "https" else 80

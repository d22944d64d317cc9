"""Who may look at the page: addresses, host names, origins, and the token. Pure.

A page on the loopback address is open to whoever uses this machine, but not to other web sites in the same browser:
requests name a host we know (else a foreign name could be pointed at us: DNS rebinding), and whoever opens a WebSocket
or sends a form comes from our own page. Beyond the loopback a token is asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

MIN_TOKEN: Final = 16
"""Characters. Whoever guesses has the whole night."""
COOKIE_SECONDS: Final = 30 * 24 * 3600
_PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)
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
    if len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            f"a token has at least {MIN_TOKEN} printable ASCII characters and no space; "
            "make one: openssl rand -hex 24 > FILE"
        )
    return token


def check_origin(origin: str) -> str:
    """Return an origin as browsers send it: ``https://host`` or ``https://host:port``, in lower case.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(origin.strip().rstrip("/"))
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path or parts.query or parts.username:
        raise ValueError(f"{origin!r} is no origin; write SCHEME://HOST or SCHEME://HOST:PORT, without a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in {None, _standard(parts.scheme)} else f":{port}")


def check_prefix(prefix: str) -> str:
    """Return the path that a proxy serves the page under: "" or ``/cams``, without a slash at its end.

    Raises:
        ValueError: it is no such path.
    """
    prefix = prefix.rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError(f"root_path {prefix!r} is no path; write for instance /cams")
    return prefix


class Asked(NamedTuple):
    """What a request brings that may show the token."""

    authorization: str | None = None
    cookie: str | None = None
    query: str | None = None
    """``?token=`` of a stream's address; None elsewhere."""
    camera: str = ""
    """Whose stream is asked for."""


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Decides; knows no request."""

    address: PageAddress
    token: str | None = field(default=None, repr=False)
    allowed_hosts: frozenset[str] = frozenset()
    """Further names the page is reached by, such as a proxy's; without port, in lower case."""
    embed_origins: frozenset[str] = frozenset()
    """Other sites that may show the MJPEG streams; see ``check_origin``."""
    root_path: str = ""
    """What stands before the page's own paths where a proxy does not take it away; see ``check_prefix``."""

    def is_allowed_host(self, header: str) -> bool:
        """Say whether the Host header names this page.

        Where a token is asked for, any name will do: a foreign one has no cookie of ours.
        """
        name = _name_of(header)
        if self.token is not None or name in self.allowed_hosts | {"localhost", self.address.host.lower()}:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # A name can be pointed anywhere by whoever owns it; an address cannot.
        return address.is_loopback or not is_loopback(self.address.host)

    def is_allowed_origin(self, origin: str | None, host_header: str, forwarded_host: str | None = None) -> bool:
        """Say whether a browser's Origin is this page's own; programs send none.

        Args:
            origin: as the browser sent it.
            host_header: as it arrived here.
            forwarded_host: what a proxy says that it was asked for: ``X-Forwarded-Host``; "" where it says only that
                it is one. Web sites cannot send this header. Some proxies pass the host on without its port.
        """
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
            asked = (parts.hostname or "", parts.port or _standard(parts.scheme))
            hosts = [host for host in (host_header, forwarded_host) if host]
            same = asked in [(_name_of(host), _port_of(host) or _standard(parts.scheme)) for host in hosts]
            if not same and forwarded_host is not None:
                same = any(_port_of(host) is None and _name_of(host) == asked[0] for host in hosts)
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and (same or (parts.hostname or "") in self.allowed_hosts)

    def may_embed(self, origin: str | None) -> bool:
        """Say whether a site of this origin may show the MJPEG streams."""
        try:
            return bool(self.embed_origins) and origin is not None and check_origin(origin) in self.embed_origins
        except ValueError:
            return False

    def is_authenticated(self, asked: Asked, now_unix: float) -> bool:
        """Say whether a request brings the token, the cookie that was given for it, or its stream's own token."""
        if self.token is None:
            return True
        if any(self.token_matches(given) for given in _given(asked.authorization)):
            return True
        if asked.query is not None and (
            self.token_matches(asked.query)
            or hmac.compare_digest(asked.query.encode("utf-8", "replace"), self.stream_token(asked.camera).encode())
        ):
            return True
        expires, _, rest = (asked.cookie or "").partition(".")
        session, _, seal = rest.partition(".")
        if not expires.isascii() or not expires.isdigit() or len(expires) > 12 or int(expires) < now_unix:
            return False
        return hmac.compare_digest(seal.encode("utf-8", "replace"), self._sign(expires, session).encode())

    def token_matches(self, given: str) -> bool:
        """Compare in a time that tells nothing."""
        token = (self.token or "").encode()
        return self.token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token)

    def issue_cookie(self, now_unix: float) -> str:
        """Return a cookie's value: when it expires, a session's number, and a seal made with the token."""
        expires, session = str(int(now_unix) + COOKIE_SECONDS), secrets.token_hex(16)
        return f"{expires}.{session}.{self._sign(expires, session)}"

    def stream_token(self, camera: str) -> str:
        """Return what opens this camera's MJPEG stream and nothing else; the token cannot be read from it."""
        return hmac.new((self.token or "").encode(), f"stream {camera}".encode(), hashlib.sha256).hexdigest()[:40]

    def _sign(self, expires: str, session: str) -> str:
        text = f"page until {expires} for {session}"
        return hmac.new((self.token or "").encode(), text.encode(), hashlib.sha256).hexdigest()


def session_of(cookie: str | None) -> str:
    """Return the number of the session that a cookie belongs to; "" for none."""
    return (cookie or "").partition(".")[2].partition(".")[0]


def _given(authorization: str | None) -> list[str]:
    """Return what may be the token in an Authorization header: Bearer, or Basic's password or user."""
    kind, _, given = (authorization or "").partition(" ")
    if kind.lower() == "bearer":
        return [given.strip()]
    if kind.lower() != "basic":
        return []
    try:
        user, _, password = base64.b64decode(given.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return []
    return [password or user]


def _name_of(host_header: str) -> str:
    try:
        return (urlsplit(f"//{host_header}").hostname or "").lower()
    except ValueError:
        return ""


def _port_of(host_header: str) -> int | None:
    """Raises ``ValueError`` where the port is none."""
    return urlsplit(f"//{host_header}").port


def _standard(scheme: str) -> int:
    return 443 if scheme == "https" else 80

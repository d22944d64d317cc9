"""Access rules of the page: addresses, host names, origins and tokens.

A page on a loopback address needs no token: all users of the machine can open it. Other web sites in the same browser
cannot: the Host header must name a known host, which prevents DNS rebinding, and a WebSocket or a form must come from
this page. A page on any other address requires a token.
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
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from itsdangerous import TimestampSigner

MIN_TOKEN_LENGTH: Final = 16
"""Minimum length of a token in characters, so that it cannot be guessed."""
COOKIE_SECONDS: Final = 30 * 24 * 3600
_PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?", re.ASCII)
_IPV4: Final = 4
_PAGE = re.compile(r"http://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s]+):(?P<port>\d{1,5})/?")


class PageAddress(NamedTuple):
    """Address where the page is served."""

    host: str
    """Host name or address, IPv6 without brackets."""
    port: int
    """Port; 0 selects any free port."""


def parse_page_address(uri: str) -> PageAddress:
    """Return the host and port of ``http://host:port``.

    Raises:
        ValueError: the address is invalid; the message shows a valid one.
    """
    match = _PAGE.fullmatch(uri)
    if match is None:
        raise ValueError("write the address as http://host:port, for instance http://127.0.0.1:8000")
    if int(match["port"]) > 65535:
        raise ValueError(f"port {match['port']} is larger than 65535; write for instance http://127.0.0.1:8000")
    return PageAddress(match["host"].strip("[]"), int(match["port"]))


def is_loopback(host: str) -> bool:
    """Return whether all addresses of ``host`` are loopback addresses, which only this machine can reach."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)
    except (OSError, ValueError):
        return False


def check_token(token: str) -> str:
    """Return the token without surrounding white space.

    Raises:
        ValueError: the token is too short, or contains a space or a character outside printable ASCII.
    """
    token = token.strip()
    if len(token) < MIN_TOKEN_LENGTH or not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            f"a token has at least {MIN_TOKEN_LENGTH} printable ASCII characters and no space; "
            "create one: openssl rand -hex 24 > FILE"
        )
    return token


def check_origin(origin: str) -> str:
    """Return an origin in the form that browsers send: ``https://host`` or ``https://host:port``, in lower case.

    Raises:
        ValueError: ``origin`` is not an origin.
    """
    try:
        parts = urlsplit(origin.strip().rstrip("/"))
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path or parts.query or parts.username:
        raise ValueError(f"{origin!r} is not an origin; write SCHEME://HOST or SCHEME://HOST:PORT, without a path")
    host = check_host(parts.hostname)
    return f"{parts.scheme}://{host}" + ("" if port in {None, _standard_port(parts.scheme)} else f":{port}")


def check_host(host: str) -> str:
    """Return a host in the form of a Host header: in lower case, an IPv6 address in brackets.

    Raises:
        ValueError: ``host`` is neither a host name nor an address.
    """
    host = host.strip().lower().strip("[]")
    try:
        return f"[{ipaddress.IPv6Address(host)}]"
    except ValueError:
        pass
    if _HOST.fullmatch(host):
        return host
    try:
        sent = "" if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        sent = ""
    remedy = (
        f"write {sent}, as browsers send it" if _HOST.fullmatch(sent) else "name each host, without *, port or path"
    )
    raise ValueError(f"{host!r} is no host name or address; {remedy}")


def check_prefix(prefix: str) -> str:
    """Return the path prefix of the page behind a proxy without its trailing slash, such as ``/cams``; "" for none.

    Raises:
        ValueError: ``prefix`` is not a path.
    """
    prefix = prefix.rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError(f"root_path {prefix!r} is not a path; write for instance /cams")
    return prefix


def check_networks(networks: Iterable[str]) -> list[str]:
    """Return addresses and networks in canonical form; each IPv4 network also in its IPv4-mapped IPv6 form.

    A listener on ``[::]`` sees IPv4 clients under IPv4-mapped IPv6 addresses.

    Raises:
        ValueError: an entry is neither an address nor a network, or contains every address.
    """
    checked = []
    for text in networks:
        try:
            network = ipaddress.ip_network(text.strip())
        except ValueError:
            why = f"trusted_proxies: {text!r} is no address or network; write for instance 10.0.0.7 or 172.16.0.0/12"
            raise ValueError(why) from None
        if not network.prefixlen:
            raise ValueError(
                f"trusted_proxies: {text!r} is every address: each client could claim to come from this machine; name "
                "the proxy"
            )
        checked.append(str(network))
        if network.version == _IPV4:
            checked.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return checked


class Credentials(NamedTuple):
    """The parts of a request that can contain a token."""

    authorization: str | None = None
    cookie: str | None = None
    query: str | None = None
    """Value of ``?token=`` in the address of a stream; None for other paths."""
    camera: str = ""
    """Camera of the requested stream."""
    is_private: bool = True
    """True if the request came by TLS or from this machine. Basic authentication requires this."""


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """The access rules of a page."""

    address: PageAddress
    token: str | None = field(default=None, repr=False)
    edit_token: str | None = field(default=None, repr=False)
    """Token that also permits changing the set-up of cameras; None: ``token`` permits it."""
    view_token: str | None = field(default=None, repr=False)
    """Token that permits viewing, but no changes of events or cameras; None: there is no such token."""
    allowed_hosts: frozenset[str] = frozenset()
    """Further host names of the page, such as a proxy's, in lower case and without port."""
    embed_origins: frozenset[str] = frozenset()
    """Other sites that may embed the MJPEG streams and the page; see ``check_origin``."""
    root_path: str = ""
    """Path prefix that a proxy does not remove from the request's path; see ``check_prefix``."""

    def is_allowed_host(self, header: str) -> bool:
        """Return whether the Host header names this page.

        A page with a token allows any name: the browser does not send this page's cookie to a foreign name.
        """
        name = _name_of(header)
        if self.token is not None or name in self.allowed_hosts | {"localhost", self.address.host.lower()}:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # An attacker can make a host name resolve to this machine, but cannot redirect a literal address.
        return address.is_loopback or not is_loopback(self.address.host)

    def is_allowed_origin(self, origin: str | None, host_header: str, forwarded_host: str | None = None) -> bool:
        """Return whether an Origin header names this page; True if it is absent, as in requests of programs.

        Args:
            origin: the Origin header.
            host_header: the Host header.
            forwarded_host: ``X-Forwarded-Host``, the host that a proxy received; "" if only other headers show that
                there is a proxy; None without a proxy. Web sites cannot set these headers. Some proxies omit the port.
        """
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
            requested = (parts.hostname or "", parts.port or _standard_port(parts.scheme))
            hosts = [host for host in (host_header, forwarded_host) if host]
            same = requested in [(_name_of(host), _port_of(host) or _standard_port(parts.scheme)) for host in hosts]
            if not same and forwarded_host is not None:
                same = any(_port_of(host) is None and _name_of(host) == requested[0] for host in hosts)
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and (same or (parts.hostname or "") in self.allowed_hosts)

    def may_embed(self, origin: str | None) -> bool:
        """Return whether a site of this origin may embed the MJPEG streams and the page."""
        try:
            return bool(self.embed_origins) and origin is not None and check_origin(origin) in self.embed_origins
        except ValueError:
            return False

    def is_authenticated(self, credentials: Credentials) -> bool:
        """Return whether a request contains a valid token, a valid cookie, or the token of the requested stream."""
        if self.token is None:
            return True
        query = credentials.query
        if query is not None and (
            self.token_matches(query)
            or hmac.compare_digest(query.encode("utf-8", "replace"), self.stream_token(credentials.camera).encode())
        ):
            return True
        return any(_holds(token, credentials) for token in self._tokens)

    def may_act(self, credentials: Credentials) -> bool:
        """Return whether a request may change events: the page has no token, or the request contains an acting token.

        ``token`` and ``edit_token`` permit changes, unless they equal ``view_token``.
        """
        if self.token is None:
            return True
        # The token files can change while the page runs: a token that equals the view token permits no change.
        return any(
            _holds(token, credentials)
            for token in (self.token, self.edit_token)
            if not _matches(token, self.view_token)
        )

    def may_edit(self, credentials: Credentials) -> bool:
        """Return whether a request may change the set-up of cameras: it contains ``edit_token`` or its cookie.

        A page without ``edit_token`` permits this to requests that may change events.
        """
        if self.edit_token is None:
            return self.may_act(credentials)
        others = (self.token, self.view_token)
        return not any(_matches(self.edit_token, other) for other in others) and _holds(self.edit_token, credentials)

    @property
    def _tokens(self) -> list[str]:
        return [token for token in (self.token, self.edit_token, self.view_token) if token is not None]

    def token_matches(self, candidate: str) -> bool:
        """Return whether a text equals one of the page's tokens; compares in constant time."""
        return any(_matches(candidate, token) for token in self._tokens)

    def issue_cookie(self, token: str) -> str:
        """Return the value of a new cookie for a valid token: session identifier, time of issue, signature."""
        return _signer(token).sign(secrets.token_hex(16)).decode()

    def stream_token(self, camera: str) -> str:
        """Return the token that opens only this camera's MJPEG stream: a truncated HMAC-SHA256 under the token."""
        return hmac.new((self.token or "").encode(), f"stream {camera}".encode(), hashlib.sha256).hexdigest()[:40]


def _signer(token: str) -> TimestampSigner:
    """Return the signer of cookies: HMAC-SHA256 with a key derived from the token. A new token invalidates them."""
    return TimestampSigner(token, salt=b"page", key_derivation="hmac", digest_method=hashlib.sha256)


def _holds(token: str | None, credentials: Credentials) -> bool:
    """Return whether a request contains this token, or a valid cookie issued for this token."""
    if token is None:
        return False
    offered = _tokens_in(credentials.authorization, takes_basic=credentials.is_private)
    cookie = (credentials.cookie or "").encode("utf-8", "replace")
    return any(_matches(each, token) for each in offered) or _signer(token).validate(cookie, COOKIE_SECONDS)


def _matches(candidate: str | None, token: str | None) -> bool:
    if candidate is None or token is None:
        return False
    expected = token.encode()
    return hmac.compare_digest(candidate.encode("utf-8", "replace"), expected)


def session_of(cookie: str | None) -> str:
    """Return the session identifier in a cookie, without a check of its signature; "" without a cookie."""
    return (cookie or "").partition(".")[0]


def _tokens_in(authorization: str | None, *, takes_basic: bool) -> list[str]:
    """Return the token candidates in an Authorization header: the Bearer token, or the Basic password or user."""
    kind, _, value = (authorization or "").partition(" ")
    if kind.lower() == "bearer":
        return [value.strip()]
    if kind.lower() != "basic" or not takes_basic:
        return []
    try:
        user, _, password = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return []
    return [password or user]


def _name_of(host_header: str) -> str:
    try:
        return (urlsplit(f"//{host_header}").hostname or "").lower()
    except ValueError:
        return ""


def _port_of(host_header: str) -> int | None:
    """Return the port in a Host header, None if absent; raises ``ValueError`` for an invalid port."""
    return urlsplit(f"//{host_header}").port


def _standard_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80

"""Origins of network addresses, their TCP connections, and the hosts that a camera may refer to."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from stream.failures import Failure, FailureError

_PORTS: Final = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
_TLS: Final = frozenset({"https", "rtsps"})
_KINDS: Final = {"http": "http", "https": "http", "rtsp": "rtsp", "rtsps": "rtsp"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a URL; credentials are sent to one origin only."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str, kind: str = "http") -> Origin:
        """Return the origin of ``url``.

        Args:
            url: the address.
            kind: the required protocol: ``http`` or ``rtsp``, with or without TLS.

        Raises:
            FailureError: the address is invalid, or uses another protocol.
        """
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
        except ValueError:
            raise FailureError(Failure("the camera refers to an invalid address", "slow", "refused")) from None
        if _KINDS.get(scheme) != kind:
            shown = re.sub(r"[^\w.+-]", "?", scheme)[:20] or "no scheme"
            raise FailureError(
                Failure(f"the camera refers to an address that is not {kind}(s) ({shown})", "slow", "refused")
            )
        if not host:
            raise FailureError(Failure("the camera refers to an address without a host", "slow", "refused"))
        return cls(scheme, host.lower().rstrip("."), port or _PORTS[scheme])

    @property
    def host_port(self) -> str:
        """``HOST:PORT``, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def header(self) -> str:
        """The value of the header ``Host``, without a default port or the zone of an IPv6 address."""
        host = re.sub("%.*", "", self.host)
        try:
            host = f"[{host}]" if ":" in host else host.encode("idna").decode()
        except UnicodeError:
            raise FailureError(Failure("the host name is not valid", "never", "refused")) from None
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def connect(self, seconds: float) -> socket.socket:
        """Open a connection, with TLS if the scheme requires it.

        Raises:
            OSError: no connection within ``seconds``; ``FailureError`` if the cause is known.
        """
        try:
            connected = socket.create_connection((self.host, self.port), timeout=seconds)
        except socket.gaierror:
            raise FailureError(Failure("the host name is unknown, or there is no network")) from None
        except UnicodeError:
            raise FailureError(Failure("the host name is not valid", "never", "refused")) from None
        if self.scheme in _TLS:
            try:
                connected = _tls().wrap_socket(connected, server_hostname=self.host)
            except BaseException as error:
                connected.close()
                if isinstance(error, ssl.SSLError):
                    reason = error.reason or type(error).__name__
                    message = f"the TLS handshake failed ({reason}); the server may not support TLS"
                    raise FailureError(Failure(message)) from None
                raise
        return connected


class AllowedHosts:
    """The hosts that a camera may refer to: its own host, and those that the user allows."""

    def __init__(self, own: Origin, names: Iterable[str] = ()) -> None:
        """Create the list; ``names`` are the allowed hosts, ``HOST`` or ``HOST:PORT``."""
        self._own = own
        self._names = {name.lower().rstrip(".") for name in names}

    def check(self, origin: Origin) -> None:
        """Raise ``FailureError`` if the camera may not refer to ``origin``."""
        upgraded = origin.host == self._own.host and (origin.port, self._own.port) == (443, 80)
        if origin == self._own or upgraded or self.has(origin.host, origin.host_port):
            return
        host_port = re.sub(r"[^\w.:\[\]-]", "?", origin.host_port)[:100]
        message = (
            f"the camera refers to another host or port, {host_port}; to allow it, set allowed_hosts: ['{host_port}']"
        )
        raise FailureError(Failure(message, "slow", "refused", hint=""))

    def has(self, *names: str) -> bool:
        """Return whether the user allowed one of these hosts."""
        return not self._names.isdisjoint(names)


def _tls() -> ssl.SSLContext:
    """Return a TLS context without certificate verification: cameras use self-signed certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context

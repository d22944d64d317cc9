"""An HTTP client for cameras, with time limits and restricted redirects.

FFmpeg's client follows redirects to any host, supports Digest with MD5 only, and its waits cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, Self, cast
from urllib.parse import quote, unquote, urljoin, urlsplit

from pipeline.http_auth import Challenge, authorization, challenges, strongest
from stream.attempt import Attempt
from stream.failures import Failure, FailureError, failure_of_status
from stream.origin import AllowedHosts, Origin

MAX_REDIRECTS: Final = 5
_POLL_SECONDS = 0.1  # how often a waiting read checks the stop event
_SAFE: Final = "/%:=&~+!$,;'@()*[]"
_AGENT: Final = "recipro-stream"


class WebClient:
    """Sends requests to one camera, and to other hosts if the user allows them."""

    def __init__(self, uri: str, *, allowed_hosts: tuple[str, ...] = ()) -> None:
        """Create a client for the camera's address ``uri``, with its credentials.

        ``allowed_hosts`` are further hosts that the camera may redirect to: ``HOST`` or ``HOST:PORT``.
        """
        parts = urlsplit(uri)
        credentials, _, netloc = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        self.address = parts._replace(netloc=netloc, fragment="").geturl()
        """The camera's address without credentials."""
        self._user, self._password = unquote(user), unquote(password)
        self._has_credentials = bool(credentials)
        self._own = Origin.of(self.address)
        self._allowed = AllowedHosts(self._own, allowed_hosts)
        self._challenge: Challenge | None = None
        self._count = 0

    def get(self, url: str, attempt: Attempt, *, headers: dict[str, str] | None = None) -> Response:
        """Send a GET request; return its response, of status 200, 206 or 304. Close it after use.

        Raises:
            FailureError: the server refuses, redirects to a host that is not allowed, or does not speak HTTP.
            OSError: the server cannot be reached, or does not answer before the attempt's deadline.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request(url, attempt, headers or {})
            if response.status == http.client.UNAUTHORIZED and self._accepts_challenge(response):
                response.close()
                response = self._request(url, attempt, headers or {})
            if response.status in {200, 206} and (encoding := response.content_encoding):
                response.close()
                message = (
                    f"the server compresses its responses ({encoding}) without a request; disable compression "
                    "in the server"
                )
                raise FailureError(Failure(message, "slow", "corrupt", hint=""))
            if response.status in {200, 206, 304}:
                return response
            response.close()
            target = response.headers.get("Location")
            if response.status not in {301, 302, 303, 307, 308} or not target:
                raise FailureError(self._refusal(response))
            try:
                url = urljoin(url, target)
            except ValueError:
                raise FailureError(Failure("the camera redirects to an invalid address", "slow", "refused")) from None
            self._check(url)
        raise FailureError(Failure(f"the camera redirects more than {MAX_REDIRECTS} times", "slow", "refused"))

    def _request(self, url: str, attempt: Attempt, headers: dict[str, str]) -> Response:
        origin = self._check(url)
        parts = urlsplit(url)
        target = quote(parts.path or "/", safe=_SAFE)
        if parts.query:
            target += f"?{quote(parts.query, safe=_SAFE + '?')}"
        sent = {"Host": origin.header, "User-Agent": _AGENT, "Accept": "*/*", "Connection": "close", **headers}
        sent["Accept-Encoding"] = "identity"
        if self._challenge is not None and origin == self._own:
            self._count += 1
            sent["Authorization"] = authorization(
                self._challenge,
                user=self._user,
                password=self._password,
                method="GET",
                target=target,
                count=self._count,
                cnonce=secrets.token_hex(8),
            )
        connected = _connect(origin, attempt)
        try:
            return Response(url, _Socket(connected, attempt), target, sent)
        except BaseException:
            connected.close()
            raise

    def _accepts_challenge(self, response: Response) -> bool:
        """Choose the strongest authentication method of a 401 response; return whether to retry."""
        if not self._has_credentials or Origin.of(response.url) != self._own:
            return False
        chosen = strongest(challenges(response.headers.get_all("WWW-Authenticate") or []))
        previous, self._challenge, self._count = self._challenge, chosen, 0
        is_stale = chosen is not None and chosen.parameters.get("stale", "").lower() == "true"
        return chosen is not None and (previous is None or is_stale or previous.parameters != chosen.parameters)

    def _refusal(self, response: Response) -> Failure:
        offered = challenges(response.headers.get_all("WWW-Authenticate") or [])
        if response.status == http.client.UNAUTHORIZED and offered and strongest(offered) is None:
            names = re.sub(r"[^\w ,-]", "?", ", ".join(challenge.name for challenge in offered))[:80]
            message = (
                f"the camera requires {names}, which is not supported; enable Digest or Basic in its settings (401)"
            )
            return Failure(message, "slow", "unauthorised", hint="")
        return failure_of_status(response.status)

    def _check(self, url: str) -> Origin:
        """Return the origin of ``url``. Raises ``FailureError`` if it is not allowed."""
        origin = Origin.of(url)
        self._allowed.check(origin)
        return origin


class Response:
    """An HTTP response whose body is read like a file without ``seek``."""

    def __init__(self, url: str, connected: _Socket, target: str, headers: dict[str, str]) -> None:
        self.url = url
        self._socket = connected
        self._ahead = b""
        connection = http.client.HTTPConnection("camera")
        connection.sock = cast("socket.socket", connected)
        try:
            connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
            for key, value in headers.items():
                connection.putheader(key, value.encode())
            connection.endheaders()
            self._response = connection.getresponse()
        except http.client.HTTPException as error:
            if isinstance(error, http.client.RemoteDisconnected):
                message = "the connection was closed before the server answered"
                raise FailureError(Failure(message, cause="ended")) from None
            raise FailureError(Failure("the server does not speak HTTP", cause="corrupt")) from None
        self.status = self._response.status
        self.headers = self._response.headers
        self.length = self._response.length
        """The body's length in bytes; None: unknown."""

    @property
    def kind(self) -> str:
        """The response's media type in lower case, without parameters; empty if missing."""
        return (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()

    @property
    def content_encoding(self) -> str:
        """The compression of the body, as printable text; empty if there is none."""
        encoding = re.sub(r"[^\w, -]", "?", self.headers.get("Content-Encoding") or "")[:40].strip()
        return "" if encoding.lower() == "identity" else encoding

    def read(self, size: int = -1) -> bytes:
        """Wait for data and return at most ``size`` bytes; ``b""`` at the end.

        Raises:
            OSError: the connection broke, or no data arrived before the deadline.
        """
        if self._ahead:
            part, self._ahead = self._ahead[:size] if size > 0 else self._ahead, self._ahead[size:] if size > 0 else b""
            return part
        try:
            return self._response.read1(size if size > 0 else 65536)
        except http.client.HTTPException:
            raise FailureError(Failure("the connection was interrupted", cause="ended")) from None

    def peek(self, size: int) -> bytes:
        """Return the next ``size`` bytes without consuming them; fewer only at the end."""
        parts, total, self._ahead = [self._ahead], len(self._ahead), b""
        try:
            while total < size and (part := self.read(65536)):
                parts.append(part)
                total += len(part)
        finally:
            self._ahead = b"".join(parts)
        return self._ahead[:size]

    def whole(self, limit: int) -> bytes:
        """Return the rest of the body; raises ``FailureError`` above ``limit`` bytes."""
        parts: list[bytes] = []
        total = 0
        while total <= limit and (part := self.read(65536)):
            parts.append(part)
            total += len(part)
        if total > limit or (self.length or 0) > limit:
            raise FailureError(
                Failure(f"the server sends a response of more than {limit >> 20} MiB", "slow", "corrupt")
            )
        if self.length is not None and total < self.length and not self._socket.attempt.stop.is_set():
            raise FailureError(Failure("the connection was interrupted", cause="ended"))
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection; may be called more than once."""
        self._response.close()
        self._socket.shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Socket:
    """A socket for ``http.client`` whose reads end at the attempt's deadline."""

    def __init__(self, connected: socket.socket, attempt: Attempt) -> None:
        self.attempt = attempt
        self._socket = connected
        self.sendall: Callable[[bytes], None] = connected.sendall

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """Return a buffered reader of the socket."""
        return io.BufferedReader(_Incoming(self._socket, self.attempt), 65536)

    def close(self) -> None:
        """Do nothing, because ``http.client`` closes the socket before the response is read."""

    def shut(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Incoming(io.RawIOBase):
    def __init__(self, connected: socket.socket, attempt: Attempt) -> None:
        super().__init__()
        self._socket = connected
        self._attempt = attempt

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        while not self._attempt.stop.is_set():
            if time.monotonic() >= self._attempt.deadline:  # also ends a connection that sends only useless data
                raise TimeoutError("no data arrived before the deadline")
            with contextlib.suppress(TimeoutError, ssl.SSLWantReadError):
                return self._socket.recv_into(buffer)
        return 0


def _connect(origin: Origin, attempt: Attempt) -> socket.socket:
    connected = origin.connect(max(0.05, attempt.deadline - time.monotonic()))
    connected.settimeout(_POLL_SECONDS)
    return connected

"""Stands before the application: who may not enter is told so here, and every answer leaves with the same headers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overlays.file_limits import shared_address
from overlays.web.auth import AccessPolicy, Asked, check_prefix, session_of
from overlays.web.rate_limit import MAX_WAIT_SECONDS, WRONG_TOKEN_COST, Pace

log = logging.getLogger(__name__)

_OPEN: Final = frozenset({"/login", "/healthz", "/readyz", "/static/page.css", "/static/icon.svg"})
"""What may be seen without the token."""
_STREAMS: Final = "/stream/"
_SAY_EVERY_SECONDS: Final = 60.0
_READ_TOKEN_SECONDS: Final = 1.0
_MAX_ADDRESS: Final = 64
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Protected(Protocol):
    """What is protected: the rules, and where refusals are counted."""

    refused: int

    @property
    def access(self) -> AccessPolicy:
        """The rules, as of now: the token may change."""

    def read_token(self) -> None:
        """Take the token that stands in its file now."""

    def has_left(self, session: str) -> bool:
        """Say whether a session was ended by its owner."""


class AccessMiddleware:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, page: Protected) -> None:
        """Take what to protect."""
        self._app = app
        self._page = page
        self._pace = Pace()
        self._said_at = self._read_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        now = time.monotonic()
        if now - self._read_at > _READ_TOKEN_SECONDS:
            self._read_at = now
            self._page.read_token()
        headers = Headers(scope=scope)
        _take_prefix(scope, headers, self._page.access.root_path)
        more: dict[str, str] = {}

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                answer = MutableHeaders(scope=message)
                for name, value in (HEADERS | more).items():
                    answer.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, headers, more)
        refusal = await self._held_back(scope, headers, now) or refusal
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        if refusal.status_code not in {303, 307}:
            self._count(scope, refusal.status_code)
        await refusal(scope, receive, send_with_headers)

    async def _held_back(self, scope: Scope, headers: Headers, now: float) -> Response | None:
        """Wait until this client's next request is due; return a refusal where it asks much too often."""
        is_stranger = not scope.get("admitted")
        if not is_stranger and self._page.access.token is not None:
            return None
        cost = WRONG_TOKEN_COST if is_stranger and _guesses(scope, headers) else 1
        wait = self._pace.delay(_address(scope), now, is_stranger=is_stranger, cost=cost)
        if wait != 0:
            await asyncio.sleep(MAX_WAIT_SECONDS if wait is None else wait)
        if wait is not None:
            return None
        retry = {"Retry-After": "5", "Connection": "close"}
        return Response("too many requests from this address", 429, headers=retry, media_type="text/plain")

    def _refusal(self, scope: Scope, headers: Headers, more: dict[str, str]) -> Response | None:
        access = self._page.access
        host, path = headers.get("host", ""), scope["path"]
        if not access.is_allowed_host(host):
            said = "this page is not known by that name; name it under the sink's 'allowed_hosts:'"
            return Response(said, 421, media_type="text/plain")
        if scope["type"] == "http" and path == scope["prefix"]:
            return RedirectResponse(path.rpartition("/")[2] + "/", 307)
        if not self._is_from_here(scope, headers, host, more):
            return Response("asked from another site", 403, media_type="text/plain")
        cookie = HTTPConnection(scope).cookies.get(f"recipro_page_{access.address.port}")
        query = None
        if path.startswith(_STREAMS):
            query = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]
        camera = path.removeprefix(_STREAMS).removesuffix(".mjpg")
        left = self._page.has_left(session_of(cookie))
        asked = Asked(headers.get("authorization"), None if left else cookie, query, camera)
        scope["admitted"] = access.is_authenticated(asked, time.time())
        scope["session"] = session_of(cookie)
        if scope["admitted"] or path in _OPEN:
            return None
        if scope["type"] == "http" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(above(scope) + "login", 303)
        kinds = 'Bearer realm="recipro-stream"'
        if path.startswith(_STREAMS):  # players wait to be asked for the password of their address
            kinds = f'Basic realm="recipro-stream", {kinds}'
        bearer = {"WWW-Authenticate": kinds}
        return Response("this page wants its token", 401, headers=bearer, media_type="text/plain")

    def _is_from_here(self, scope: Scope, headers: Headers, host: str, more: dict[str, str]) -> bool:
        """Say whether a request comes from this page, from no page, or from another one that may send it.

        A link on another site may lead to the page; nothing else there may ask for anything, unless it is named.
        """
        access, path = self._page.access, scope["path"]
        fetched = headers.get("sec-fetch-site", "")  # which no script can set
        forwarded = headers.get("x-forwarded-host")
        forwarded = None if forwarded is None else forwarded.partition(",")[0].strip()
        if forwarded is None and ("x-forwarded-for" in headers or "x-forwarded-proto" in headers):
            forwarded = ""
        origin = headers.get("origin")
        source = origin or _origin_of(headers.get("referer"))
        own = fetched == "same-origin" or (
            fetched not in {"cross-site", "same-site"} and access.is_allowed_origin(source, host, forwarded)
        )
        changes = scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD"}
        if own:
            return not changes or fetched == "same-origin" or access.is_allowed_origin(origin, host, forwarded)
        if changes:
            return fetched == "" and access.is_allowed_origin(origin, host, forwarded)
        if path.startswith(_STREAMS) and access.may_embed(source):
            more["Cross-Origin-Resource-Policy"] = "cross-origin"
            return True
        if headers.get("sec-fetch-mode") == "navigate":
            return path in {"/", "/login"} or path.startswith(_STREAMS)
        return not fetched and not path.startswith("/clip/")

    def _count(self, scope: Scope, status: int) -> None:
        """Count a refusal; say it, but not more than once a minute."""
        self._page.refused += 1
        now = time.monotonic()
        if now - self._said_at > _SAY_EVERY_SECONDS:
            self._said_at = now
            reasons = {421: "an unknown host name", 403: "another site's page", 429: "too many requests"}
            why = reasons.get(status, "no or a wrong token")
            log.warning("page: refused %s (%s); %d refusals so far", _address(scope), why, self._page.refused)


def above(scope: Scope) -> str:
    """Return the relative path from what was asked for to the page itself: a proxy may serve it below a path."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return "../" * (raw.count(b"/") - 1)


def _take_prefix(scope: Scope, headers: Headers, configured: str) -> None:
    """Take the path that a proxy serves the page under off the request's path, and keep it for the cookie."""
    scope["prefix"] = ""
    try:
        prefix = configured or check_prefix(headers.get("x-forwarded-prefix", ""))
    except ValueError:
        return
    scope["prefix"] = prefix
    if prefix and scope["path"].startswith(prefix + "/"):
        scope["path"] = scope["path"][len(prefix) :]
        scope["raw_path"] = (scope.get("raw_path") or b"")[len(prefix) :] or scope["path"].encode()


def _guesses(scope: Scope, headers: Headers) -> bool:
    """Say whether a request without the token may be a guess at it."""
    signs_in = scope["path"] == "/login" and scope.get("method") == "POST"
    return signs_in or "authorization" in headers or b"token=" in scope["query_string"]


def _origin_of(referer: str | None) -> str | None:
    """Return the origin of a Referer; None where there is none."""
    if referer is None:
        return None
    try:
        parts = urlsplit(referer)
    except ValueError:
        return referer
    return f"{parts.scheme}://{parts.netloc}"


def _address(scope: Scope) -> str:
    """Return who asks, as an address: X-Forwarded-For may hold anything."""
    given = str((scope.get("client") or ("", 0))[0])
    try:
        ipaddress.ip_address(given[:_MAX_ADDRESS].partition("%")[0])
    except ValueError:
        return "an unknown address"
    return shared_address(given)

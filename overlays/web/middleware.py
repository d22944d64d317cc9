"""ASGI middleware for access control: refuses requests, limits their rate, and sets security headers."""

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

from overlays.file_limits import is_loopback_address, shared_address
from overlays.web.auth import AccessPolicy, Credentials, check_prefix, session_of
from overlays.web.rate_limit import MAX_WAIT_SECONDS, WRONG_TOKEN_COST, RequestRateLimiter

log = logging.getLogger(__name__)

_PUBLIC_PATHS: Final = frozenset({"/login", "/healthz", "/readyz", "/static/page.css", "/static/icon.svg"})
"""Paths that are served without a token."""
_STREAMS: Final = "/stream/"
_PULLED: Final = ("/stream/", "/snapshot/", "/clip/")
"""Paths that video players and camera walls request. Most of them send a URL's password only after a challenge."""
_LOG_SECONDS: Final = 60.0
_READ_TOKEN_SECONDS: Final = 1.0
_MAX_ADDRESS_LENGTH: Final = 64
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


def framing_headers(embed_origins: frozenset[str]) -> dict[str, str]:
    """Return the headers that permit pages of these origins, and the page itself, to embed the page in a frame.

    ``frame-ancestors`` replaces ``X-Frame-Options``, which cannot name origins.
    """
    if not embed_origins:
        return {}
    policy = HEADERS["Content-Security-Policy"]
    ancestors = " ".join(("'self'", *sorted(embed_origins)))
    return {"Content-Security-Policy": policy.replace("frame-ancestors 'none'", f"frame-ancestors {ancestors}")}


class Protected(Protocol):
    """The interface of the page that the middleware uses: access rules, ended sessions and the count of refusals."""

    refused: int

    @property
    def access(self) -> AccessPolicy:
        """The current access rules; replaced when a token changes."""

    def read_token(self) -> None:
        """Read the token files again."""

    def has_ended(self, session: str) -> bool:
        """Return whether the session has signed out."""


class AccessMiddleware:
    """ASGI middleware that admits or refuses each request before the application."""

    def __init__(self, app: ASGIApp, page: Protected) -> None:
        """Set the application to protect, and the page with the access rules."""
        self._app = app
        self._page = page
        self._rate_limiter = RequestRateLimiter()
        self._logged_at = self._read_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request or WebSocket connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        now = time.monotonic()
        if now - self._read_at > _READ_TOKEN_SECONDS:
            self._read_at = now
            self._page.read_token()
        headers = Headers(scope=scope)
        _remove_prefix(scope, headers, self._page.access.root_path)
        more: dict[str, str] = {}

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                response_headers = MutableHeaders(scope=message)
                framing = framing_headers(self._page.access.embed_origins)
                for name, value in (HEADERS | framing | more).items():
                    if not (framing and name == "X-Frame-Options"):
                        response_headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, headers, more)
        refusal = await self._throttle(scope, headers, now) or refusal
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        if refusal.status_code not in {303, 307}:
            self._count(scope, refusal.status_code)
        await refusal(scope, receive, send_with_headers)

    async def _throttle(self, scope: Scope, headers: Headers, now: float) -> Response | None:
        """Delay the request to the permitted rate; return a 429 response if the delay would be too long."""
        is_unauthenticated = not scope.get("admitted")
        if not is_unauthenticated and self._page.access.token is not None:
            return None
        cost = WRONG_TOKEN_COST if is_unauthenticated and _is_guess(scope, headers) else 1
        wait = self._rate_limiter.delay(_address(scope), now, is_unauthenticated=is_unauthenticated, cost=cost)
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
            text = "unknown host name of this page; add it to the sink's 'allowed_hosts:'"
            return Response(text, 421, media_type="text/plain")
        if scope["type"] == "http" and path == scope["prefix"]:
            return RedirectResponse(path.rpartition("/")[2] + "/", 307)
        if not self._is_allowed_site(scope, headers, host, more):
            return Response("request from another site", 403, media_type="text/plain")
        cookie = HTTPConnection(scope).cookies.get(f"recipro_page_{access.address.port}")
        query = None
        if path.startswith(_STREAMS):
            query = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]
        camera = path.removeprefix(_STREAMS).removesuffix(".mjpg")
        has_ended = self._page.has_ended(session_of(cookie))
        is_private = _is_private(scope)
        cookie_used = None if has_ended else cookie
        credentials = Credentials(headers.get("authorization"), cookie_used, query, camera, is_private)
        scope["admitted"] = access.is_authenticated(credentials)
        scope["is_private"] = is_private
        scope["may_act"] = scope["admitted"] and access.may_act(credentials)
        scope["may_edit"] = scope["admitted"] and access.may_edit(credentials)
        scope["session"] = session_of(cookie)
        if scope["admitted"] or path in _PUBLIC_PATHS:
            return None
        if scope["type"] == "http" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(above(scope) + "login", 303)
        return _challenge(path, headers, is_private=is_private)

    def _is_allowed_site(self, scope: Scope, headers: Headers, host: str, more: dict[str, str]) -> bool:
        """Return whether the site that sent a request may send it: this page, no site (a program), or another site.

        Other sites may link to the page. Their other requests are refused, except requests for streams from the
        origins in ``embed_origins``.
        """
        access, path = self._page.access, scope["path"]
        fetched = headers.get("sec-fetch-site", "")  # scripts cannot set this header
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
            if origin is not None:  # <img crossorigin>, whose pixels a script may read
                more.update({"Access-Control-Allow-Origin": origin, "Vary": "Origin"})
            return True
        if headers.get("sec-fetch-mode") == "navigate":
            return path in {"/", "/login", "/review"} or path.startswith(_STREAMS)
        # A browser without Sec-Fetch headers sends an Origin with every request except navigations and images.
        return not fetched and origin is None and not path.startswith(("/clip/", "/api/", "/snapshot/"))

    def _count(self, scope: Scope, status: int) -> None:
        """Count a refusal, and log it at most once a minute."""
        self._page.refused += 1
        now = time.monotonic()
        if now - self._logged_at > _LOG_SECONDS:
            self._logged_at = now
            reasons = {421: "an unknown host name", 403: "another site's page", 429: "too many requests"}
            why = reasons.get(status, "no or a wrong token")
            log.warning("page: refused %s (%s); %d refusals so far", _address(scope), why, self._page.refused)


def _is_private(scope: Scope) -> bool:
    """Return whether the request came by TLS or from this machine, so that the network cannot read it."""
    return scope["scheme"] in {"https", "wss"} or is_loopback_address(str((scope.get("client") or ("", 0))[0]))


def _challenge(path: str, headers: Headers, *, is_private: bool) -> Response:
    """Return the 401 response to a request without a token; it lists the accepted authentication schemes.

    Basic is offered only to players and camera walls: a browser would open a password dialog.
    """
    challenge, text = 'Bearer realm="recipro-stream"', "this page requires its token"
    is_pulled = path.startswith(_STREAMS) or (path.startswith(_PULLED) and "sec-fetch-mode" not in headers)
    if is_pulled and is_private:
        challenge = f'Basic realm="recipro-stream", {challenge}'
    if not is_private and headers.get("authorization", "").lower().startswith("basic "):
        text = (
            "Basic authentication is accepted by HTTPS or on this machine only, because the network could read the "
            "token; use the address of the page's MJPEG button, which opens one stream only, or a proxy with TLS"
        )
    return Response(text, 401, headers={"WWW-Authenticate": challenge}, media_type="text/plain")


def above(scope: Scope) -> str:
    """Return the relative path from the requested path to the page's root, valid under any prefix of a proxy."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return "../" * (raw.count(b"/") - 1)


def _remove_prefix(scope: Scope, headers: Headers, configured: str) -> None:
    """Remove the proxy's prefix from the request's path and store it in ``scope["prefix"]``, for the cookie's path."""
    scope["prefix"] = ""
    try:
        prefix = configured or check_prefix(headers.get("x-forwarded-prefix", ""))
    except ValueError:
        return
    scope["prefix"] = prefix
    if prefix and scope["path"].startswith(prefix + "/"):
        scope["path"] = scope["path"][len(prefix) :]
        scope["raw_path"] = (scope.get("raw_path") or b"")[len(prefix) :] or scope["path"].encode()


def _is_guess(scope: Scope, headers: Headers) -> bool:
    """Return whether a request without a valid token may be an attempt to guess it."""
    is_sign_in = scope["path"] == "/login" and scope.get("method") == "POST"
    return is_sign_in or "authorization" in headers or b"token=" in scope["query_string"]


def _origin_of(referer: str | None) -> str | None:
    """Return the origin of a Referer; None if there is no Referer."""
    if referer is None:
        return None
    try:
        parts = urlsplit(referer)
    except ValueError:
        return referer
    return f"{parts.scheme}://{parts.netloc}"


def _address(scope: Scope) -> str:
    """Return the client's address under which requests are counted.

    A text that is not an address, which X-Forwarded-For may contain, is returned as "an unknown address".
    """
    client = str((scope.get("client") or ("", 0))[0])
    try:
        ipaddress.ip_address(client[:_MAX_ADDRESS_LENGTH].partition("%")[0])
    except ValueError:
        return "an unknown address"
    return shared_address(client)

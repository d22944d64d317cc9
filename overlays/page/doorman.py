"""Stands before the application: who may not enter is told so here, and every answer leaves with the same headers."""

from __future__ import annotations

import logging
import time
from typing import Final, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overlays.page.guard import Guard

log = logging.getLogger(__name__)

_OPEN: Final = frozenset({"/login", "/healthz", "/readyz", "/static/page.css", "/static/icon.svg"})
"""What may be seen without the token."""
_SAY_EVERY_SECONDS: Final = 60.0
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


class Counting(Protocol):
    """Where refusals are counted."""

    refused: int


class Doorman:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, guard: Guard, counts: Counting) -> None:
        """Take whom to protect, the rules, and where to count."""
        self._app = app
        self._guard = guard
        self._counts = counts
        self._said_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return

        async def polite(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, polite)
            return
        if refusal.status_code != 303:
            self._count(scope, refusal.status_code)
        await refusal(scope, receive, polite)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        guard = self._guard
        if not guard.knows_host(host):
            said = "this page is not known by that name; name it under the sink's 'hosts:'"
            return Response(said, 421, media_type="text/plain")
        from_elsewhere = not guard.knows_origin(headers.get("origin"), host)
        if from_elsewhere and (scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD"}):
            return Response("asked from another site", 403, media_type="text/plain")
        cookie = HTTPConnection(scope).cookies.get(f"recipro_page_{guard.address.port}")
        scope["admitted"] = guard.admits(headers.get("authorization"), cookie, time.time())
        if scope["admitted"] or scope["path"] in _OPEN:
            return None
        if scope["type"] == "http" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        bearer = {"WWW-Authenticate": 'Bearer realm="recipro-stream"'}
        return Response("this page wants its token", 401, headers=bearer, media_type="text/plain")

    def _count(self, scope: Scope, status: int) -> None:
        """Count a refusal; say it, but not more than once a minute."""
        self._counts.refused += 1
        now = time.monotonic()
        if now - self._said_at > _SAY_EVERY_SECONDS:
            self._said_at = now
            client = (scope.get("client") or ("somebody", 0))[0]
            why = {421: "an unknown host name", 403: "another site's page"}.get(status, "no or a wrong token")
            log.warning("page: refused %s (%s); %d refusals so far", client, why, self._counts.refused)

"""What the page answers: files, sign-in, frames, clips, figures, health. Starlette; knows no thread and no socket."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from overlays.render.colormaps import palette
from overlays.web.auth import COOKIE_SECONDS, AccessPolicy
from overlays.web.broadcast import WebClient
from overlays.web.clip import CLIP_SECONDS
from overlays.web.clips import clip_answer
from overlays.web.middleware import AccessMiddleware
from overlays.web.prometheus import exposition
from overlays.web.state import SMALL_PIXELS, WebState
from overlays.web.status import readiness

STATUS_SECONDS: Final = 0.2
"""How often every page is told how the cameras do."""
_STATUSES_UNHEARD: Final = 4
"""So many may be on their way."""
READY_SECONDS: Final = 5.0
_MAX_FORM_BYTES: Final = 4096
_FORM_SECONDS: Final = 5.0
_MAX_VIEWERS: Final = 128
_REFUSAL_SECONDS: Final = 0.5
"""How long a wrong token waits for its answer."""
_BOUNDARY: Final = "frame"
_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def make_app(page: WebState) -> AccessMiddleware:
    """Return the application, with the doorman before it."""
    answers = _Handlers(page)
    routes = [
        Route("/", answers.file),
        Route("/static/{name}", answers.file),
        Route("/login", answers.login, methods=["GET", "POST"]),
        Route("/logout", answers.logout, methods=["POST"]),
        Route("/stream/{camera:path}", answers.mjpeg),
        Route("/clip/{camera:path}", answers.clip),
        Route("/metrics", answers.metrics),
        Route("/healthz", answers.alive),
        Route("/readyz", answers.ready),
        WebSocketRoute("/frames", answers.frames),
    ]
    return AccessMiddleware(Starlette(routes=routes), page)


class _Handlers:
    def __init__(self, page: WebState) -> None:
        self.page = page
        colours = palette(page.style.colormap, page.style.opacity).colours
        self._hello = json.dumps(
            {
                "kind": "hello",
                "palette": base64.b64encode(colours.tobytes()).decode(),
                "opacity": page.style.opacity,
                "painted": page.painted,
                "clip_seconds": CLIP_SECONDS,
                "small_pixels": SMALL_PIXELS,
                "token": page.access.token is not None,
            }
        )

    async def file(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        packed = self.page.files.get(name)
        if packed is None:
            return Response("there is no such file", 404, media_type="text/plain")
        return Response(packed, media_type=_KINDS[Path(name).suffix], headers={"Cache-Control": "no-cache"})

    async def login(self, request: Request) -> Response:
        guard = self.page.access
        if request.method == "GET":
            return Response(self.page.files["login.html"], media_type="text/html")
        body = b""
        try:
            async with asyncio.timeout(_FORM_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > _MAX_FORM_BYTES:
                        return Response("too long", 413, media_type="text/plain")
        except TimeoutError:
            return Response("too slow", 408, media_type="text/plain", headers={"Connection": "close"})
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not guard.token_matches(given.strip()):
            self.page.refused += 1
            await asyncio.sleep(_REFUSAL_SECONDS)
            said = b'<p role="alert">That is not the token.</p>'
            form = self.page.files["login.html"].replace(b"<!-- said -->", said)
            return Response(form, 401, media_type="text/html")
        answer = RedirectResponse("./", 303)
        answer.set_cookie(
            cookie_name(guard),
            guard.issue_cookie(time.time()),
            max_age=COOKIE_SECONDS,
            path=_cookie_path(request),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def logout(self, request: Request) -> Response:
        self.page.end_session(request.scope["session"])
        answer = RedirectResponse("login", 303)
        name = cookie_name(self.page.access)
        answer.delete_cookie(name, path=_cookie_path(request), httponly=True, samesite="strict")
        return answer

    async def alive(self, request: Request) -> Response:  # noqa: ARG002 - starlette's shape
        return Response("alive\n", media_type="text/plain")

    async def ready(self, request: Request) -> Response:
        try:
            within = min(max(_number(request, "within", READY_SECONDS), 0.1), 3600.0)
        except ValueError:
            return Response("within: seconds, such as /readyz?within=3", 400, media_type="text/plain")
        good, cameras = readiness(self.page.status.snapshot(), within)
        told: dict[str, Any] = {"ready": good, "within_seconds": within}
        if request.scope["admitted"]:
            told["cameras"] = cameras
        return JSONResponse(told, 200 if good else 503)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        outcome = self.page.status.outcome
        text = exposition(self.page.status, self.page.metrics() if outcome is None else outcome.metrics())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def mjpeg(self, request: Request) -> Response:
        camera = request.path_params["camera"].removesuffix(".mjpg")
        if camera not in self.page.status.cameras:
            return self._unknown(camera, "/stream/<camera>.mjpg")
        if len(self.page.broadcaster.clients) >= _MAX_VIEWERS:
            return Response("too many look on already", 503, media_type="text/plain")
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        if request.method == "HEAD":
            return Response(media_type=kind)
        return StreamingResponse(self._parts(camera, request.scope["session"]), media_type=kind)

    async def _parts(self, camera: str, session: str) -> AsyncIterator[bytes]:
        client = WebClient(camera)
        client.session = session
        self.page.broadcaster.subscribe(client)
        try:
            yield f"--{_BOUNDARY}\r\n".encode()
            while (shot := await client.next()) is not None:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(shot.packed)}\r\n\r\n".encode()
                # The next boundary comes at once: browsers show a part when they see its end.
                yield head + shot.packed + f"\r\n--{_BOUNDARY}\r\n".encode()
                client.acknowledge(camera)
        finally:
            self.page.unsubscribe(client)

    async def clip(self, request: Request) -> Response:
        camera = request.path_params["camera"].removesuffix(".mp4")
        if camera not in self.page.status.cameras:
            return self._unknown(camera, "/clip/<camera>.mp4")
        try:
            opacity = min(max(_number(request, "opacity", self.page.style.opacity), 0.0), 1.0)
        except ValueError:
            return Response("opacity: a number from 0 to 1", 400, media_type="text/plain")
        return await clip_answer(self.page, request, camera, opacity)

    async def frames(self, socket: WebSocket) -> None:
        if len(self.page.broadcaster.clients) >= _MAX_VIEWERS:
            await socket.close(1013, "too many look on already")
            return
        await socket.accept()
        client = WebClient()
        client.session = socket.scope["session"]
        unheard = [0]
        self.page.broadcaster.subscribe(client)
        tasks = [
            asyncio.create_task(each)
            for each in (self._listen(socket, client, unheard), self._send(socket, client), self._tell(socket, unheard))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.page.unsubscribe(client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, socket: WebSocket, client: WebClient, unheard: list[int]) -> None:
        """Hear what has been shown. Anything else ends the connection."""
        try:
            while True:
                said = json.loads(await socket.receive_text())
                if "shown" in said:
                    client.acknowledge(str(said["shown"]))
                elif "small" in said:
                    client.set_view(small=bool(said["small"]), large=str(said["large"]))
                else:
                    unheard[0] = 0
        except (WebSocketDisconnect, ValueError, TypeError, KeyError, RuntimeError):
            client.close()

    async def _send(self, socket: WebSocket, client: WebClient) -> None:
        try:
            while (shot := await client.next()) is not None:
                await socket.send_bytes(shot.packed)
            await socket.close(1001, "the stream has ended")
        except (WebSocketDisconnect, RuntimeError):
            return

    async def _tell(self, socket: WebSocket, unheard: list[int]) -> None:
        """Tell how the cameras do, as long as it is heard."""
        try:
            await socket.send_text(self._hello)
            while True:
                if unheard[0] < _STATUSES_UNHEARD:
                    unheard[0] += 1
                    told = {"kind": "status", "unix": time.time()} | self.page.told()
                    await socket.send_text(json.dumps(told, allow_nan=False))
                await asyncio.sleep(STATUS_SECONDS)
        except (WebSocketDisconnect, RuntimeError):
            return

    def _unknown(self, camera: str, path: str) -> Response:
        known = ", ".join(self.page.status.cameras) or "none yet"
        text = f"{camera[:80]!r} is no camera of this run; ask {path}, the cameras are: {known}"
        return Response(text, 404, media_type="text/plain")


def _number(request: Request, name: str, default: float) -> float:
    """Return a number of the query.

    Raises:
        ValueError: it is none.
    """
    number = float(request.query_params.get(name, default))
    if math.isnan(number):
        raise ValueError(name)
    return number


def _cookie_path(request: Request) -> str:
    """Return where the cookie is sent back: a proxy's host may have other applications beside this page."""
    return f"{request.scope['prefix']}/"


def cookie_name(guard: AccessPolicy) -> str:
    """Return the cookie's name: two pages on one machine share its cookies, whatever their ports."""
    return f"recipro_page_{guard.address.port}"

"""HTTP and WebSocket handlers of the page (Starlette): files, sign-in, frames, clips, metrics and health checks."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
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
from overlays.web.body import BodyError, read_body
from overlays.web.broadcast import WebClient
from overlays.web.clip import CLIP_SECONDS
from overlays.web.clips import clip_response
from overlays.web.event_requests import RequestError, answer_error
from overlays.web.events import EventHandlers
from overlays.web.fleet import FleetHandlers
from overlays.web.middleware import AccessMiddleware
from overlays.web.prometheus import exposition
from overlays.web.setup import SetupHandlers, refusal_of
from overlays.web.snapshots import snapshot_response
from overlays.web.state import SMALL_PIXELS, WebState
from overlays.web.status import readiness
from overlays.web.viewer_queries import QUESTIONS, ViewerQueries

STATUS_SECONDS: Final = 0.2
"""Interval between two status messages to a page, in seconds."""
_MAX_UNACKNOWLEDGED: Final = 4
"""Maximum number of status messages that a page has not acknowledged."""
READY_SECONDS: Final = 5.0
_MAX_FORM_BYTES: Final = 4096
_MAX_VIEWERS: Final = 128
_REFUSAL_SECONDS: Final = 0.5
"""Delay of the response to a wrong token, in seconds."""
_BOUNDARY: Final = "frame"
_MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}


def make_app(page: WebState) -> AccessMiddleware:
    """Return the page's ASGI application, wrapped in its access control."""
    handlers, events, fleet = _Handlers(page), EventHandlers(lambda: page.events), FleetHandlers(lambda: page.fleet)
    setup = SetupHandlers(page)
    routes = [
        Route("/", handlers.file),
        Route("/review", handlers.review),
        Route("/api/events", events.events),
        Route("/api/summary", events.summary),
        Route("/api/events/{id}", events.event),
        Route("/api/events/{id}/{kind}.jpg", events.image),
        Route("/api/events/{id}/clip.mp4", events.clip),
        Route("/api/events/{id}/{verb}", events.act, methods=["POST"]),
        Route("/api/cameras", handlers.cameras),
        Route("/api/where", fleet.where),
        Route("/api/where/{camera:path}", fleet.where),
        Route("/api/targets", fleet.targets),
        Route("/api/cameras/{camera:path}/setup", setup.setup, methods=["GET", "PUT"]),
        Route("/api/cameras/{camera:path}/setup/undo", setup.undo, methods=["POST"]),
        Route("/api/cameras/{camera:path}/setup/file", setup.apply_file, methods=["POST"]),
        Route("/api/rules/check", setup.check, methods=["POST"]),
        Route("/api/openapi.json", handlers.openapi),
        Route("/snapshot/{camera:path}", handlers.snapshot),
        Route("/static/{name}", handlers.file),
        Route("/login", handlers.login, methods=["GET", "POST"]),
        Route("/logout", handlers.logout, methods=["POST"]),
        Route("/stream/{camera:path}", handlers.mjpeg),
        Route("/clip/{camera:path}", handlers.clip),
        Route("/parts/{camera:path}", handlers.parts),
        Route("/metrics", handlers.metrics),
        Route("/healthz", handlers.alive),
        Route("/readyz", handlers.ready),
        WebSocketRoute("/frames", handlers.frames),
    ]
    return AccessMiddleware(Starlette(routes=routes, exception_handlers={RequestError: answer_error}), page)


class _Handlers:
    def __init__(self, page: WebState) -> None:
        self.page = page
        colours = palette(page.style.colormap, page.style.opacity).colours
        self._hello = {
            "kind": "hello",
            "palette": base64.b64encode(colours.tobytes()).decode(),
            "opacity": page.style.opacity,
            "painted": page.painted,
            "clip_seconds": CLIP_SECONDS,
            "small_pixels": SMALL_PIXELS,
            "token": page.access.token is not None,
            "why": page.queries is not None,
        }

    async def file(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        content = self.page.files.get(name)
        if content is None:
            return Response("no such file", 404, media_type="text/plain")
        return Response(content, media_type=_MEDIA_TYPES[Path(name).suffix], headers={"Cache-Control": "no-cache"})

    async def review(self, _request: Request) -> Response:
        return Response(self.page.files["review.html"], media_type="text/html", headers={"Cache-Control": "no-cache"})

    async def openapi(self, _request: Request) -> Response:
        return Response(self.page.files["openapi.json"], media_type="application/json")

    async def cameras(self, _request: Request) -> Response:
        return JSONResponse({"cameras": self.page.status.snapshot(), "unix": time.time()})

    async def snapshot(self, request: Request) -> Response:
        camera = request.path_params["camera"].removesuffix(".jpg")
        if camera not in self.page.status.cameras:
            return self._unknown(camera, "/snapshot/<camera>.jpg")
        return await snapshot_response(self.page, request, camera)

    async def login(self, request: Request) -> Response:
        access = self.page.access
        if request.method == "GET":
            return Response(self.page.files["login.html"], media_type="text/html")
        try:
            body = await read_body(request, _MAX_FORM_BYTES)
        except BodyError as error:
            return Response(str(error), error.status, media_type="text/plain", headers={"Connection": "close"})
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not access.token_matches(token.strip()):
            self.page.refused += 1
            await asyncio.sleep(_REFUSAL_SECONDS)
            alert = b'<p role="alert">The token is wrong.</p>'
            form = self.page.files["login.html"].replace(b"<!-- alert -->", alert)
            return Response(form, 401, media_type="text/html")
        response = RedirectResponse("./", 303)
        response.set_cookie(
            cookie_name(access),
            access.issue_cookie(token.strip()),
            max_age=COOKIE_SECONDS,
            path=_cookie_path(request),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def logout(self, request: Request) -> Response:
        self.page.end_session(request.scope["session"])
        response = RedirectResponse("login", 303)
        name = cookie_name(self.page.access)
        response.delete_cookie(name, path=_cookie_path(request), httponly=True, samesite="strict")
        return response

    async def alive(self, request: Request) -> Response:  # noqa: ARG002 - Starlette's signature
        return Response("alive\n", media_type="text/plain")

    async def ready(self, request: Request) -> Response:
        try:
            within = min(max(_number(request, "within", READY_SECONDS), 0.1), 3600.0)
        except ValueError:
            return Response("within: seconds, such as /readyz?within=3", 400, media_type="text/plain")
        is_ready, cameras = readiness(self.page.status.snapshot(), within)
        content: dict[str, Any] = {"ready": is_ready, "within_seconds": within}
        if request.scope["admitted"]:
            content["cameras"] = cameras
        return JSONResponse(content, 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        outcome = self.page.status.outcome
        text = exposition(self.page.status, self.page.metrics() if outcome is None else outcome.metrics())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def mjpeg(self, request: Request) -> Response:
        camera = request.path_params["camera"].removesuffix(".mjpg")
        if camera not in self.page.status.cameras:
            return self._unknown(camera, "/stream/<camera>.mjpg")
        if len(self.page.broadcaster.clients) >= _MAX_VIEWERS:
            return Response("too many viewers", 503, media_type="text/plain")
        media_type = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        if request.method == "HEAD":
            return Response(media_type=media_type)
        return StreamingResponse(self._parts(camera, request.scope["session"]), media_type=media_type)

    async def _parts(self, camera: str, session: str) -> AsyncIterator[bytes]:
        client = WebClient(camera)
        client.session = session
        self.page.broadcaster.subscribe(client)
        try:
            yield f"--{_BOUNDARY}\r\n".encode()
            while (frame := await client.next()) is not None:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(frame.packed)}\r\n\r\n".encode()
                # Browsers show a part when they receive the next boundary, so it is sent with the part.
                yield head + frame.packed + f"\r\n--{_BOUNDARY}\r\n".encode()
                client.acknowledge(camera)
        finally:
            self.page.unsubscribe(client)

    async def parts(self, request: Request) -> Response:
        camera = request.path_params["camera"].removesuffix(".json")
        if camera not in self.page.status.cameras:
            return self._unknown(camera, "/parts/<camera>.json")
        try:
            after = max(int(_number(request, "after", 0.0)), 0)
        except (ValueError, OverflowError):
            return Response("after: a sequence number, such as ?after=12", 400, media_type="text/plain")
        return JSONResponse(await asyncio.to_thread(self.page.status.passages.records, camera, after))

    async def clip(self, request: Request) -> Response:
        camera = request.path_params["camera"].removesuffix(".mp4")
        if camera not in self.page.status.cameras:
            return self._unknown(camera, "/clip/<camera>.mp4")
        try:
            opacity = min(max(_number(request, "opacity", self.page.style.opacity), 0.0), 1.0)
        except ValueError:
            return Response("opacity: a number from 0 to 1", 400, media_type="text/plain")
        return await clip_response(self.page, request, camera, opacity)

    async def frames(self, socket: WebSocket) -> None:
        if len(self.page.broadcaster.clients) >= _MAX_VIEWERS:
            await socket.close(1013, "too many viewers")
            return
        await socket.accept()
        client = WebClient()
        client.session = socket.scope["session"]
        client.takes_frames = socket.query_params.get("only") != "events"
        unacknowledged = [0]
        self.page.broadcaster.subscribe(client)
        status = self.page.status
        questions = ViewerQueries(self.page.queries, lambda: status.cameras, lambda reply: _send_json(socket, reply))
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._receive(socket, client, unacknowledged, questions),
                self._send_frames(socket, client),
                self._send_status(socket, unacknowledged),
            )
        ]
        try:
            with nullcontext() if self.page.queries is None else self.page.queries.viewing():
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            questions.close()
            self.page.unsubscribe(client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(
        self, socket: WebSocket, client: WebClient, unacknowledged: list[int], questions: ViewerQueries
    ) -> None:
        """Receive acknowledgements, view changes and questions until the client disconnects or sends invalid data."""
        try:
            while True:
                message = json.loads(await socket.receive_text())
                if "shown" in message:
                    client.acknowledge(str(message["shown"]))
                elif "video" in message:
                    client.set_video(decodes_video=bool(message["video"]) and self._offers_video(socket))
                elif "lost" in message:
                    client.lose(str(message["lost"]))
                elif "small" in message:
                    client.set_view(small=bool(message["small"]), large=str(message["large"]))
                elif not message.keys().isdisjoint(QUESTIONS):
                    await questions.handle(message)
                else:
                    unacknowledged[0] = 0
        except (WebSocketDisconnect, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            client.close()

    async def _send_frames(self, socket: WebSocket, client: WebClient) -> None:
        try:
            while (frame := await client.next()) is not None:
                await socket.send_bytes(frame.packed)
            await socket.close(1001, "the stream has ended")
        except (WebSocketDisconnect, RuntimeError):
            return

    async def _send_status(self, socket: WebSocket, unacknowledged: list[int]) -> None:
        """Send status messages and changed events; pause the status messages while too many are unacknowledged."""
        try:
            events = self.page.events
            own: dict[str, Any] = {"video": self._offers_video(socket), "events": events.access is not None}
            own["starting"] = events.is_starting
            own["act"] = bool(socket.scope["may_act"])
            own["edit"] = refusal_of(self.page, socket.scope) is None
            status = self.page.status
            if socket.query_params.get("only") != "events":
                own["history"] = status.history.records(status.clock(), time.time())
            await _send_json(socket, self._hello | own)
            revision = -1
            while True:
                if own["starting"] and not events.is_starting:  # the sinks of the run are known now
                    own |= {"starting": False, "events": events.access is not None}
                    if "history" in own:
                        own["history"] = status.history.records(status.clock(), time.time())
                    await _send_json(socket, self._hello | own)
                revision = await self._send_events(socket, revision)
                if unacknowledged[0] < _MAX_UNACKNOWLEDGED:
                    unacknowledged[0] += 1
                    await _send_json(socket, {"kind": "status", "unix": time.time()} | self.page.status_message())
                await asyncio.sleep(STATUS_SECONDS)
        except (WebSocketDisconnect, RuntimeError):
            return

    def _offers_video(self, socket: WebSocket) -> bool:
        return self.page.offers_video("" if socket.client is None else socket.client.host)

    async def _send_events(self, socket: WebSocket, revision: int) -> int:
        """Send the events that changed after ``revision``; return the current revision.

        A negative ``revision`` sends nothing: a new page loads the events by HTTP.
        """
        access = self.page.events.access
        if access is None:
            return revision
        if revision < 0:
            return access.feed.revision
        newest, changed = access.feed.since(revision)
        if newest != revision:
            await _send_json(socket, {"kind": "events", "changed": changed or [], "reload": changed is None})
        return newest

    def _unknown(self, camera: str, path: str) -> Response:
        known = ", ".join(self.page.status.cameras) or "none yet"
        text = f"{camera[:80]!r} is not a camera of this run; request {path}, the cameras are: {known}"
        return Response(text, 404, media_type="text/plain")


async def _send_json(socket: WebSocket, value: dict[str, Any]) -> None:
    await socket.send_text(json.dumps(value, allow_nan=False))


def _number(request: Request, name: str, default: float) -> float:
    """Return the query parameter ``name`` as a number, or ``default`` if it is absent.

    Raises:
        ValueError: the value is not a number, or NaN.
    """
    number = float(request.query_params.get(name, default))
    if math.isnan(number):
        raise ValueError(name)
    return number


def _cookie_path(request: Request) -> str:
    """Return the cookie's path, the page's own prefix: a proxy's host may serve other applications, too."""
    return f"{request.scope['prefix']}/"


def cookie_name(access: AccessPolicy) -> str:
    """Return the cookie's name, which contains the port: browsers share cookies between all ports of a host."""
    return f"recipro_page_{access.address.port}"

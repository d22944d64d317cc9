"""HTTP handlers of events: queries, images, clips and viewers' actions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from overlays.events.feed import EventFeed
from overlays.events.query import EventReader
from overlays.events.store import Action, ActionConflict
from overlays.web.body import BodyError, read_body
from overlays.web.event_requests import RequestError, as_csv, read_action, read_choice, read_query
from overlays.web.ranges import bytes_response, file_response
from overlays.web.thread_call import call_in_thread

_MAX_BODY_BYTES: Final = 8192
_ACTION_SECONDS: Final = 5.0
_MAX_QUERIES: Final = 4
"""Maximum number of concurrent queries; further queries wait."""
VIEW_ONLY: Final = "this token is for viewing only: sign out, and sign in with the token of token_file"
NO_EVENTS: Final = "this run keeps no events; add --sink events.sqlite"


class EventAccess(Protocol):
    """The interface of the events sink that the page uses. Any thread may call it."""

    reader: EventReader
    feed: EventFeed

    def submit(self, action: Action) -> Future[dict[str, Any] | None]:
        """Queue an action; the future yields the changed event, or None if the event does not exist."""


@runtime_checkable
class ClipFinder(Protocol):
    """The interface of a clip recorder that the page uses. Any thread may call it."""

    def find_clip(self, camera: str, start_unix: float, end_unix: float) -> Path | None:
        """Return the finished clip that shows a time span (Unix seconds) of a camera; None if there is none."""


@dataclass(slots=True)
class EventState:
    """The events and clips of the page's run."""

    access: EventAccess | None = None
    """The events sink; None if the run stores no events or has not started."""
    is_starting: bool = True
    """True until the run has started and its sinks are known."""
    clips: Sequence[ClipFinder] = ()


class EventHandlers:
    """Handlers of ``/api/events``."""

    def __init__(self, state: Callable[[], EventState]) -> None:
        """Set the function that returns the current events and clips of the page's run."""
        self._state = state
        self._queries = asyncio.Semaphore(_MAX_QUERIES)

    async def events(self, request: Request) -> Response:
        """Return a page of events as JSON or CSV."""
        access = self._access()
        chosen, limit, before_id = read_query(request)
        page = await self._query(lambda: access.reader.page(chosen, limit=limit, before_id=before_id))
        if read_choice(request, "format", ("json", "csv"), "json") == "csv":
            headers = {"Content-Disposition": 'attachment; filename="events.csv"'}
            return Response(as_csv(page.events), media_type="text/csv; charset=utf-8", headers=headers)
        return JSONResponse({"events": page.events, "next": page.next_before, "unix": time.time()})

    async def summary(self, _request: Request) -> Response:
        """Return counts of events, and the cameras, kinds and labels that occur."""
        access = self._access()
        return JSONResponse(await self._query(access.reader.summary))

    async def event(self, request: Request) -> Response:
        """Return one event with its figures, and the name of its clip."""
        event = await self._event(request)
        clip = await self._clip(event)
        return JSONResponse(event | {"clip": None if clip is None else clip.name})

    async def image(self, request: Request) -> Response:
        """Return the image of an event, without or with heat map (``plain`` or ``heat`` in the path)."""
        access, event_id = self._access(), request.path_params["id"]
        kind = request.path_params["kind"]
        if kind not in {"plain", "heat"}:
            raise RequestError(404, f"{kind[:40]!r} is not an image of an event; request plain.jpg or heat.jpg")
        image = await self._query(lambda: access.reader.image(event_id, cast("Any", kind)))
        if image is None:
            raise RequestError(404, "there is no such image: the event was stored without it, or has been deleted")
        return bytes_response(request, image, "image/jpeg", f"{event_id}-{kind}.jpg", f"{event_id}-{len(image)}")

    async def clip(self, request: Request) -> Response:
        """Return the clip that shows an event."""
        clip = await self._clip(await self._event(request))
        if clip is None:
            raise RequestError(404, "no finished clip shows this event; record clips with --sink FOLDER/")
        response = file_response(request, clip, "video/mp4")
        if response is None:
            raise RequestError(
                404, "the clip no longer exists; the oldest clips are deleted to keep their folder within its budget"
            )
        return response

    async def act(self, request: Request) -> Response:
        """Acknowledge, snooze, annotate or reopen an event."""
        access = self._access()
        if not request.scope["may_act"]:
            raise RequestError(403, VIEW_ONLY)
        action = read_action(request.path_params["id"], request.path_params["verb"], await _json_body(request))
        try:
            async with asyncio.timeout(_ACTION_SECONDS):
                event = await asyncio.wrap_future(access.submit(action))
        except ActionConflict as conflict:
            return JSONResponse(conflict.record, 409)
        except OSError as error:  # TimeoutError, too
            why = error.strerror or str(error) or "the writer does not answer"
            raise RequestError(503, f"the event cannot be changed now: {why}") from None
        if event is None:
            raise RequestError(404, "there is no such event; it may have been deleted because of its age")
        return JSONResponse(event)

    def _access(self) -> EventAccess:
        access = self._state().access
        if access is None and self._state().is_starting:
            raise RequestError(503, "the run is starting; its events can be read in a moment")
        if access is None:
            raise RequestError(404, NO_EVENTS)
        return access

    async def _query(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - as the call
        """Run a query in a thread and return its result; raises ``RequestError`` (503) if the file cannot be read."""
        try:
            async with self._queries:
                return await call_in_thread("events", call)
        except OSError as error:
            raise RequestError(503, f"the events cannot be read: {error.strerror or error}") from None

    async def _event(self, request: Request) -> dict[str, Any]:
        access, event_id = self._access(), request.path_params["id"]
        event = await self._query(lambda: access.reader.event(event_id))
        if event is None:
            raise RequestError(404, "there is no such event; it may have been deleted because of its age")
        return cast("dict[str, Any]", event)

    async def _clip(self, event: Mapping[str, Any]) -> Path | None:
        clips = self._state().clips
        end = time.time() if event["end"] is None else event["end"]
        if not clips:
            return None

        def find() -> Path | None:
            found = (finder.find_clip(event["camera"], event["start"], end) for finder in clips)
            return next((path for path in found if path is not None), None)

        return cast("Path | None", await self._query(find))


async def _json_body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await read_body(request, _MAX_BODY_BYTES) or b"{}")
    except BodyError as error:
        raise RequestError(error.status, str(error)) from None
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError(400, 'the body is not an object; send for instance {"by": "Ada"}')
    return body

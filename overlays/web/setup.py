"""HTTP handlers of the set-up of cameras: read, change, undo, and check a rule while the user types it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from overlays.web.body import BodyError, read_body
from overlays.web.event_requests import RequestError
from overlays.web.state import WebState
from overlays.web.thread_call import call_in_thread
from pipeline.camera_setup import CameraSetup
from pipeline.errors import ReciproStreamError, SetupConflictError

MAX_BODY_BYTES: Final = 1 << 18
NOT_HERE: Final = (
    "this page cannot change cameras: start the run with --page-edit (edit: true in the page's configuration)"
)
VIEWER: Final = "this token is for viewing only: sign out, and sign in with the token of edit_token_file"
IN_CLEAR: Final = (
    "changes from other machines need HTTPS: open the page through its proxy with TLS, or through ssh -L; "
    "insecure: true allows them without"
)


def refusal_of(page: WebState, scope: Scope) -> str | None:
    """Return the reason why a client may not change the set-up of cameras; None if it may."""
    if page.setup is None:
        return NOT_HERE
    if not scope.get("may_edit"):
        return VIEWER
    return None if scope.get("is_private") or page.edits_in_clear else IN_CLEAR


class SetupHandlers:
    """Handlers of ``/api/cameras/NAME/setup`` and ``/api/rules/check``."""

    def __init__(self, page: WebState) -> None:
        """Set the state of the page."""
        self._page = page
        self._turn = asyncio.Semaphore(1)
        """Permits one rule check at a time, because a check takes processor time from the cameras."""

    async def setup(self, request: Request) -> Response:
        """Return the set-up of a camera (GET), or change it (PUT)."""
        setup, camera = self._setup(request), request.path_params["camera"]
        if request.method != "PUT":
            return await _answer(lambda: setup.read(camera))
        wanted = await _body(request)
        return await _answer(lambda: setup.change(camera, wanted))

    async def undo(self, request: Request) -> Response:
        """Undo the last change of a camera's set-up."""
        setup, camera = self._setup(request), request.path_params["camera"]
        revision = str((await _body(request)).get("revision", ""))
        return await _answer(lambda: setup.undo(camera, revision))

    async def apply_file(self, request: Request) -> Response:
        """Apply the configuration file after another program has changed it."""
        setup, camera = self._setup(request), request.path_params["camera"]
        revision = str((await _body(request)).get("file_revision", ""))
        return await _answer(lambda: setup.apply_file(camera, revision))

    async def check(self, request: Request) -> Response:
        """Check a rule: return its error, or the times at which it would have fired."""
        setup, body = self._setup(request), await _body(request)
        camera, rule, regions = body.get("camera"), body.get("rule"), body.get("regions", [])
        is_listed = isinstance(regions, list) and all(isinstance(region, dict) for region in regions)
        if not isinstance(camera, str) or not isinstance(rule, dict) or not is_listed:
            raise RequestError(400, 'send {"camera": NAME, "rule": {"rule": TEXT, ...}, "regions": [...]}')
        async with self._turn:
            return await _answer(lambda: setup.check(camera, rule, regions))

    def _setup(self, request: Request) -> CameraSetup:
        refusal = refusal_of(self._page, request.scope)
        setup = self._page.setup
        if refusal is not None or setup is None:
            raise RequestError(403, refusal or NOT_HERE)
        if request.method != "POST" and request.path_params["camera"] not in self._page.status.cameras:
            raise RequestError(404, f"{request.path_params['camera'][:80]!r} is not a camera of this run")
        return setup


async def _answer(call: Callable[[], Mapping[str, Any]]) -> Response:
    try:
        return JSONResponse(await call_in_thread("setup", call))
    except SetupConflictError as error:
        conflict = {"error": str(error), "difference": error.difference, "file_revision": error.file_revision}
        return JSONResponse(conflict, 409)
    except (ReciproStreamError, OSError) as error:
        return JSONResponse({"error": str(error)}, 422)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await read_body(request, MAX_BODY_BYTES) or b"{}")
    except BodyError as error:
        raise RequestError(error.status, str(error)) from None
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError(400, "the body is not an object")
    return body

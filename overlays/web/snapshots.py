"""HTTP responses with the newest frame of a camera, optionally with heat map, boxes and regions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from overlays.events.evidence import draw
from overlays.render.jpeg import bounded_image, encode_image
from overlays.web.state import WebState
from overlays.web.thread_call import call_in_thread
from pipeline.errors import WireError
from pipeline.frames import Overlay


async def snapshot_response(page: WebState, request: Request, camera: str) -> Response:
    """Return the newest frame of a camera as JPEG; ``?heat=1`` draws the heat map, ``?boxes=1`` the boxes.

    If the camera has no signal, the status is 503, so that clients do not mistake its last frame for a live one. With
    ``?stale=1`` the response is that frame in grey, with the duration of the signal loss.
    """
    options = {name: request.query_params.get(name, "0") for name in ("heat", "boxes", "stale")}
    wrong = next((name for name, value in options.items() if value not in {"0", "1"}), None)
    if wrong is not None:
        return Response(f"{wrong}: 0 or 1", 400, media_type="text/plain")
    overlay = page.newest(camera)
    is_silent = next((each["silent"] for each in page.status.snapshot() if each["camera"] == camera), True)
    if overlay is None:
        return Response("no image of this camera yet", 503, media_type="text/plain", headers={"Retry-After": "1"})
    if is_silent and options["stale"] == "0":
        text = "the camera gives no frames; ?stale=1 returns its last one, in grey"
        return Response(text, 503, media_type="text/plain", headers={"Retry-After": "1"})
    try:
        jpeg = await call_in_thread("snapshot", lambda: _encoded(page, overlay, options))
    except WireError as error:
        return Response(str(error), 503, media_type="text/plain")
    return Response(jpeg, media_type="image/jpeg")


def _encoded(page: WebState, overlay: Overlay, options: dict[str, str]) -> bytes:
    if overlay.signal_loss is not None:
        return encode_image(bounded_image(overlay.image))
    heat, boxes = options["heat"] == "1", options["boxes"] == "1"
    image = overlay.explanation.frame.image
    if heat or boxes:
        image = draw(overlay.explanation, page.style.colormap, page.style.opacity, heat=heat, boxes=boxes)
    return encode_image(bounded_image(image))

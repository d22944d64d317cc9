"""HTTP responses with a clip of the last 30 s, made on request."""

from __future__ import annotations

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from overlays.web.clip import RenderStyle, make_clip_async
from overlays.web.ranges import bytes_response
from overlays.web.state import Clip, WebState

_REUSE_SECONDS: Final = 20.0
"""Maximum time since the last request of a clip for further ranges of the same clip, in seconds."""


async def clip_response(page: WebState, request: Request, camera: str, opacity: float) -> Response:
    """Return the clip of a camera, or the requested range of it.

    A request without a range makes a new clip. Later requests for ranges are answered from the same clip.
    """
    now = time.monotonic()
    clip, header = page.clip, request.headers.get("range")
    known = clip is not None and (clip.camera, clip.opacity) == (camera, opacity)
    is_whole = header is None and request.method != "HEAD"
    if clip is None or not known or now - clip.used_at > _REUSE_SECONDS or is_whole:
        packets = page.packets.packets(camera)
        if not packets:
            text = "no images of this camera yet: images are kept while the page or a stream is viewed"
            return Response(text, 404, media_type="text/plain")
        if page.making_clip:
            text = "another clip is being made; try again"
            return Response(text, 503, media_type="text/plain", headers={"Retry-After": "3"})
        page.making_clip = True
        try:
            content = await make_clip_async(
                camera, packets, RenderStyle(page.style.colormap, opacity), page.stopped.is_set
            )
        finally:
            page.making_clip = False
        if not content:
            return Response("the clip could not be made; see the log", 500, media_type="text/plain")
        clip = page.clip = Clip(camera, opacity, content, time.monotonic())
    clip.used_at = now
    return _response(clip, request)


def _response(clip: Clip, request: Request) -> Response:
    return bytes_response(request, clip.packed, "video/mp4", f"{clip.camera}.mp4", clip.tag, is_attachment=True)

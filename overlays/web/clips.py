"""HTTP responses with clips: made on request, and sent in ranges to players that request ranges (RFC 9110)."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from overlays.web.clip import RenderStyle, make_clip_async
from overlays.web.state import Clip, WebState

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)
_REUSE_SECONDS: Final = 20.0
"""A range is taken from the existing clip if that was last requested at most this long ago."""
_CHUNK_BYTES: Final = 64 << 10


def requested_range(header: str | None, size: int) -> range | None:
    """Return the bytes that a Range header requests; None for all of them.

    Several ranges and other units are answered with everything, as RFC 9110 allows.

    Raises:
        ValueError: none of the requested bytes exist.
    """
    match = None if header is None else _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
        if not int(last):
            raise ValueError(header)
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise ValueError(header)
    return range(start, stop)


async def clip_response(page: WebState, request: Request, camera: str, opacity: float) -> Response:
    """Return a camera's clip, or the requested range of it; all ranges come from the same clip."""
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
            content = await make_clip_async(packets, RenderStyle(page.style.colormap, opacity), page.stopped.is_set)
        finally:
            page.making_clip = False
        if not content:
            return Response("the clip could not be made; see the log", 500, media_type="text/plain")
        clip = page.clip = Clip(camera, opacity, content, time.monotonic())
    clip.used_at = now
    return _response(clip, request)


def _response(clip: Clip, request: Request) -> Response:
    size, tag = len(clip.packed), f'"{clip.tag}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(clip.camera, safe='')}.mp4",
    }
    header = request.headers.get("range")
    if request.headers.get("if-range", tag) != tag:
        header = None  # the client has a part of another clip
    try:
        part = requested_range(header, size)
    except ValueError:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    status, sent = 200, range(size)
    if part is not None:
        status, sent = 206, part
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    headers["Content-Length"] = str(len(sent))
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="video/mp4")
    return StreamingResponse(_chunks(clip.packed, sent), status, headers=headers, media_type="video/mp4")


async def _chunks(packed: bytes, part: range) -> AsyncIterator[bytes]:
    """Yield a range in chunks, so that each is produced after the one before has been sent."""
    for start in range(part.start, part.stop, _CHUNK_BYTES):
        yield packed[start : min(start + _CHUNK_BYTES, part.stop)]

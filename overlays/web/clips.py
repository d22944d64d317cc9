"""The page's answers about clips: made on demand, and sent in pieces to players that ask for pieces (RFC 9110)."""

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
_KEPT_SECONDS: Final = 20.0
"""How long after it was last asked for a piece of a clip still comes from the same clip."""
_PIECE_BYTES: Final = 64 << 10


def asked_range(header: str | None, size: int) -> range | None:
    """Return the bytes that a Range header asks for; None for all of them.

    Several ranges and other units are answered with everything, as the RFC allows.

    Raises:
        ValueError: none of these bytes exist.
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


async def clip_answer(page: WebState, request: Request, camera: str, opacity: float) -> Response:
    """Return a camera's clip, or the piece of it that is asked for; the same clip for all its pieces."""
    now = time.monotonic()
    clip, header = page.clip, request.headers.get("range")
    known = clip is not None and (clip.camera, clip.opacity) == (camera, opacity)
    if clip is None or not known or now - clip.used_at > _KEPT_SECONDS or (header is None and request.method != "HEAD"):
        packets = page.packets.packets(camera)
        if not packets:
            said = "nothing is kept of it yet: pictures are kept while somebody looks on"
            return Response(said, 404, media_type="text/plain")
        if page.making:
            said = "another clip is being made; ask again"
            return Response(said, 503, media_type="text/plain", headers={"Retry-After": "3"})
        page.making = True
        try:
            made = await make_clip_async(packets, RenderStyle(page.style.colormap, opacity), page.stopped.is_set)
        finally:
            page.making = False
        if not made:
            return Response("the clip could not be made; the log says why", 500, media_type="text/plain")
        clip = page.clip = Clip(camera, opacity, made, time.monotonic())
    clip.used_at = now
    return _sent(clip, request)


def _sent(clip: Clip, request: Request) -> Response:
    size, tag = len(clip.packed), f'"{clip.tag}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(clip.camera, safe='')}.mp4",
    }
    wanted = request.headers.get("range")
    if request.headers.get("if-range", tag) != tag:
        wanted = None  # it goes on from another clip
    try:
        part = asked_range(wanted, size)
    except ValueError:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    status, sent = 200, range(size)
    if part is not None:
        status, sent = 206, part
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    headers["Content-Length"] = str(len(sent))
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="video/mp4")
    return StreamingResponse(_pieces(clip.packed, sent), status, headers=headers, media_type="video/mp4")


async def _pieces(packed: bytes, part: range) -> AsyncIterator[bytes]:
    """Give it piece by piece: the next one once the last has left."""
    for start in range(part.start, part.stop, _PIECE_BYTES):
        yield packed[start : min(start + _PIECE_BYTES, part.stop)]

"""Answers of cameras on the web, and the frames read from them."""

from __future__ import annotations

import threading

import cv2
import numpy as np

from stream.sources import build_source
from tests.support.limits import WAITS

ONCE = {**WAITS, "attempts": 1}


def jpeg(brightness, size=(48, 64)):
    return cv2.imencode(".jpg", np.full((*size, 3), brightness, np.uint8))[1].tobytes()


def send(request, content, kind="application/octet-stream", *, code=200, length=True, headers=()):
    request.send_response(code)
    request.send_header("Content-Type", kind)
    for key, value in headers:
        request.send_header(key, value)
    if length:
        request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def read(url, count=None, **options):
    """Return the frames of a source, ``count`` of them or all, and the source."""
    stop, frames = threading.Event(), []
    with build_source(url, **{**ONCE, **options}) as source:
        for frame in source.frames(stop):
            frames.append(frame)
            if len(frames) == count:
                stop.set()
    return frames, source


def greys(frames):
    """The numbers of the pictures of a made clip."""
    return [round((frame.image.mean() - 16) / 8) for frame in frames]


def playlist(names, *, first=0, end=True, before=None, head=""):
    """Return a playlist; ``before`` maps names of segments to the tags before them."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{first}", head]
    for name in names:
        lines += [(before or {}).get(name, ""), "#EXTINF:1.0,", name]
    return "\n".join([*lines, "#EXT-X-ENDLIST" if end else ""]).encode()

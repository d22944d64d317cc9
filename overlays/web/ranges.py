"""HTTP responses with bytes or files, with support for range requests (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)
_CHUNK_BYTES: Final = 64 << 10


def requested_range(header: str | None, size: int) -> range | None:
    """Return the byte range that a Range header requests; None for the whole content.

    Args:
        header: the Range header. Several ranges, other units and invalid text request the whole content (RFC 9110).
        size: length of the content in bytes.

    Raises:
        ValueError: the content has none of the requested bytes.
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


def bytes_response(
    request: Request, content: bytes, media_type: str, name: str, tag: str, *, is_attachment: bool = False
) -> Response:
    """Return a response with ``content``, or with the range of it that the request asks for.

    Args:
        request: the request, whose Range and If-Range headers are used.
        content: the whole content.
        media_type: media type of the content.
        name: file name for browsers that save the content.
        tag: entity tag, which must differ for different content.
        is_attachment: True if browsers should save the content instead of showing it.
    """
    headers = _headers(name, tag, is_attachment=is_attachment)
    return _ranged(request, headers, media_type, len(content), lambda part: _chunks(content, part))


def file_response(request: Request, path: Path, media_type: str) -> Response | None:
    """Return a response with a file, or with the requested range of it; None if the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    tag = f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
    headers = _headers(path.name, tag, is_attachment=True)
    return _ranged(request, headers, media_type, status.st_size, lambda part: _file_chunks(path, part))


def _headers(name: str, tag: str, *, is_attachment: bool) -> dict[str, str]:
    kind = "attachment" if is_attachment else "inline"
    disposition = f"{kind}; filename*=UTF-8''{quote(name, safe='')}"
    return {"Accept-Ranges": "bytes", "ETag": f'"{tag}"', "Content-Disposition": disposition}


def _ranged(
    request: Request,
    headers: dict[str, str],
    media_type: str,
    size: int,
    chunks: Callable[[range], AsyncIterator[bytes]],
) -> Response:
    header, tag = request.headers.get("range"), headers["ETag"]
    if request.headers.get("if-range", tag) != tag:
        header = None  # the client's earlier part belongs to other content
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
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(chunks(sent), status, headers=headers, media_type=media_type)


async def _chunks(packed: bytes, part: range) -> AsyncIterator[bytes]:
    """Yield a range of ``packed`` in chunks, so that the server buffers only one chunk."""
    for start in range(part.start, part.stop, _CHUNK_BYTES):
        yield packed[start : min(start + _CHUNK_BYTES, part.stop)]


async def _file_chunks(path: Path, part: range) -> AsyncIterator[bytes]:
    """Yield a range of a file in chunks."""
    with path.open("rb") as file:
        file.seek(part.start)
        for start in range(part.start, part.stop, _CHUNK_BYTES):
            yield file.read(min(_CHUNK_BYTES, part.stop - start))

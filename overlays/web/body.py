"""Reads the body of a request within a limit of size and time."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request

_SECONDS: Final = 5.0


class BodyError(Exception):
    """The body of a request is too long, or arrives too slowly. ``status`` is the HTTP status of the response."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request.

    Raises:
        BodyError: the body exceeds ``max_bytes`` (413) or takes more than 5 s (408).
    """
    body = b""
    try:
        async with asyncio.timeout(_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise BodyError(413, f"the body is too long; at most {max_bytes} bytes are accepted")
    except TimeoutError:
        raise BodyError(408, f"the body did not arrive within {_SECONDS:g} s") from None
    return body

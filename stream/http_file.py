"""A recording behind a web address, read like a file: by ranges where the server knows them."""

from __future__ import annotations

import io
import threading
from typing import Final

from stream.attempt import Attempt
from stream.http_client import Response, WebClient

_RESUMES: Final = 5  # a server that breaks off so often without a byte between has given up
_PAUSE_SECONDS: Final = 0.2


class WebFile:
    """A file whose bytes stand behind ``url``. A broken connection is taken up again where it broke."""

    def __init__(self, client: WebClient, url: str, *, answer_seconds: float, read_seconds: float,
                 stop: threading.Event) -> None:  # fmt: skip
        """Open it. Raises ``FailureError`` and ``OSError`` where that cannot be done."""
        self._client = client
        self._url = url
        self._answer_seconds = answer_seconds
        self._read_seconds = read_seconds
        self._stop = stop
        self._at = 0
        self._attempt, response = self._ask(0)
        self._response: Response | None = response
        self._by_ranges = response.status == 206
        told = (response.headers.get("Content-Range") or "").rpartition("/")[2]
        self._size = int(told) if self._by_ranges and told.isdecimal() else response.length

    def seekable(self) -> bool:
        """Whether the server knows ranges and says how long the recording is."""
        return self._by_ranges and self._size is not None

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place; asks nobody yet. FFmpeg takes -1 for a place that cannot be had."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            return -1
        if base + offset != self._at:
            self._at = base + offset
            self._drop()
        return self._at

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end, and where no more can be had."""
        for resume in range(_RESUMES):
            if self._stop.is_set() or (self._size is not None and self._at >= self._size):
                return b""
            try:
                if self._response is None:
                    self._attempt, self._response = self._ask(self._at)
                self._attempt.heard()
                if part := self._response.read(size):
                    self._at += len(part)
                    return part
            except OSError:
                pass
            self._drop()
            if self._size is None or (self._at and not self._by_ranges):
                return b""
            self._stop.wait(_PAUSE_SECONDS * resume)
        return b""

    def close(self) -> None:
        """Close the connection."""
        self._drop()

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _ask(self, start: int) -> tuple[Attempt, Response]:
        attempt = Attempt(self._answer_seconds, self._read_seconds, self._stop)
        response = self._client.get(self._url, attempt, headers={"Range": f"bytes={start}-"})
        if start and response.status != 206:
            response.close()
            raise OSError("the server serves no ranges any more")
        return attempt, response

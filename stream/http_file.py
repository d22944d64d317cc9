"""A recording behind a web address, read like a file: by ranges where the server knows them."""

from __future__ import annotations

import io
import tempfile
import threading
from typing import Final

from stream.attempt import Attempt
from stream.failures import Failure, FailureError
from stream.http_client import Response, WebClient

_RESUMES: Final = 5  # a server that breaks off so often without a byte between has given up
_PAUSE_SECONDS: Final = 0.2
_HEAD_BYTES: Final = 4096
_MAX_SPOOLED_BYTES: Final = 4 << 30
_READ_BYTES: Final = 1 << 18
_MAX_IN_MEMORY_BYTES: Final = 16 << 20


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
        self._spool: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._spooled = 0
        try:
            if not self.seekable() and ends_with_its_index(response.peek(_HEAD_BYTES)):
                self._begin_spool()
        except BaseException:
            self.close()
            raise

    def _begin_spool(self) -> None:
        """Keep what is read in a temporary file: the beginning can only be read after the end."""
        if self._size is None or self._size > _MAX_SPOOLED_BYTES:
            words = (
                "its index stands at its end and the server serves no ranges of it: fetch the file, then give its path"
            )
            raise FailureError(Failure(words, "never", "refused", hint=""))
        self._spool = tempfile.SpooledTemporaryFile(max_size=_MAX_IN_MEMORY_BYTES)  # noqa: SIM115 - close() does

    def seekable(self) -> bool:
        """Whether any place can be read: by ranges of a known length, or from what is kept of it."""
        return (self._by_ranges and self._size is not None) or self._spool is not None

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
            if self._spool is None:
                self._drop()
        return self._at

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end, and where no more can be had."""
        if self._spool is not None:
            return self._read_spool(self._spool, size)
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
        """Close the connection, and remove what was kept."""
        self._drop()
        if self._spool is not None:
            self._spool.close()

    def _read_spool(self, spool: tempfile.SpooledTemporaryFile[bytes], size: int) -> bytes:
        spool.seek(self._spooled)
        while self._response is not None and self._spooled < self._at + size and not self._stop.is_set():
            self._attempt.heard()
            try:
                part = self._response.read(_READ_BYTES)
            except OSError:
                part = b""
            if not part:
                self._drop()
                break
            try:
                spool.write(part)
            except OSError as error:
                words = f"no room to keep it while it is read ({error.strerror}): fetch the file, then give its path"
                raise FailureError(Failure(words, "slow", "refused", hint="")) from None
            self._spooled += len(part)
        spool.seek(self._at)
        part = spool.read(size)
        self._at += len(part)
        return part

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


def ends_with_its_index(head: bytes) -> bool:
    """Return whether ``head`` begins an MP4 or QuickTime file whose pictures stand before the index that tells them."""
    at = 0
    while len(head) >= at + 16:
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if kind not in {b"ftyp", b"free", b"skip", b"wide", b"uuid", b"mdat"}:
            return False
        if kind == b"mdat":
            return True
        at += size if size >= 8 else len(head)
    return False

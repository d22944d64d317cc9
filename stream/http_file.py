"""Reads a remote recording over HTTP like a local file."""

from __future__ import annotations

import io
import tempfile
import threading
from typing import Final

from stream.attempt import Attempt
from stream.failures import Failure, FailureError
from stream.http_client import Response, WebClient

_MAX_RESUMES: Final = 5  # in a row, without data in between
_PAUSE_SECONDS: Final = 0.2
_HEAD_BYTES: Final = 4096
_MAX_SPOOLED_BYTES: Final = 4 << 30
_READ_BYTES: Final = 1 << 18
_MAX_IN_MEMORY_BYTES: Final = 16 << 20


class WebFile:
    """A file at an HTTP address; reading resumes after a lost connection."""

    def __init__(self, client: WebClient, url: str, *, answer_seconds: float, read_seconds: float,
                 stop: threading.Event) -> None:  # fmt: skip
        """Open ``url``; raises ``OSError`` if it cannot be opened."""
        self._client = client
        self._url = url
        self._answer_seconds = answer_seconds
        self._read_seconds = read_seconds
        self._stop = stop
        self._position = 0
        self._attempt, response = self._request(0)
        self._response: Response | None = response
        self._has_ranges = response.status == 206
        total = (response.headers.get("Content-Range") or "").rpartition("/")[2]
        self._size = int(total) if self._has_ranges and total.isdecimal() else response.length
        self._spool: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._spooled = 0
        try:
            if not self.seekable() and ends_with_its_index(response.peek(_HEAD_BYTES)):
                self._start_spool()
        except BaseException:
            self.close()
            raise

    def _start_spool(self) -> None:
        """Copy the data to a temporary file, because the demuxer reads the end first."""
        if self._size is None or self._size > _MAX_SPOOLED_BYTES:
            message = (
                "its index is at the end of the file, and the server does not support range requests: download the "
                "file, then use its path"
            )
            raise FailureError(Failure(message, "never", "refused", hint=""))
        self._spool = tempfile.SpooledTemporaryFile(max_size=_MAX_IN_MEMORY_BYTES)  # noqa: SIM115 - close() closes it

    def seekable(self) -> bool:
        """Return whether ``seek`` works: by Range requests, or in the temporary copy."""
        return (self._has_ranges and self._size is not None) or self._spool is not None

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it; return -1 for an invalid position, as FFmpeg expects."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            return -1
        if base + offset != self._position:
            self._position = base + offset
            if self._spool is None:
                self._drop()
        return self._position

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; ``b""`` at the end."""
        if self._spool is not None:
            return self._read_spool(self._spool, size)
        for resume in range(_MAX_RESUMES):
            if self._stop.is_set() or (self._size is not None and self._position >= self._size):
                return b""
            try:
                if self._response is None:
                    self._attempt, self._response = self._request(self._position)
                self._attempt.record_data()
                if part := self._response.read(size):
                    self._position += len(part)
                    return part
            except OSError:
                pass
            self._drop()
            if self._size is None or (self._position and not self._has_ranges):
                return b""
            self._stop.wait(_PAUSE_SECONDS * resume)
        return b""

    def close(self) -> None:
        """Close the connection, and delete the temporary file."""
        self._drop()
        if self._spool is not None:
            self._spool.close()

    def _read_spool(self, spool: tempfile.SpooledTemporaryFile[bytes], size: int) -> bytes:
        spool.seek(self._spooled)
        while self._response is not None and self._spooled < self._position + size and not self._stop.is_set():
            self._attempt.record_data()
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
                message = (
                    f"its temporary copy cannot be written ({error.strerror}): download the file, then use its path"
                )
                raise FailureError(Failure(message, "slow", "refused", hint="")) from None
            self._spooled += len(part)
        spool.seek(self._position)
        part = spool.read(size)
        self._position += len(part)
        return part

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _request(self, start: int) -> tuple[Attempt, Response]:
        attempt = Attempt(self._answer_seconds, self._read_seconds, self._stop)
        response = self._client.get(self._url, attempt, headers={"Range": f"bytes={start}-"})
        if start and response.status != 206:
            response.close()
            raise OSError("the server no longer supports range requests")
        return attempt, response


def ends_with_its_index(head: bytes) -> bool:
    """Return whether the index of an MP4 file is at its end; ``head`` is the start of the file."""
    offset = 0
    while len(head) >= offset + 16:
        size, kind = int.from_bytes(head[offset : offset + 4], "big"), head[offset + 4 : offset + 8]
        if kind not in {b"ftyp", b"free", b"skip", b"wide", b"uuid", b"mdat"}:
            return False
        if kind == b"mdat":
            return True
        offset += size if size >= 8 else len(head)
    return False

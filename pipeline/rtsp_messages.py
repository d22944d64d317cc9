"""Parses and writes RTSP messages (RFC 2326), and the interleaved packets between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_MAX_HEAD_BYTES: Final = 1 << 16
_MAX_BODY_BYTES: Final = 1 << 20
_END: Final = re.compile(rb"\r?\n\r*\n")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class RtspMessageError(OSError):
    """A received RTSP message exceeds the size limits."""


@dataclass(frozen=True, slots=True)
class Message:
    """An RTSP request or response."""

    start: str
    """The first line."""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def status(self) -> int | None:
        """The status code of a response; None for a request."""
        match = re.match(r"RTSP/\d\.\d +(\d{3})\b", self.start)
        return int(match[1]) if match else None

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.start.partition(" ")[0].upper()

    @property
    def target(self) -> str:
        """The URI of a request."""
        return self.start.partition(" ")[2].rpartition(" ")[0].strip()

    def get_all(self, name: str) -> list[str]:
        """Return the values of a header; ``name`` in lower case."""
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: str) -> str:
        """Return the first value of a header, or an empty string."""
        return next(iter(self.get_all(name)), "")

    def replaced(self, *, without: frozenset[str] = frozenset(), **values: str) -> tuple[tuple[str, str], ...]:
        """Return the headers with those of ``values`` replaced or added, and those of ``without`` removed."""
        left_out = without | {name.lower() for name in values}
        kept = tuple((name, value) for name, value in self.headers if name.lower() not in left_out)
        return (*((name, value) for name, value in values.items() if value), *kept)

    def encode(self) -> bytes:
        """Return the message as bytes; control characters are removed from the first line and the headers."""
        headers = [(name, value) for name, value in self.headers if name.lower() != "content-length"]
        if self.body:
            headers.append(("Content-Length", str(len(self.body))))
        lines = [self.start, *(f"{name}: {value}" for name, value in headers)]
        head = "\r\n".join(_CONTROL.sub("", line) for line in lines)
        return head.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + self.body


class MessageReader:
    """Splits received bytes into messages and interleaved packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self._buffer += data

    def next(self) -> Message | bytes | None:
        """Return the next message, or the next packet as bytes; None if it is incomplete.

        Raises:
            RtspMessageError: a message exceeds the limits.
        """
        while self._buffer.startswith((b"\r", b"\n")):
            del self._buffer[:1]
        if self._buffer.startswith(b"$"):
            end = 4 + int.from_bytes(self._buffer[2:4], "big")
            return self._take(end) if 4 <= len(self._buffer) >= end else None
        match = _END.search(self._buffer)
        if match is None or match.start() > _MAX_HEAD_BYTES:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise _too_large("header")
            return None
        message = _parsed(bytes(self._buffer[: match.start()]))
        length = message.get("content-length")
        size = int(length) if re.fullmatch(r"[0-9]{1,7}", length) else 0
        if size > _MAX_BODY_BYTES or len(length) > len(str(_MAX_BODY_BYTES)):
            raise _too_large("message")
        if len(self._buffer) < match.end() + size:
            return None
        body = bytes(self._buffer[match.end() : match.end() + size])
        del self._buffer[: match.end() + size]
        return Message(message.start, message.headers, body)

    def rest(self) -> bytes:
        """Return and remove all bytes that have not been returned yet."""
        return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        return part


def _parsed(head: bytes) -> Message:
    lines = head.decode("utf-8", "surrogateescape").replace("\r", "").split("\n")
    pairs = (line.partition(":") for line in lines[1:])
    headers = ((name.strip(), value.strip()) for name, _, value in pairs if _NAME.fullmatch(name.strip()))
    return Message(lines[0].strip(), tuple(headers))


def _too_large(part: str) -> RtspMessageError:
    return RtspMessageError(f"it sends an RTSP {part} that is too large")

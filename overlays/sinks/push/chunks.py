"""Converts RTMP messages to chunks and back (Adobe, "Real-Time Messaging Protocol", 1.0, section 5.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

_FIRST_CHUNK_BYTES: Final = 128
"""The size of chunks until a peer sets another size."""
_EXTENDED: Final = 0xFFFFFF
_MAX_MESSAGE_BYTES: Final = 1 << 20
_SET_CHUNK_SIZE: Final = 1
_HEADER_BYTES: Final = (11, 7, 3, 0)
"""Bytes of a message header, by the format of the chunk."""


class ChunkError(OSError):
    """The bytes of a server are not valid RTMP."""


@dataclass(frozen=True, slots=True)
class RtmpMessage:
    """One RTMP message."""

    kind: int
    """Message type: 1 to 6 are controls, 9 is video, 18 and 20 are AMF0 data and commands."""
    payload: bytes
    stream: int = 0
    milliseconds: int = 0


def to_chunks(message: RtmpMessage, chunk_stream: int, chunk_bytes: int) -> bytes:
    """Return a message as chunks.

    Args:
        message: the message.
        chunk_stream: number of the chunk stream, 3 to 63.
        chunk_bytes: maximum size of a chunk in bytes.
    """
    stamp = message.milliseconds & 0xFFFFFFFF
    extended = struct.pack(">I", stamp) if stamp >= _EXTENDED else b""
    header = min(stamp, _EXTENDED).to_bytes(3, "big") + len(message.payload).to_bytes(3, "big")
    header += bytes((message.kind,)) + message.stream.to_bytes(4, "little")
    data = bytearray(bytes((chunk_stream,)) + header + extended + message.payload[:chunk_bytes])
    for offset in range(chunk_bytes, len(message.payload), chunk_bytes):
        data += bytes((3 << 6 | chunk_stream,)) + extended + message.payload[offset : offset + chunk_bytes]
    return bytes(data)


@dataclass(slots=True)
class _ChunkStream:
    length: int = 0
    kind: int = 0
    stream: int = 0
    is_extended: bool = False
    payload: bytearray = field(default_factory=bytearray)


class ChunkReader:
    """Joins received chunks to messages; the time stamps of received messages are ignored."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._chunk_bytes = _FIRST_CHUNK_BYTES
        self._streams: dict[int, _ChunkStream] = {}

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self._buffer += data

    def next(self) -> RtmpMessage | None:
        """Return the next message; None if it is incomplete. Raises ``ChunkError``."""
        while True:
            number, stream, end = self._header()
            if stream is None:
                return None
            size = min(self._chunk_bytes, stream.length - len(stream.payload))
            if len(self._buffer) < end + size:
                return None
            stream.payload += self._buffer[end : end + size]
            del self._buffer[: end + size]
            self._streams[number] = stream
            if len(stream.payload) >= stream.length:
                message = RtmpMessage(stream.kind, bytes(stream.payload), stream.stream)
                stream.payload = bytearray()
                self._set_chunk_size(message)
                return message

    def _header(self) -> tuple[int, _ChunkStream | None, int]:
        """Return the chunk stream's number, its state (None if incomplete), and the end of the next header."""
        if not self._buffer:
            return 0, None, 0
        form, number = self._buffer[0] >> 6, self._buffer[0] & 63
        begin = 1 + (number == 0) + 2 * (number == 1)
        if number < 2:
            number = 64 + int.from_bytes(self._buffer[1:begin], "little")
        end = begin + _HEADER_BYTES[form]
        if len(self._buffer) < end:
            return number, None, 0
        before = self._streams.get(number)
        if before is None and form:
            raise ChunkError("the server does not speak RTMP")
        stream = before or _ChunkStream()
        head = bytes(self._buffer[begin:end])
        fresh = _ChunkStream(stream.length, stream.kind, stream.stream, stream.is_extended, stream.payload)
        if form < 3:
            fresh.is_extended = int.from_bytes(head[:3], "big") == _EXTENDED
        if form < 2:
            fresh.length, fresh.kind = int.from_bytes(head[3:6], "big"), head[6]
        if form < 1:
            fresh.stream = int.from_bytes(head[7:11], "little")
        if fresh.length > _MAX_MESSAGE_BYTES:
            raise ChunkError(
                f"the server sends a message of {fresh.length} bytes; at most {_MAX_MESSAGE_BYTES} are accepted"
            )
        end += 4 if fresh.is_extended else 0
        return number, fresh, end

    def _set_chunk_size(self, message: RtmpMessage) -> None:
        if message.kind == _SET_CHUNK_SIZE:
            size = int.from_bytes(message.payload[:4], "big")
            if not 0 < size < 1 << 24:
                raise ChunkError(f"the server sets a chunk size of {size} bytes; RTMP allows 1 to 16777215")
            self._chunk_bytes = size

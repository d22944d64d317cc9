"""Reader of ROS 1 bags, format 2.0 (http://wiki.ros.org/Bags/Format/2.0). It does not need their index.

A recorder writes the index at the end, so a bag that was cut off has none.
"""

from __future__ import annotations

import bz2
import io
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

import lz4.frame

from stream.bags.container import MAX_RECORD_BYTES, BagDamageError, BagMessage, BagReader, Topic

_MAGIC: Final = b"#ROSBAG V2.0\n"
_MESSAGE: Final = 0x02
_CHUNK: Final = 0x05
_CONNECTION: Final = 0x07
_MAX_HEADER_BYTES: Final = 1 << 24
_RECOVER: Final = "try `rosbag reindex FILE.bag`"


class _Record(NamedTuple):
    kind: int
    fields: dict[bytes, bytes]
    data: bytes


class Ros1Bag(BagReader):
    """Reads ``*.bag`` and ``*.bag.active`` files, chunk by chunk."""

    def topics(self) -> list[Topic]:
        """Return the topics of all connections in the file."""
        found: dict[str, Topic] = {}
        try:
            for record in self._records():
                if record.kind == _CONNECTION:
                    name, type_name = _connection(record)
                    found[name] = Topic(name, type_name, "ros1")
        except BagDamageError:
            if not found:
                raise
        return list(found.values())

    def messages(self, topic: str | None = None) -> Iterator[BagMessage]:
        """Yield the messages of all complete chunks."""
        names: dict[bytes, str] = {}
        for record in self._records():
            if record.kind == _CONNECTION:
                names[record.fields.get(b"conn", b"")] = _connection(record)[0]
            elif record.kind == _MESSAGE:
                name = names.get(record.fields.get(b"conn", b""), "")
                if topic is None or name == topic:
                    yield BagMessage(name, _time_ns(record.fields.get(b"time", b"")), record.data)

    def _records(self) -> Iterator[_Record]:
        damaged, reason = 0, ""
        with self._path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise BagDamageError("is not a ROS 1 bag of format 2.0; convert older formats with `rosbag fix`")
            for record in _records_in(file, os.fstat(file.fileno()).st_size):
                if record.kind != _CHUNK:
                    yield record
                    continue
                try:
                    content = _unpacked(record)
                    yield from list(_records_in(io.BytesIO(content), len(content)))
                except (BagDamageError, ValueError, OSError, RuntimeError, EOFError, struct.error) as error:
                    damaged, reason = damaged + 1, reason or str(error)
        if damaged:
            raise BagDamageError(f"{damaged} damaged chunks were skipped ({reason}); {_RECOVER}")


def _records_in(file: BinaryIO, size: int) -> Iterator[_Record]:
    while (position := file.tell()) < size:
        header = _sized(file, size, _MAX_HEADER_BYTES)
        data = _sized(file, size, MAX_RECORD_BYTES)
        fields = _fields(header)
        kind = fields.get(b"op", b"")
        if len(kind) != 1:
            raise BagDamageError(f"damaged at byte {position}: a record does not state its kind; {_RECOVER}")
        yield _Record(kind[0], fields, data)


def _sized(file: BinaryIO, size: int, limit: int) -> bytes:
    """Read a length of four bytes, and return as many bytes after it."""
    position = file.tell()
    length = int.from_bytes(file.read(4), "little")
    if position + 4 + length > size or length > limit:
        raise BagDamageError(f"cut off or damaged at byte {position} of {size}; {_RECOVER}")
    return file.read(length)


def _fields(header: bytes) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    position = 0
    while position + 4 <= len(header):
        length = int.from_bytes(header[position : position + 4], "little")
        key, _, value = header[position + 4 : position + 4 + length].partition(b"=")
        fields[key] = value
        position += 4 + length
    return fields


def _connection(record: _Record) -> tuple[str, str]:
    """Return the topic and the type of a connection record."""
    described = _fields(record.data)
    name = record.fields.get(b"topic") or described.get(b"topic", b"")
    return name.decode("utf-8", "replace"), described.get(b"type", b"").decode("utf-8", "replace")


def _time_ns(value: bytes) -> int:
    if len(value) != 8:
        raise BagDamageError(f"a message has no valid time; {_RECOVER}")
    seconds, nanoseconds = struct.unpack("<II", value)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _unpacked(chunk: _Record) -> bytes:
    """Decompress a chunk."""
    size = int.from_bytes(chunk.fields.get(b"size", b""), "little")
    if size > MAX_RECORD_BYTES:
        raise BagDamageError(f"a chunk of {size} bytes exceeds the limit of {MAX_RECORD_BYTES}")
    compression = chunk.fields.get(b"compression", b"")
    if compression == b"none":
        content = chunk.data
    elif compression == b"bz2":
        content = bz2.BZ2Decompressor().decompress(chunk.data, size)
    elif compression == b"lz4":
        content = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, size)
    else:
        raise BagDamageError(f"compression {compression!r} is not supported; use none, bz2 or lz4")
    if len(content) != size:
        raise BagDamageError(f"a chunk declares {size} bytes, but contains {len(content)}")
    return content

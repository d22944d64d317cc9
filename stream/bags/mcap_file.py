"""Reader of MCAP files, chunk by chunk: of damaged files it returns all complete chunks."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import BinaryIO, Final

import lz4.frame
import zstandard
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from stream.bags.container import MAX_RECORD_BYTES, BagDamageError, BagMessage, BagReader, Topic

_DAMAGE: Final = (
    *(McapError, zstandard.ZstdError, struct.error, ValueError),
    *(EOFError, OSError, OverflowError, MemoryError, RuntimeError),
)
"""Errors that the ``mcap`` reader, its decompressors and its text decoding raise for damaged bytes."""
_RECOVER: Final = "try `mcap recover FILE.mcap -o REPAIRED.mcap`"


class McapBag(BagReader):
    """Reads ``*.mcap`` files of all profiles."""

    def topics(self) -> list[Topic]:
        """Return the topics in the summary; in a file without summary, those found in its chunks."""
        with self._path.open("rb") as file:
            try:
                summary = make_reader(file).get_summary()
            except _DAMAGE:
                summary = None
        if summary is not None and summary.channels:
            counts = {} if summary.statistics is None else summary.statistics.channel_message_counts
            pairs = [(channel, summary.schemas.get(channel.schema_id)) for channel in summary.channels.values()]
            has_counts = summary.statistics is not None
            return [_topic(*pair, counts.get(pair[0].id, 0) if has_counts else None) for pair in pairs]
        found: dict[str, Topic] = {}
        try:
            for record, schemas in self._records():
                if isinstance(record, Channel):
                    found[record.topic] = _topic(record, schemas.get(record.schema_id), None)
        except BagDamageError:
            if not found:
                raise
        return list(found.values())

    def messages(self, topic: str | None = None) -> Iterator[BagMessage]:
        """Yield the messages of all complete chunks."""
        names: dict[int, str] = {}
        for record, _ in self._records():
            if isinstance(record, Channel):
                names[record.id] = record.topic
            elif isinstance(record, Message) and (topic is None or names.get(record.channel_id) == topic):
                yield BagMessage(names.get(record.channel_id, ""), record.log_time, bytes(record.data))

    def _records(self) -> Iterator[tuple[McapRecord, dict[int, Schema]]]:
        """Yield each record outside of the summary, with the schemas read before it."""
        schemas: dict[int, Schema] = {}
        damaged, reason = 0, ""
        with self._path.open("rb") as file, closing(_outer_records(file)) as records:
            for record in records:
                parts = [record]
                if isinstance(record, Chunk):
                    try:
                        parts = _parts(record)
                    except _DAMAGE as error:
                        damaged, reason = damaged + 1, reason or str(error) or type(error).__name__
                        continue
                for part in parts:
                    if isinstance(part, Schema):
                        schemas[part.id] = part
                    yield part, schemas
        if damaged:
            raise BagDamageError(f"{damaged} damaged chunks were skipped ({reason}); {_RECOVER}")


def _outer_records(file: BinaryIO) -> Generator[McapRecord, None, None]:
    reader = StreamReader(file, emit_chunks=True, record_size_limit=MAX_RECORD_BYTES)
    try:
        yield from reader.records
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise BagDamageError(f"cut off or damaged at byte {file.tell()} ({reason}); {_RECOVER}") from None


def _parts(chunk: Chunk) -> list[McapRecord]:
    if chunk.uncompressed_size > MAX_RECORD_BYTES:
        raise ValueError(f"a chunk of {chunk.uncompressed_size} bytes exceeds the limit of {MAX_RECORD_BYTES}")
    content = _unpacked(chunk)
    plain = replace(chunk, compression="", data=content, uncompressed_size=len(content))
    return breakup_chunk(plain, validate_crc=True)


def _unpacked(chunk: Chunk) -> bytes:
    """Decompress a chunk; allocates no more memory than the chunk declares."""
    size = chunk.uncompressed_size
    if chunk.compression == "zstd":
        stated = zstandard.frame_content_size(chunk.data)
        if stated > size:
            raise ValueError(f"a chunk declares {size} bytes, but its compressed data declares {stated}")
        content = zstandard.ZstdDecompressor().decompress(chunk.data, max_output_size=size)
    elif chunk.compression == "lz4":
        content = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, size + 1)
    elif chunk.compression:
        raise ValueError(f"a chunk is compressed by {chunk.compression!r}; only zstd and lz4 can be read")
    else:
        content = chunk.data
    if len(content) != size:
        raise ValueError(f"a chunk declares {size} bytes, but contains {len(content)}")
    return bytes(content)


def _topic(channel: Channel, schema: Schema | None, count: int | None) -> Topic:
    return Topic(channel.topic, "" if schema is None else schema.name, channel.message_encoding, count)

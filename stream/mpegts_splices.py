"""Detects splices (joined recordings) and padding in MPEG-TS files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

import av

from stream.decode import VideoPacket

_SIZES: Final = (188, 192, 204)
"""Bytes per packet: plain, with a timestamp before it (Blu-ray, AVCHD), with a checksum after it."""
_SYNC: Final = 0x47
_MIN_CLOCK_JUMP: Final = 10 * 90_000
"""A clock step, in units of 1/90000 s, that is too large for a lost packet."""
_PAT_IDENTIFIER: Final = 0
"""Packet identifier of the program association table, with which a recording begins."""
_BYTES_BEFORE: Final = 1 << 20  # enough to contain the table at least once
_BYTES_AFTER: Final = 8 << 20  # more than one frame


@dataclass(frozen=True, slots=True)
class _TransportPacket:
    """The header of one packet of the transport stream."""

    offset: int
    """Position in the file, in bytes."""
    identifier: int
    counter: int
    """The continuity counter, 0 to 15."""
    is_unit_start: bool
    """True if a frame or a table starts in the packet."""
    is_random_access: bool
    clock: int | None
    """The program clock reference, in units of 1/90000 s; None: the packet has none."""


def begins_anew(path: str, at: int) -> bool:
    """Return whether a new recording starts at the first discontinuity after byte ``at``.

    Each stream has a continuity counter. A lost packet interrupts only the counter of its own stream. At the start of a
    recording, the first packet of the stream starts a keyframe, and either the counter of the program association table
    is interrupted, too, or the clock jumps.
    """
    table_counter: int | None = None
    stream: int | None = None
    clock: int | None = None
    counter, is_new_table = 0, False
    with open(path, "rb") as file:  # noqa: PTH123 - the path is FFmpeg's, as given
        for packet in _packets(file, max(0, at - _BYTES_BEFORE), at + _BYTES_AFTER, anchor=at):
            if packet.identifier == _PAT_IDENTIFIER:
                is_interrupted = table_counter is not None and packet.counter != (table_counter + 1) & 15
                is_new_table = packet.offset >= at and is_interrupted
                table_counter = packet.counter
                continue
            jumps = packet.clock is not None and clock is not None and not 0 <= packet.clock - clock < _MIN_CLOCK_JUMP
            if stream is None and packet.offset >= at:
                stream, counter = packet.identifier, packet.counter
            elif packet.identifier == stream:
                is_joint = (is_new_table or jumps) and packet.is_unit_start and packet.is_random_access
                if is_joint or packet.counter not in {counter, (counter + 1) & 15}:
                    return is_joint
                counter, is_new_table = packet.counter, False
            clock = clock if packet.clock is None else packet.clock
    return False


def only_padding_behind(path: str, at: int) -> bool:
    """Return whether only padding follows byte ``at``."""
    with open(path, "rb") as file:  # noqa: PTH123
        end = max((packet.offset + 188 for packet in _packets(file, at, None, anchor=at)), default=None)
        if end is None:
            return False
        file.seek(end)
        values: set[int] = set()
        while block := file.read(1 << 20):
            values |= set(block)
            if len(values) > 1:
                return False
        return values <= {0} or values <= {0xFF}


def without_corrupt_flag(packet: VideoPacket) -> VideoPacket:
    """Return a copy of a packet without its corrupt flag."""
    copy = cast("VideoPacket", av.Packet(bytes(packet)))
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
    if packet.duration:
        copy.duration = packet.duration
    return copy


def _alignment(file: BinaryIO, anchor: int) -> tuple[int, int] | None:
    """Return offset and size in bytes of the packet at ``anchor``; None if there is none."""
    file.seek(anchor)
    block = file.read(4 + 204 * 3)
    for size in _SIZES:
        prefix = size - 188 if size == 192 else 0  # the timestamp
        sync_bytes = block[prefix::size][:3]
        if sync_bytes and sync_bytes == bytes([_SYNC]) * len(sync_bytes):
            return anchor + prefix, size
    return None


def _packets(file: BinaryIO, begin: int, end: int | None, *, anchor: int) -> Iterator[_TransportPacket]:
    """Yield the packets from ``begin`` to ``end``, aligned with ``anchor``."""
    alignment = _alignment(file, anchor)
    if alignment is None:
        return
    first, size = alignment
    offset = first - (first - begin) // size * size
    file.seek(offset)
    while (end is None or offset < end) and (block := file.read(size)):
        if len(block) >= 188 and block[0] == _SYNC:
            yield _parse_packet(block, offset)
        elif offset >= anchor:
            return
        offset += size


def _parse_packet(block: bytes, offset: int) -> _TransportPacket:
    has_field = bool(block[3] & 0x20) and block[4] > 0
    flags = block[5] if has_field else 0
    clock = int.from_bytes(block[6:11], "big") >> 7 if flags & 0x10 else None
    identifier = (block[1] & 0x1F) << 8 | block[2]
    return _TransportPacket(offset, identifier, block[3] & 15, bool(block[1] & 0x40), bool(flags & 0x40), clock)

"""MPEG-TS that was joined or padded: where one recording ends and the next begins, no packet is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

import av

from stream.decode import VideoPacket

_SIZES: Final = (188, 192, 204)
"""Bytes from one packet to the next: plain, with a time before it (Blu-ray, AVCHD), with a checksum behind it."""
_SYNC: Final = 0x47
_JUMP: Final = 10 * 90_000
"""A step of the clock that no lost packet explains."""
_TABLE: Final = 0
"""The packet identifier of the table that a recording begins with."""
_BEFORE: Final = 1 << 20  # bytes in which the table comes at least once
_BEHIND: Final = 8 << 20  # more than one picture takes


@dataclass(frozen=True, slots=True)
class _Part:
    """One packet of the transport stream."""

    at: int
    identifier: int
    count: int
    begins: bool
    """Whether a picture, or a table, begins in it."""
    is_random_access: bool
    clock: int | None
    """The programme's clock, 90000 a second, where it carries that."""


def begins_anew(path: str, at: int) -> bool:
    """Say whether the first break in a stream behind byte ``at``, a picture's, is where the next recording begins.

    The packets of each stream are counted. A lost one breaks the count of its stream alone; where a recording begins,
    the first packet of the stream begins a picture that needs no other, and the count of its table breaks, too, or its
    clock jumps.
    """
    table: int | None = None
    stream: int | None = None
    clock: int | None = None
    count, is_new = 0, False
    with open(path, "rb") as file:  # noqa: PTH123 - the path is FFmpeg's, as given
        for part in _parts(file, max(0, at - _BEFORE), at + _BEHIND, anchor=at):
            if part.identifier == _TABLE:
                is_new = part.at >= at and table is not None and part.count != (table + 1) & 15
                table = part.count
                continue
            jumps = part.clock is not None and clock is not None and not 0 <= part.clock - clock < _JUMP
            if stream is None and part.at >= at:
                stream, count = part.identifier, part.count
            elif part.identifier == stream:
                is_joint = (is_new or jumps) and part.begins and part.is_random_access
                if is_joint or part.count not in {count, (count + 1) & 15}:
                    return is_joint
                count, is_new = part.count, False
            clock = clock if part.clock is None else part.clock
    return False


def only_padding_behind(path: str, at: int) -> bool:
    """Say whether nothing but zeros, or ones, follows the packets of the transport stream from byte ``at`` on."""
    with open(path, "rb") as file:  # noqa: PTH123
        end = max((part.at + 188 for part in _parts(file, at, None, anchor=at)), default=None)
        if end is None:
            return False
        file.seek(end)
        fill: set[int] = set()
        while block := file.read(1 << 20):
            fill |= set(block)
            if len(fill) > 1:
                return False
        return fill <= {0} or fill <= {0xFF}


def cleared(packet: VideoPacket) -> VideoPacket:
    """Return a copy of a packet without the mark that it is damaged."""
    copy = cast("VideoPacket", av.Packet(bytes(packet)))
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
    if packet.duration:
        copy.duration = packet.duration
    return copy


def _step(file: BinaryIO, anchor: int) -> tuple[int, int] | None:
    """Return where the packet at ``anchor`` begins, and how many bytes lie between it and the next; None: no packet."""
    file.seek(anchor)
    block = file.read(4 + 204 * 3)
    for size in _SIZES:
        ahead = size - 188 if size == 192 else 0  # the time comes first
        marks = block[ahead::size][:3]
        if marks and marks == bytes([_SYNC]) * len(marks):
            return anchor + ahead, size
    return None


def _parts(file: BinaryIO, begin: int, end: int | None, *, anchor: int) -> Iterator[_Part]:
    """Give the packets from ``begin`` to ``end``, in step with ``anchor``, until one does not begin as they do."""
    step = _step(file, anchor)
    if step is None:
        return
    first, size = step
    at = first - (first - begin) // size * size
    file.seek(at)
    while (end is None or at < end) and (block := file.read(size)):
        if len(block) >= 188 and block[0] == _SYNC:
            yield _part(block, at)
        elif at >= anchor:
            return
        at += size


def _part(block: bytes, at: int) -> _Part:
    has_field = bool(block[3] & 0x20) and block[4] > 0
    flags = block[5] if has_field else 0
    clock = int.from_bytes(block[6:11], "big") >> 7 if flags & 0x10 else None
    identifier = (block[1] & 0x1F) << 8 | block[2]
    return _Part(at, identifier, block[3] & 15, bool(block[1] & 0x40), bool(flags & 0x40), clock)

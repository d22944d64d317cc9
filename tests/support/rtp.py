"""H.264 in RTP packets (RFC 6184): single units and FU-A fragments. Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

PAYLOAD_TYPE = 96
CLOCK_HZ = 90_000
FU_A = 28


def payloads(units: Sequence[bytes], *, most: int = 1200) -> Iterator[tuple[bytes, bool]]:
    """Yield the payloads of one frame, each with whether it is the last."""
    for index, unit in enumerate(units):
        last = index == len(units) - 1
        if len(unit) <= most:
            yield unit, last
            continue
        head, body = unit[0], unit[1:]
        for begin in range(0, len(body), most - 2):
            piece = body[begin : begin + most - 2]
            ends = begin + len(piece) == len(body)
            mark = (0x80 if begin == 0 else 0) | (0x40 if ends else 0)
            yield bytes([(head & 0xE0) | FU_A, mark | (head & 0x1F)]) + piece, last and ends


def packet(payload: bytes, *, sequence: int, timestamp: int, source: int, last: bool) -> bytes:
    """Return one RTP packet (RFC 3550)."""
    kind = PAYLOAD_TYPE | (0x80 if last else 0)
    header = struct.pack("!BBHII", 0x80, kind, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, source & 0xFFFFFFFF)
    return header + payload


def interleaved(channel: int, packet_: bytes) -> bytes:
    """Return the packet as interleaved data of RTSP over TCP (RFC 2326, 10.12)."""
    return b"$" + struct.pack("!BH", channel, len(packet_)) + packet_

"""Creates RTP packets of H.264 (RFC 6184) and RTCP sender reports (RFC 3550)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from overlays.h264 import SEI, AccessUnit

PAYLOAD_TYPE: Final = 96
MAX_PAYLOAD_BYTES: Final = 1400
"""Maximum payload that fits into an Ethernet frame, because a server may forward the packets by UDP."""
_VERSION: Final = 2 << 6
_MARKER: Final = 0x80
_FU_A: Final = 28
_START: Final = 0x80
_END: Final = 0x40
_SENDER_REPORT: Final = 200
_UNIX_TO_NTP_SECONDS: Final = 2_208_988_800
"""Seconds from 1900 (NTP) to 1970 (Unix)."""


class RtpPacketizer:
    """Converts access units to the packets of one stream."""

    def __init__(self, source_id: int, sequence: int, offset_ticks: int) -> None:
        """Set the initial values, which RFC 3550 requires to be random.

        Args:
            source_id: SSRC, 32 bits.
            sequence: number of the first packet, 16 bits.
            offset_ticks: time stamp of tick 0, 32 bits.
        """
        self._source_id, self._sequence, self._offset_ticks = source_id, sequence, offset_ticks
        self._packets = self._bytes = 0

    def packets(self, unit: AccessUnit) -> Iterator[bytes]:
        """Yield the packets of an access unit; the last has the marker bit."""
        nal_units = [nal_unit for nal_unit in unit.nal_units if nal_unit[0] & 31 != SEI]
        for number, nal_unit in enumerate(nal_units):
            payloads = list(_payloads(nal_unit))
            for index, payload in enumerate(payloads):
                is_last = number == len(nal_units) - 1 and index == len(payloads) - 1
                yield self._packet(payload, unit.ticks, is_last=is_last)

    def sender_report(self, ticks: int, unix_seconds: float) -> bytes:
        """Return the report that a frame of time stamp ``ticks`` was captured at ``unix_seconds``."""
        ntp_seconds = unix_seconds + _UNIX_TO_NTP_SECONDS
        return struct.pack(
            ">BBHIIIIII",
            _VERSION,
            _SENDER_REPORT,
            6,  # length in 32-bit words, less one
            self._source_id,
            int(ntp_seconds) & 0xFFFFFFFF,
            int(ntp_seconds % 1 * 2**32),
            self._stamp(ticks),
            self._packets & 0xFFFFFFFF,
            self._bytes & 0xFFFFFFFF,
        )

    def _packet(self, payload: bytes, ticks: int, *, is_last: bool) -> bytes:
        marker = _MARKER if is_last else 0
        header = struct.pack(
            ">BBHII", _VERSION, marker | PAYLOAD_TYPE, self._sequence, self._stamp(ticks), self._source_id
        )
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._packets += 1
        self._bytes += len(payload)
        return header + payload

    def _stamp(self, ticks: int) -> int:
        return (ticks + self._offset_ticks) & 0xFFFFFFFF


def _payloads(nal_unit: bytes) -> Iterator[bytes]:
    """Yield a NAL unit whole, or as fragments (FU-A)."""
    if len(nal_unit) <= MAX_PAYLOAD_BYTES:
        yield nal_unit
        return
    indicator, kind = (nal_unit[0] & 0xE0) | _FU_A, nal_unit[0] & 31
    step = MAX_PAYLOAD_BYTES - 2
    for begin in range(1, len(nal_unit), step):
        flags = (_START if begin == 1 else 0) | (_END if begin + step >= len(nal_unit) else 0)
        yield bytes((indicator, kind | flags)) + nal_unit[begin : begin + step]

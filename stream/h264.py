"""Detects missing pictures in H.264 streams, without decoding.

If a whole picture is missing, a decoder predicts the next one from a wrong reference, and reports no error. Reference
pictures are numbered (``frame_num``, ITU-T H.264, 7.4.3), so a gap in the numbers shows the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_START_CODE: Final = b"\x00\x00\x01"
_SLICE, _IDR_SLICE, _SPS, _PPS = 1, 5, 7, 8
_WITH_CHROMA_FORMAT: Final = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
_HEAD_BYTES: Final = 64  # more than the fields up to frame_num occupy


@dataclass(frozen=True, slots=True)
class _Numbering:
    """The fields of a sequence parameter set that concern ``frame_num``."""

    bits: int
    gaps_allowed: bool
    separate_planes: bool


class FrameNumbers:
    """Checks ``frame_num`` in the packets of one stream (Annex B); each packet contains one picture."""

    def __init__(self, extradata: bytes | None = None) -> None:
        """Create a tracker with the container's parameter sets, if any."""
        self._sequences: dict[int, _Numbering] = {}
        self._sequence_of: dict[int, int] = {}
        self._last_reference: int | None = None
        if extradata:
            self.misses(extradata)

    def misses(self, packet: bytes) -> bool:
        """Return whether a reference picture is missing between the last packet and this one."""
        for unit in _units(packet):
            kind = unit[0] & 31
            try:
                if kind == _SPS:
                    self._read_sequence(_Bits(unit[1:]))
                elif kind == _PPS:
                    bits = _Bits(unit[1:_HEAD_BYTES])
                    self._sequence_of[bits.unsigned()] = bits.unsigned()
                elif kind in {_SLICE, _IDR_SLICE}:
                    return self._has_gap(
                        _Bits(unit[1:_HEAD_BYTES]), idr=kind == _IDR_SLICE, reference=bool(unit[0] & 96)
                    )
            except IndexError:  # truncated: the decoder reports it
                return False
        return False

    def _has_gap(self, bits: _Bits, *, idr: bool, reference: bool) -> bool:
        bits.unsigned()  # first_mb_in_slice
        bits.unsigned()  # slice_type
        numbering = self._sequences.get(self._sequence_of.get(bits.unsigned(), -1))
        if numbering is None:
            return False
        if numbering.separate_planes:
            bits.take(2)
        number = bits.take(numbering.bits)
        previous = self._last_reference
        if reference:
            self._last_reference = number
        if idr or previous is None or numbering.gaps_allowed:
            return False
        return number not in {previous, (previous + 1) % (1 << numbering.bits)}

    def _read_sequence(self, bits: _Bits) -> None:
        """Read a sequence parameter set (7.3.2.1.1) up to the flag that allows gaps."""
        profile = bits.take(8)
        bits.take(16)
        identifier, separate = bits.unsigned(), False
        if profile in _WITH_CHROMA_FORMAT:
            chroma = bits.unsigned()
            separate = chroma == 3 and bool(bits.take(1))
            bits.unsigned()
            bits.unsigned()
            bits.take(1)
            if bits.take(1):
                for index in range(12 if chroma == 3 else 8):
                    if bits.take(1):
                        _skip_scaling(bits, 16 if index < 6 else 64)
        length = bits.unsigned() + 4
        order = bits.unsigned()
        if order == 0:
            bits.unsigned()
        elif order == 1:
            bits.take(1)
            bits.unsigned()  # a signed number has the same length in bits
            bits.unsigned()
            for _ in range(bits.unsigned()):
                bits.unsigned()
        bits.unsigned()
        if length <= 16:
            self._sequences[identifier] = _Numbering(length, bool(bits.take(1)), separate)


class _Bits:
    """Reads bits from the payload of a NAL unit; raises ``IndexError`` at its end."""

    def __init__(self, payload: bytes) -> None:
        raw = payload.replace(b"\x00\x00\x03", b"\x00\x00")
        self._value, self._left = int.from_bytes(raw, "big"), 8 * len(raw)

    def take(self, count: int) -> int:
        """Return the next ``count`` bits as a number."""
        if count > self._left:
            raise IndexError(count)
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def unsigned(self) -> int:
        """Return the next Exp-Golomb number (9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """Return the next signed Exp-Golomb number (9.1.1)."""
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _units(packet: bytes) -> Iterator[bytes]:
    """Yield the NAL units between start codes; none for MP4 and FLV."""
    if not packet.startswith((_START_CODE, b"\x00" + _START_CODE)):
        return
    begin = packet.find(_START_CODE)
    while begin >= 0:
        begin += len(_START_CODE)
        end = packet.find(_START_CODE, begin)
        unit = packet[begin:] if end < 0 else packet[begin:end]
        if unit:
            yield unit
        begin = end

"""Which pictures can be believed after some of a stream was damaged. Knows nothing about codecs.

A picture that was predicted from a broken one is broken too, though no decoder says so: from the damage on, everything
is doubtful until the next key picture. What counts is the order of decoding, not of showing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_REMEMBERED_PACKETS = 128  # more than any decoder holds back by reordering and threads


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """One packet that went into the decoder."""

    pts: int | None
    key: bool


class CorruptionTracker:
    """Follows packets into a decoder and says which of the pictures that come out are whole."""

    def __init__(self, *, window_packets: int | None = None) -> None:
        """Doubt ``window_packets`` at most, then believe again: some cameras send one key picture, ever.

        None doubts until a key picture comes, however long that takes.
        """
        self._window_packets = window_packets
        self._packets: deque[PacketInfo] = deque(maxlen=_REMEMBERED_PACKETS)
        self._suspect_until: set[int] = set()
        self._doubted_packets = 0
        self._broken = False
        self._clean_from: int | None = None

    def add_packet(self, pts: int | None, *, key: bool) -> None:
        """Note a packet on its way into the decoder."""
        packet = PacketInfo(pts, key)
        self._packets.append(packet)
        self._judge(packet)

    def mark_corrupt(self, *, pts: int | None = None) -> None:
        """Note damage: in the picture shown at ``pts``, or in the packet sent last."""
        packets = list(self._packets)
        start = max(0, len(packets) - 1)
        if pts is not None:
            start = next((n for n, packet in enumerate(packets) if packet.pts == pts), start)
            self._suspect_until.add(pts)
        self._broken, self._clean_from, self._doubted_packets = True, None, 0
        for packet in packets[start : start + 1]:
            self._suspect_until.update(() if packet.pts is None else (packet.pts,))
        for packet in packets[start + 1 :]:
            self._judge(packet)

    def is_intact(self, pts: int | None) -> bool:
        """Say whether the picture shown at ``pts`` is whole."""
        if pts is None:
            return not self._broken
        doubtful = pts in self._suspect_until
        self._suspect_until.discard(pts)
        return not doubtful

    def _judge(self, packet: PacketInfo) -> None:
        if packet.key:
            self._clean_from = packet.pts if self._broken else None
            self._broken = False
            return
        # Pictures shown before the key picture but decoded after it lean on what came before: on the broken ones.
        leads = self._clean_from is not None and packet.pts is not None and packet.pts < self._clean_from
        if not (self._broken or leads):
            return
        self._doubted_packets += 1
        if self._window_packets is not None and self._doubted_packets > self._window_packets:
            self._broken, self._clean_from = False, None
        elif packet.pts is not None:
            self._suspect_until.add(packet.pts)

"""Determines which frames of a damaged stream are intact, for any codec.

A frame that is predicted from a damaged frame is damaged too, but no decoder reports it. So after damage all frames up
to the next keyframe are suspect, in decoding order, not in presentation order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_REMEMBERED_PACKETS = 128  # more than any decoder delays by reordering and threads


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """One packet sent to the decoder."""

    pts: int | None
    key: bool


class CorruptionTracker:
    """Determines which decoded frames are intact, from the packets sent to the decoder."""

    def __init__(self, *, window_packets: int | None = None) -> None:
        """Create a tracker.

        Args:
            window_packets: maximum number of suspect packets after damage, for cameras that send a single keyframe;
                None: all packets up to the next keyframe.
        """
        self._window_packets = window_packets
        self._packets: deque[PacketInfo] = deque(maxlen=_REMEMBERED_PACKETS)
        self._suspect_pts: set[int] = set()
        self._suspect_packets = 0
        self._damaged = False
        self._clean_from: int | None = None

    def add_packet(self, pts: int | None, *, key: bool) -> None:
        """Record a packet sent to the decoder; ``key`` is True for a keyframe."""
        packet = PacketInfo(pts, key)
        self._packets.append(packet)
        self._classify(packet)

    def mark_corrupt(self, *, pts: int | None = None) -> None:
        """Record damage of the frame at ``pts``; None: of the last packet."""
        packets = list(self._packets)
        start = max(0, len(packets) - 1)
        if pts is not None:
            start = next((n for n, packet in enumerate(packets) if packet.pts == pts), start)
            self._suspect_pts.add(pts)
        self._damaged, self._clean_from, self._suspect_packets = True, None, 0
        for packet in packets[start : start + 1]:
            self._suspect_pts.update(() if packet.pts is None else (packet.pts,))
        for packet in packets[start + 1 :]:
            self._classify(packet)

    def is_intact(self, pts: int | None) -> bool:
        """Return whether the frame with presentation time ``pts`` is intact."""
        if pts is None:
            return not self._damaged
        suspect = pts in self._suspect_pts
        self._suspect_pts.discard(pts)
        return not suspect

    def _classify(self, packet: PacketInfo) -> None:
        if packet.key:
            self._clean_from = packet.pts if self._damaged else None
            self._damaged = False
            return
        # Leading frames (shown before the keyframe, decoded after it) are predicted from earlier frames, which are
        # damaged.
        is_leading = self._clean_from is not None and packet.pts is not None and packet.pts < self._clean_from
        if not (self._damaged or is_leading):
            return
        self._suspect_packets += 1
        if self._window_packets is not None and self._suspect_packets > self._window_packets:
            self._damaged, self._clean_from = False, None
        elif packet.pts is not None:
            self._suspect_pts.add(packet.pts)

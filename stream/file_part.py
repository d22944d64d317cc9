"""Divides a recording at keyframes into parts that can be read independently.

A part contains the frames whose presentation times lie between two keyframes, with the indices and times that they have
in the whole recording. A recording is not divided if its packets alone do not determine these (damage, missing or
repeated timestamps, spliced recordings). A part whose decoded frames differ from its packets raises
``InexactPartError``.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import av

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.ports import Health
from stream.clock import StreamClock
from stream.decode import VideoPacket
from stream.file import FileSource

_MIN_STEP_SECONDS: Final = 0.0011
"""``StreamClock`` would change the times of frames that are closer than this."""
_SEEK_BACK_SECONDS: Final = (0.0, 10.0)
"""Tried in order: a demuxer may seek to a later keyframe than requested; then the seek starts earlier."""


class InexactPartError(SourceError):
    """The decoded frames of a part differ from its packets; the recording must be read as a whole."""


@dataclass(frozen=True, slots=True, order=True)
class VideoPart:
    """A part of a recording; timestamps are in the time base of the video stream."""

    number: int
    count: int
    """Number of parts of the recording."""
    first_index: int
    """Index of the first frame in the whole recording."""
    frames: int
    key_pts: int
    """Presentation time of the keyframe at which decoding starts; at most ``start_pts``."""
    key_dts: int | None
    start_pts: int
    end_pts: int | None
    """Exclusive upper limit of the presentation times; None: up to the end of the recording."""
    first_pts: int
    """Presentation time of the first frame of the whole recording."""


@dataclass(frozen=True, slots=True)
class PacketTimes:
    """The timestamps of a packet, in the time base of the video stream."""

    pts: int
    dts: int | None
    is_key: bool
    is_shown: bool
    """False: an edit list hides the frame."""


class PartSource(FileSource):
    """Reads one part of a recording; without a part, divides the whole recording."""

    def __init__(self, *arguments: Any, part: VideoPart | None = None, **options: Any) -> None:  # noqa: ANN401
        """Create the source of ``part``; the other arguments are passed to ``FileSource``."""
        super().__init__(*arguments, **options)
        self._part = part

    def divide(self, seconds: float, stop: threading.Event) -> list[VideoPart]:
        """Return parts of at least ``seconds``; empty if the recording is short or cannot be divided.

        Reads all packets and decodes none. Call it on a source that was not entered.

        Raises:
            SourceError: the recording cannot be opened.
        """
        self._stop = stop
        self._open("SLICE")
        try:
            time_base = self._stream.time_base
            duration = self._container.duration if self._container is not None else None
            if time_base is None or (duration is not None and 0 < duration / av.time_base < 2 * seconds):
                return []
            packets = self._packet_times(stop)
            return [] if packets is None else parts_of(packets, seconds / time_base, _MIN_STEP_SECONDS / time_base)
        finally:
            self._close()

    def _packet_times(self, stop: threading.Event) -> list[PacketTimes] | None:
        """Return the times of all packets; None if the recording is damaged, cut off, or lacks timestamps."""
        times: list[PacketTimes] = []
        end = None
        for packet in super()._packets():
            if stop.is_set():
                return None
            if not packet.size:
                continue
            self._decoding.packets += 1
            if packet.pts is None or packet.is_corrupt or self._decoding.corrupt:
                return None
            times.append(PacketTimes(packet.pts, packet.dts, packet.is_keyframe, not packet.is_discard))
            seconds = float((packet.pts + (packet.duration or 0)) * (self._stream.time_base or 0))
            end = seconds if end is None else max(end, seconds)
        self._end_seconds = end
        return None if self._decoding.corrupt or self._is_cut_gif or self._truncation() else times

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of the part, with their indices and times in the whole recording.

        Raises:
            InexactPartError: the number of frames differs from the packets, or the frames are deinterlaced.
        """
        first = self._part.first_index if self._part else 0
        for frame in super().frames(stop):
            yield replace(frame, index=first + frame.index)

    def _clock(self) -> StreamClock:
        clock = super()._clock()
        base = self._stream.time_base
        if self._part is not None and self._part.first_index and base is not None:
            clock.to_seconds(float(self._part.first_pts) * base.numerator / base.denominator)
        return clock

    def _packets(self) -> Iterator[VideoPacket]:
        part = self._part
        if part is None:
            yield from super()._packets()
            return
        assert self._container is not None  # noqa: S101 - _open comes first
        base = self._stream.time_base or 1
        for offset in [*(part.key_pts - round(back / base) for back in _SEEK_BACK_SECONDS), part.first_pts]:
            self._container.seek(offset, stream=self._stream, backward=True)
            packets = super()._packets()
            for packet in packets:
                if packet.is_keyframe and packet.pts == part.key_pts:
                    yield packet
                    yield from packets
                    return
                if packet.dts is not None and part.key_dts is not None and packet.dts > part.key_dts:
                    break

    def _decode(self) -> Iterator[av.VideoFrame]:
        part = self._part
        for frame in super()._decode():
            if part is None or frame.pts is None:
                yield frame
            elif part.end_pts is not None and frame.pts >= part.end_pts:
                return
            elif frame.pts >= part.start_pts:
                yield frame

    def _finish(self) -> None:
        if self._part is None:
            super()._finish()
        elif self._frames_delivered != self._part.frames or self._decoding.is_deinterlacing:
            part = f"part {self._part.number + 1} of {self._part.count}"
            found = f"{self._frames_delivered} of {self._part.frames} frames"
            raise InexactPartError(f"{self.uri}: {part} contains {found}; the recording is read as a whole")
        else:
            self.health = Health("ended", corrupt=self._decoding.corrupt)


def parts_of(packets: Sequence[PacketTimes], length: float, min_step: float) -> list[VideoPart]:
    """Return the parts of a recording; empty if there are fewer than two.

    Args:
        packets: all packets of the recording, in decoding order.
        length: minimum length of a part, in the time base.
        min_step: minimum distance of two frames, in the time base.
    """
    shown = sorted(packet.pts for packet in packets if packet.is_shown)
    if not shown or not packets[0].is_key or any(b - a < min_step for a, b in itertools.pairwise(shown)):
        return []
    if any(packet.pts < packets[0].pts for packet in packets):  # the beginning is missing
        return []
    cuts: list[_Cut] = []
    for cut in _cuts(packets):
        if cut.pts - (cuts[-1].pts if cuts else shown[0]) >= length and shown[-1] - cut.pts >= length / 2:
            cuts.append(cut)
    if not cuts:
        return []
    starts = [_Cut(shown[0], packets[0].pts, packets[0].dts), *cuts]
    indices = [bisect.bisect_left(shown, cut.pts) for cut in starts] + [len(shown)]
    return [
        VideoPart(
            number=number, count=len(starts), first_index=indices[number],
            frames=indices[number + 1] - indices[number], key_pts=start.key_pts, key_dts=start.key_dts,
            start_pts=start.pts, end_pts=starts[number + 1].pts if number + 1 < len(starts) else None,
            first_pts=shown[0],
        )
        for number, start in enumerate(starts)
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Cut:
    """A keyframe at which a recording can be divided."""

    pts: int
    key_pts: int
    """Presentation time of the keyframe at which decoding must start."""
    key_dts: int | None


def _cuts(packets: Sequence[PacketTimes]) -> Iterator[_Cut]:
    """Yield the keyframes before which the same frames come in decoding order and in presentation order.

    In an open group of pictures, frames that follow the keyframe in decoding order are shown before it. They belong to
    the part before, and need both the keyframe and the previous one. So a part that starts with such a keyframe is
    decoded from the previous keyframe: a decoder that starts at the keyframe itself would report the missing reference
    as damage.
    """
    keys = [position for position, packet in enumerate(packets) if packet.is_key]
    before = list(itertools.accumulate((packet.pts for packet in packets), max))
    behind = list(itertools.accumulate((packet.pts for packet in reversed(packets)), min))[::-1]
    for number, position in enumerate(keys[1:], 1):
        packet, is_last = packets[position], number + 1 == len(keys)
        following = len(packets) if is_last else keys[number + 1]
        is_ordered = before[position - 1] < packet.pts and (is_last or behind[following] > packet.pts)
        if not (packet.is_shown and is_ordered):
            continue
        has_leading = any(other.pts < packet.pts for other in packets[position + 1 : following])
        start = packets[keys[number - 1]] if has_leading else packet
        yield _Cut(packet.pts, start.pts, start.dts)

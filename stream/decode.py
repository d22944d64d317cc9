"""Decoding of an open container, shared by files and network streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias, cast

import av
import av.error
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from stream.convert import Deinterlacer
from stream.corruption import CorruptionTracker
from stream.h264 import FrameNumbers
from stream.limits import ImageTooLargeError, check_size

VideoPacket: TypeAlias = "av.Packet[VideoStream]"

ATTACHED_PICTURE: Final = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC: cover art
_WITH_IN_BAND_SETS: Final = frozenset({"h264", "hevc"})  # codecs whose parameter sets may also come in packets
_MAX_FAILED_READS: Final = 32  # maximum number of unreadable positions in a row


def video_stream(container: InputContainer) -> VideoStream | None:
    """Return FFmpeg's best video stream; None if there is none."""
    try:
        best = container.streams.best("video")
    except IndexError:  # with a damaged header FFmpeg returns a stream that PyAV does not list
        return None
    if not isinstance(best, VideoStream) or int(best.disposition) & ATTACHED_PICTURE:
        return None
    return best


def drop_bad_extradata(context: VideoCodecContext) -> bool:
    """Remove parameter sets that prevent the decoder from opening; return whether any were removed.

    Some cameras describe their stream with wrong parameter sets and send the right ones with each keyframe. With
    ``err_detect=explode`` the decoder rejects the wrong sets, and no packet is decoded. The sets are tested in a
    separate context, because a context loses its hardware device when it fails to open.
    """
    sets = context.extradata or b""
    if context.name not in _WITH_IN_BAND_SETS or not sets.startswith((b"\0\0\1", b"\0\0\0\1")):
        return False
    trial = cast("VideoCodecContext", av.CodecContext.create(context.name, "r"))
    trial.extradata, trial.options = sets, dict(context.options)
    try:
        trial.open()
    except av.error.FFmpegError:
        context.extradata = None
        return True
    return False


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """Yield the packets of a stream; raises only ``av.error.FFmpegError``."""
    try:
        yield from container.demux(stream)
    except IndexError:  # with a damaged header FFmpeg returns a stream that PyAV does not list
        raise av.error.InvalidDataError(0, "damaged header") from None


def packets(container: InputContainer, stream: VideoStream, on_damage: Callable[[], None]) -> Iterator[VideoPacket]:
    """Yield the packets of a file; call ``on_damage`` at unreadable positions.

    Ends after ``_MAX_FAILED_READS`` unreadable positions in a row.
    """
    failed_reads = 0
    while failed_reads < _MAX_FAILED_READS:
        try:
            for packet in packets_of(container, stream):
                failed_reads = 0
                yield packet
        except av.error.FFmpegError:
            on_damage()
            failed_reads += 1
        else:
            return


class VideoDecoder:
    """Decodes one stream; yields intact frames and counts corrupt ones."""

    def __init__(
        self,
        *,
        trust: CorruptionTracker,
        numbers: FrameNumbers | None = None,
        max_pixels: int | None = None,
        camera: str = "the video",
    ) -> None:
        self.corruption = trust
        self.max_pixels = max_pixels
        """Maximum pixels of a frame; a larger one raises ``ImageTooLargeError``. None: no limit."""
        self._limited: VideoCodecContext | None = None
        self.numbers = numbers
        """Detects missing frames; None: no detection."""
        self.packets = 0
        """Number of packets sent to the decoder."""
        self.intact_frames = 0
        """Number of intact frames decoded."""
        self.corrupt = 0
        """Number of damaged positions plus number of frames that are suspect because of them."""
        self.damage_after: int | None = None
        """Number of intact frames before the first damage; None: no damage."""
        self._deinterlacer = Deinterlacer(camera)

    @property
    def is_deinterlacing(self) -> bool:
        """True from the first interlaced frame on; each frame then depends on its neighbours."""
        return self._deinterlacer.has_filtered

    def note_damage(self) -> None:
        """Count a damaged position; all frames up to the next keyframe become suspect."""
        self._count_corrupt()
        self.corruption.mark_corrupt()

    def run(self, source: Iterable[VideoPacket], stop: threading.Event) -> Iterator[av.VideoFrame]:
        """Yield the intact frames of ``source`` until it ends or ``stop`` is set.

        Raises:
            ImageTooLargeError: a frame has more than ``max_pixels``; raised before its memory is allocated.
        """
        for packet in source:
            if stop.is_set():
                return
            for decoded in self._decode(packet):
                for frame in self._deinterlacer.feed(decoded):
                    self.intact_frames += 1
                    yield frame
        for frame in self._deinterlacer.flush():
            self.intact_frames += 1
            yield frame

    def _decode(self, packet: VideoPacket) -> Iterator[av.VideoFrame]:
        if packet.size:
            self.packets += 1
            self.corruption.add_packet(packet.pts, key=packet.is_keyframe)
            missed = self.numbers is not None and self.numbers.misses(bytes(packet))
            if missed or packet.is_corrupt:  # truncated: the decoder may conceal it
                self._count_corrupt()
                self.corruption.mark_corrupt()
        self._limit(packet.stream.codec_context)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self._check_size(packet.stream.codec_context, error)
            if not packet.is_corrupt:
                self._count_corrupt()
            self.corruption.mark_corrupt()
            return
        for frame in frames:
            check_size(frame.width, frame.height, self.max_pixels)
            if frame.is_corrupt:
                self._count_corrupt()
                self.corruption.mark_corrupt(pts=frame.pts)
            elif self.corruption.is_intact(frame.pts):
                yield frame
            else:
                self._count_corrupt()

    def _limit(self, context: VideoCodecContext) -> None:
        """Set the decoder's size limit before it opens; check the size in the header."""
        if self.max_pixels is None or context is self._limited:
            return
        self._limited = context
        # FFmpeg's limit includes the borders that FFmpeg allocates; ``check_size`` tests the exact size of the frame.
        context.options = {**context.options, "max_pixels": str(self.max_pixels * 5 // 4 + (1 << 16))}
        check_size(context.width, context.height, self.max_pixels)

    def _check_size(self, context: VideoCodecContext, error: av.error.FFmpegError) -> None:
        """Raise ``ImageTooLargeError`` if the frame's size is the cause of ``error``."""
        if self.max_pixels is None:
            return
        size_was_reset = isinstance(error, av.error.ArgumentError) and context.width * context.height == 0
        if size_was_reset or context.width * context.height > self.max_pixels:
            raise ImageTooLargeError(context.width, context.height, self.max_pixels) from None

    def _count_corrupt(self) -> None:
        self.corrupt += 1
        if self.damage_after is None:
            self.damage_after = self.intact_frames

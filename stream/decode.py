"""One open container, decoded: what files and network streams share. Opens and closes nothing."""

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
_WITH_IN_BAND_SETS: Final = frozenset({"h264", "hevc"})  # where they stand behind start codes, they may also come so
_READS_IN_VAIN: Final = 32  # damaged places in a row that a file is read past


def video_stream(container: InputContainer) -> VideoStream | None:
    """Return the video stream FFmpeg deems best (default, largest), None where there is only cover art or nothing."""
    try:
        best = container.streams.best("video")
    except IndexError:  # a damaged header has FFmpeg find a stream that PyAV does not hold
        return None
    if not isinstance(best, VideoStream) or int(best.disposition) & ATTACHED_PICTURE:
        return None
    return best


def drop_bad_extradata(context: VideoCodecContext) -> bool:
    """Remove parameter sets that keep the decoder from opening; return whether there were any.

    Some cameras describe their stream with wrong parameter sets and send the right ones with each key picture. With
    ``err_detect=explode`` the decoder refuses to open on wrong ones, and then no packet is decoded. The sets are tried
    on a context of their own, because a failed opening costs a context its hardware device.
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
    """Give the packets of a stream. Raises FFmpeg's errors, and no other."""
    try:
        yield from container.demux(stream)
    except IndexError:  # a damaged header has FFmpeg find a stream that PyAV does not hold
        raise av.error.InvalidDataError(0, "damaged header") from None


def packets(container: InputContainer, stream: VideoStream, on_damage: Callable[[], None]) -> Iterator[VideoPacket]:
    """Give the packets of a file; ``on_damage`` hears of each place that cannot be read, and reading goes on behind it.

    Ends after so many damaged places in a row that there is nothing behind them.
    """
    in_vain = 0
    while in_vain < _READS_IN_VAIN:
        try:
            for packet in packets_of(container, stream):
                in_vain = 0
                yield packet
        except av.error.FFmpegError:
            on_damage()
            in_vain += 1
        else:
            return


class VideoDecoder:
    """The pictures of one stream that can be believed, in order of showing; counts the others."""

    def __init__(
        self, *, trust: CorruptionTracker, numbers: FrameNumbers | None = None, max_pixels: int | None = None
    ) -> None:
        self.corruption = trust
        self.max_pixels = max_pixels
        """How many pixels a picture may have; a larger one raises ``ImageTooLargeError``. None: any number."""
        self._limited: VideoCodecContext | None = None
        self.numbers = numbers
        """Tells of pictures that went missing as a whole; None: nobody looks."""
        self.packets = 0
        """How many packets went into the decoder."""
        self.images = 0
        """How many believable pictures came out."""
        self.corrupt = 0
        """How many places in the stream were damaged, and pictures in doubt because of them."""
        self.damage_after: int | None = None
        """How many believable pictures had come before the first damage; None where there was none."""
        self._deinterlacer = Deinterlacer()

    def note_damage(self) -> None:
        """Count a damaged place; what is decoded from here to the next key picture is in doubt."""
        self._with_corruption_mark()
        self.corruption.mark_corrupt()

    def run(self, source: Iterable[VideoPacket], stop: threading.Event) -> Iterator[av.VideoFrame]:
        """Give the believable pictures of ``source`` until it ends or ``stop`` is set.

        Raises:
            ImageTooLargeError: a picture has more than ``max_pixels``; no memory was taken for it.
        """
        for packet in source:
            if stop.is_set():
                return
            for picture in self._decode(packet):
                for whole in self._deinterlacer.feed(picture):
                    self.images += 1
                    yield whole
        for whole in self._deinterlacer.flush():
            self.images += 1
            yield whole

    def _decode(self, packet: VideoPacket) -> Iterator[av.VideoFrame]:
        if packet.size:
            self.packets += 1
            self.corruption.add_packet(packet.pts, key=packet.is_keyframe)
            missed = self.numbers is not None and self.numbers.misses(bytes(packet))
            if missed or packet.is_corrupt:  # cut short: the demuxer says so, the decoder may invent the rest
                self._with_corruption_mark()
                self.corruption.mark_corrupt()
        self._limit(packet.stream.codec_context)
        try:
            pictures = packet.decode()
        except av.error.FFmpegError as error:
            self._check_size(packet.stream.codec_context, error)
            if not packet.is_corrupt:
                self._with_corruption_mark()
            self.corruption.mark_corrupt()
            return
        for picture in pictures:
            check_size(picture.width, picture.height, self.max_pixels)
            if picture.is_corrupt:
                self._with_corruption_mark()
                self.corruption.mark_corrupt(pts=picture.pts)
            elif self.corruption.is_intact(picture.pts):
                yield picture
            else:
                self._with_corruption_mark()

    def _limit(self, context: VideoCodecContext) -> None:
        """Tell the decoder the limit before it opens; check the size that the header states."""
        if self.max_pixels is None or context is self._limited:
            return
        self._limited = context
        # FFmpeg counts the borders that it allocates, too; the exact size is that of the picture.
        context.options = {**context.options, "max_pixels": str(self.max_pixels * 5 // 4 + (1 << 16))}
        check_size(context.width, context.height, self.max_pixels)

    def _check_size(self, context: VideoCodecContext, error: av.error.FFmpegError) -> None:
        """Raise ``ImageTooLargeError`` where that is why FFmpeg did not decode: it then forgets the size."""
        if self.max_pixels is None:
            return
        refused = isinstance(error, av.error.ArgumentError) and context.width * context.height == 0
        if refused or context.width * context.height > self.max_pixels:
            raise ImageTooLargeError(context.width, context.height, self.max_pixels) from None

    def _with_corruption_mark(self) -> None:
        self.corrupt += 1
        if self.damage_after is None:
            self.damage_after = self.images

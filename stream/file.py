"""A video file, or a recording behind a web address: every good picture, in order, none lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import BinaryIO, Final, Literal, Protocol, Self, cast
from urllib.parse import urlsplit

import av
import av.error
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from pipeline.errors import CorruptMediaError, SourceError
from pipeline.frames import Frame
from pipeline.ports import Health
from stream.clock import StreamClock
from stream.container_info import (
    avi_has_index,
    declared_duration,
    frames_total,
    is_complete_gif,
    mp4_is_whole,
    packets_total,
)
from stream.convert import PixelAspect, RgbConverter
from stream.corruption import CorruptionTracker
from stream.decode import VideoDecoder, VideoPacket, packets, video_stream
from stream.failures import classify_error
from stream.hwaccel import DecoderSelector, Readable
from stream.limits import ImageTooLargeError
from stream.mpegts_splices import begins_anew, cleared, only_padding_behind
from stream.paths import PipeReader, check_file, kind_of, opened, shown
from stream.redact import redact

# Cut out of a longer stream, these may begin between two key pictures; what cannot be decoded there is no damage.
_BEGINS_ANYWHERE: Final = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "flv", "hls"}
# Of these FFmpeg guesses the length by their last times.
_STATES_NO_LENGTH: Final = _BEGINS_ANYWHERE - {"flv", "hls"}
# Times that begin anew where two recordings were joined are no overflow of 26 hours.
_AS_THEY_ARE: Final = {"correct_ts_overflow": "0"}
_REMUX = "try `ffmpeg -i BROKEN -c copy MENDED.mkv`, or fetch the file again"


Threads = Literal["AUTO", "SLICE"]


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How a recording is read."""

    threads: Threads = "AUTO"
    """FFmpeg's thread type: ``AUTO`` for throughput, ``SLICE`` for the least processor time."""
    options: tuple[tuple[str, str], ...] = ()
    """FFmpeg's options for the protocol and the container."""
    open_timeout_seconds: float | None = None
    read_timeout_seconds: float | None = None
    loop: bool = False
    """Whether it begins anew at its end, for ever."""
    open_remote: Callable[[threading.Event], RemoteFile] | None = None
    """Opens a remote recording, whose waits end when the event is set; None: FFmpeg does."""


class RemoteFile(Readable, Protocol):
    """A recording behind a network, open for reading."""

    def close(self) -> None:
        """Close the connection."""


class FileSource:
    """Frames of a recording, as fast as they are asked for.

    A local file is opened, and its first picture decoded, on entering; a remote one (``remote=True``) and a named pipe
    when their frames are asked for, so that entering waits for nobody.
    """

    live = False

    def __init__(
        self,
        path: str,
        *,
        camera: str,
        remote: bool = False,
        reading: FileOptions | None = None,
        decoder: DecoderSelector | None = None,
    ) -> None:
        self.camera = camera
        self.uri = redact(path) if remote else shown(path)
        self.name = PurePosixPath(urlsplit(path).path if remote else self.uri).name
        """The file's own name, which each of its frames carries."""
        self.frames_total: int | None = None
        self.rate: float | None = None
        self._path = path
        self._remote = remote
        self._is_pipe = False
        self._input: BinaryIO | PipeReader | RemoteFile | None = None
        self._file_options = reading or FileOptions()
        self._decoder = decoder or DecoderSelector()
        self._health = Health()
        self._container: InputContainer | None = None
        self._stop = threading.Event()
        self._images: Iterator[av.VideoFrame] = iter(())
        self._is_cut_gif = False
        self._frames_delivered = 0
        self._last_seconds = 0.0
        self._end_seconds: float | None = None

    @property
    def health(self) -> Health:
        """How it does right now."""
        return self._health

    def __enter__(self) -> Self:
        self._decoder.check()
        self._is_pipe = not self._remote and kind_of(self._path) == "pipe"
        if self._is_pipe and self._file_options.loop:
            raise SourceError(f"{self.uri}: is a pipe, which cannot begin anew; leave ?loop=1 out")
        if not self._remote and not self._is_pipe:
            self._open(self._file_options.threads)
            try:
                self._prime(threading.Event())
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give every good picture in order, then raise ``CorruptMediaError`` where some were not.

        Frame indices count good pictures from 0. Raises ``SourceError`` where a remote recording cannot be opened.
        """
        self._stop = stop
        if self._container is None and not self._begin(stop):
            return
        clock = StreamClock(step_seconds=1.0 / self.rate if self.rate else 0.04)
        index = 0
        while True:
            for frame in self._pass(clock, index, stop):
                index += 1
                yield frame
            if stop.is_set():
                return
            self._finish()
            if not self._file_options.loop:
                return
            self._close()
            clock.restart()
            if not self._begin(stop):
                return

    def _begin(self, stop: threading.Event) -> bool:
        """Open it and decode the first picture; say whether that was done before ``stop`` was set."""
        try:
            self._open(self._file_options.threads)
            self._prime(stop)
        except SourceError:
            if not stop.is_set():
                raise
        return not stop.is_set()

    def _pass(self, clock: StreamClock, index: int, stop: threading.Event) -> Iterator[Frame]:
        """Give the frames of one reading from the first to the last; the first has ``index``."""
        rgb, corrupt = RgbConverter(), 0
        self._health = Health("live", corrupt=self._decoding.corrupt)
        self._frames_delivered = 0
        for picture in self._images:
            if stop.is_set():
                return
            if self._decoding.corrupt != corrupt:
                corrupt = self._decoding.corrupt
                self._health = Health("live", corrupt=corrupt)
            pts = clock.to_seconds(None if picture.pts is None else picture.time)
            self._last_seconds = pts
            self._note_end(picture)
            image = rgb.convert(picture, self._aspect.now())
            yield Frame(
                image, self.camera, index + self._frames_delivered, time.monotonic(), pts, source_name=self.name
            )
            self._frames_delivered += 1

    def _note_end(self, picture: av.VideoFrame) -> None:
        """Note until when a picture is shown, by the file's own clock."""
        if picture.pts is None or picture.time is None:
            return
        seconds = float(picture.duration * picture.time_base) if picture.duration and picture.time_base else 0.0
        end = picture.time + (seconds or (1.0 / self.rate if self.rate else 0.0))
        self._end_seconds = end if self._end_seconds is None else max(end, self._end_seconds)

    def _open(self, threads: Threads) -> None:
        if not self._remote and not self._is_pipe:
            check_file(self._path)
        reading = self._file_options
        try:
            self._container = self._decoder.open(
                self._opened(),
                options=dict(reading.options) if self._remote else {**_AS_THEY_ARE, **dict(reading.options)},
                timeout=(reading.open_timeout_seconds, reading.read_timeout_seconds),
            )
        except (av.error.FFmpegError, OSError) as error:
            self._close()
            raise SourceError(self._cannot_open(error)) from None
        stream = video_stream(self._container)
        if stream is None and len(self._container.streams) == 0:
            self._close()
            raise SourceError(self._unreadable())
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in self._container.streams}))
            self._close()
            message = f"{self.uri}: holds no video, only {kinds}; name a file with moving pictures"
            raise SourceError(message)
        if cast("VideoCodecContext | None", stream.codec_context) is None:  # its stub does not know of unknown codecs
            self._close()
            message = f"{self.uri}: its video is in a codec that is not known here, or its header is damaged; {_REMUX}"
            raise SourceError(message)
        stream.thread_type = (
            "SLICE" if self._decoder.opened_on_gpu else threads
        )  # a card works on one picture at a time
        self._is_cut_gif = self._is_local and "gif" in self._formats and not is_complete_gif(self._path)
        self._stream: VideoStream = stream
        self._aspect = PixelAspect(stream, max_pixels=self._decoder.max_pixels)
        self.rate = float(stream.average_rate) if stream.average_rate else None
        self.frames_total = None if reading.loop else frames_total(self._container, stream)
        self._packets_total = packets_total(self._container, stream)
        self._end_seconds = None
        self._decoding = VideoDecoder(trust=CorruptionTracker(), max_pixels=self._decoder.max_pixels)

    def _opened(self) -> str | BinaryIO | RemoteFile:
        """Return what FFmpeg reads from: an address, a path, or an open file."""
        if self._file_options.open_remote is not None:
            self._input = self._file_options.open_remote(self._stop)
            return self._input
        if self._remote:
            return self._path
        if self._is_pipe:
            self._input = PipeReader(self._path, self._stop)
            return cast("BinaryIO", self._input)  # read is all that FFmpeg needs of what cannot seek
        found = opened(self._path)
        self._input = None if isinstance(found, str) else found
        return found

    def _prime(self, stop: threading.Event) -> None:
        """Decode the first picture, so that a file without any is refused before anything is created for it."""
        self._stop = stop
        pictures = self._all_images()
        first = next(pictures, None)
        if not stop.is_set() and self._fall_back(gave_picture=first is not None):
            self._close()
            self._open(self._file_options.threads)
            pictures = self._all_images()
            first = next(pictures, None)
        if first is None and not stop.is_set():
            codec = self._stream.codec_context.name
            message = f"{self.uri}: none of its pictures decodes; it is damaged, or not really {codec}: {_REMUX}"
            raise SourceError(message)
        self._images = pictures if first is None else itertools.chain([first], pictures)

    def _fall_back(self, *, gave_picture: bool) -> bool:
        """Say whether it is to be read anew on the CPU. Raises ``SourceError`` where it must be the card and is not."""
        asked = self._decoder.opened_on_gpu
        refused = self._decoder.verify_first_frame(self._stream.codec_context, self.camera, gave_picture=gave_picture)
        if refused is not None:
            message = f"{self.uri}: {refused.message}"
            raise SourceError(message)
        return asked and not self._decoder.wants_gpu

    def _all_images(self) -> Iterator[av.VideoFrame]:
        """Give every good picture.

        Decoding in frame threads loses what is under way when damage is met. So where it is met, the file is opened
        again, and read to the same place and on in one frame at a time.
        """
        given = 0
        for picture in self._decoded():
            if self._is_threaded and self._decoding.corrupt:
                break
            given += 1
            yield picture
        if self._is_threaded and self._decoding.corrupt and not self._stop.is_set():
            self._close()
            self._open("SLICE")
            yield from itertools.islice(self._decoded(), given, None)

    @property
    def _is_threaded(self) -> bool:
        return self._stream.thread_type.name != "SLICE"

    def _decoded(self) -> Iterator[av.VideoFrame]:
        pictures = self._decoding.run(self._packets(), self._stop)
        try:
            yield from _all_but_last(pictures) if self._is_cut_gif else pictures
        except ImageTooLargeError as error:
            if self._is_threaded:  # good pictures are under way: they come when it is read again, one at a time
                self._decoding.note_damage()
                return
            message = f"{self.uri}: {error}"
            self._health = Health("failed", message, corrupt=self._decoding.corrupt, cause="codec")
            raise SourceError(message) from None

    def _packets(self) -> Iterator[VideoPacket]:
        """Give the packets of the video; where two recordings were joined, or one was padded, none is damaged."""
        assert self._container is not None  # noqa: S101 - _open comes first
        is_joinable = self._is_local and "mpegts" in self._formats
        last = 0

        def note_damage() -> None:
            if not (is_joinable and only_padding_behind(self._path, last)):
                self._decoding.note_damage()

        for packet in packets(self._container, self._stream, note_damage):
            if packet.pos is not None and packet.pos >= 0:
                last = packet.pos
            is_joint = is_joinable and packet.is_corrupt and begins_anew(self._path, last)
            yield cleared(packet) if is_joint else packet

    def _finish(self) -> None:
        """Say how it ended."""
        decoding = self._decoding
        where = decoding.damage_after
        if where == 0 and not _BEGINS_ANYWHERE.isdisjoint(self._formats):
            where = None
        missing = self._missing()
        if where is None and not missing:
            self._health = Health("ended", corrupt=decoding.corrupt)
            return
        after = self._frames_delivered if where is None else where
        lost = f"{decoding.corrupt} damaged or doubtful were left out; " if decoding.corrupt else ""
        message = (
            f"{self.uri}: damaged near picture {after} of {self.frames_total or 'unknown'}"
            f"{missing}; {self._frames_delivered} good pictures were read to {self._last_seconds:.2f} s; {lost}{_REMUX}"
        )
        self._health = Health("failed", message, corrupt=decoding.corrupt)
        raise CorruptMediaError(message)

    def _missing(self) -> str:
        """Say what the file promised and did not hold; empty where it held all."""
        assert self._container is not None  # noqa: S101 - _open comes first
        if self._is_cut_gif:
            return ", cut off: its end mark is missing"
        total, decoding = self._packets_total, self._decoding
        if total is not None:  # counted: where all are here, it does not matter how long the last of them is shown
            return f", cut off: holds {decoding.packets} of {total} packets" if decoding.packets < total else ""
        if "mp4" in self._formats and self._is_local and not mp4_is_whole(self._path):
            return ", cut off: its last part is not whole"
        has_index = "avi" in self._formats and self._is_local and avi_has_index(self._path)
        states_length = not has_index and _STATES_NO_LENGTH.isdisjoint(self._formats) and not decoding.corrupt
        promised = declared_duration(self._container, self._stream) if states_length else None
        end = max(self._last_seconds, self._end_seconds or 0.0)
        is_short = promised is not None and end < promised - max(1.0, 0.05 * promised)
        return f", cut off: its header promises {promised:.2f} s" if is_short else ""

    @property
    def _is_local(self) -> bool:
        return not self._remote and not self._is_pipe

    @property
    def _formats(self) -> set[str]:
        assert self._container is not None  # noqa: S101
        return set(self._container.format.name.split(","))

    def _cannot_open(self, error: Exception) -> str:
        if isinstance(error, av.error.InvalidDataError):
            return self._unreadable()
        failure = classify_error(error, waited_for="answer", seconds=self._file_options.open_timeout_seconds or 0.0)
        return f"{self.uri}: cannot be opened: {failure.message}"

    def _unreadable(self) -> str:
        return (
            f"{self.uri}: is no video FFmpeg can read, whatever its name says, or its beginning or index is missing "
            f"(an unfinished recording); {_REMUX}"
        )

    def _close(self) -> None:
        self._images = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._input is not None:
            self._input.close()
            self._input = None


def _all_but_last(pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    return (earlier for earlier, _ in itertools.pairwise(pictures))

"""The source of video files, pipes and remote recordings."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final, Literal, Protocol, Self, cast
from urllib.parse import urlsplit

import av
import av.error
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from pipeline.errors import CorruptMediaError, SourceError
from pipeline.frames import Frame
from pipeline.ports import Health, Source
from stream.clock import StreamClock
from stream.container_info import (
    avi_has_index,
    declared_duration,
    frames_total,
    is_complete_gif,
    mp4_is_whole,
    packets_total,
)
from stream.convert import ColoursRefusedError, PixelAspect
from stream.corruption import CorruptionTracker
from stream.decode import VideoDecoder, VideoPacket, packets, video_stream
from stream.failures import classify_error
from stream.gpu_frames import FrameConverter
from stream.hwaccel import DecoderSelector, Readable
from stream.limits import ImageTooLargeError
from stream.mpegts_splices import begins_anew, only_padding_behind, without_corrupt_flag
from stream.paths import PipeReader, check_file, kind_of, opened, shown
from stream.redact import redact

# A recording in these formats may begin between two keyframes; frames before the first keyframe are no damage.
_BEGINS_ANYWHERE: Final = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "flv", "hls"}
# FFmpeg estimates the duration of these formats from their last timestamps.
_WITHOUT_DURATION: Final = _BEGINS_ANYWHERE - {"flv", "hls"}
# Timestamps restart where two recordings were joined; FFmpeg would take this for an overflow after 26 hours.
_TIMESTAMP_OPTIONS: Final = {"correct_ts_overflow": "0"}
_REMUX = "try `ffmpeg -i BROKEN -c copy REPAIRED.mkv`, or download the file again"


Threads = Literal["AUTO", "SLICE"]


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Options for reading a recording."""

    threads: Threads = "AUTO"
    """FFmpeg's thread type: ``AUTO`` for throughput, ``SLICE`` for the least CPU time."""
    options: tuple[tuple[str, str], ...] = ()
    """FFmpeg's options for the protocol and the container."""
    open_timeout_seconds: float | None = None
    read_timeout_seconds: float | None = None
    loop: bool = False
    """Repeat the file endlessly."""
    open_remote: Callable[[threading.Event], RemoteFile] | None = None
    """Opens a remote recording, whose waits end when the event is set; None: FFmpeg opens it."""


class RemoteFile(Readable, Protocol):
    """A recording on a server, open for reading."""

    def close(self) -> None:
        """Close the connection."""


class FileSource(Source):
    """The frames of a recording, as fast as they are read.

    Entering opens a local file and decodes its first frame. Remote files (``remote=True``) and named pipes are opened
    by ``frames``, so entering never waits for a network or a writer.
    """

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
        """Name of the camera, stored in each frame."""
        self._path = path
        self._remote = remote
        self._is_pipe = False
        self._input: BinaryIO | PipeReader | RemoteFile | None = None
        self._file_options = reading or FileOptions()
        self._decoder = decoder or DecoderSelector()
        self._container: InputContainer | None = None
        self._stop = threading.Event()
        self._decoded_frames: Iterator[av.VideoFrame] = iter(())
        self._is_cut_gif = False
        self._frames_delivered = 0
        self._last_seconds = 0.0
        self._end_seconds: float | None = None

    def __enter__(self) -> Self:
        self._decoder.check()
        self._is_pipe = not self._remote and kind_of(self._path) == "pipe"
        if self._is_pipe and self._file_options.loop:
            raise SourceError(f"{self.uri}: is a pipe, which can be read only once; remove ?loop=1")
        if not self._remote and not self._is_pipe:
            self._open(self._file_options.threads)
            try:
                self._decode_first(threading.Event())
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield every intact frame in order. Frame indices count intact frames from 0.

        Raises:
            CorruptMediaError: after the last frame, if frames were corrupt or missing.
            SourceError: a remote recording or a pipe cannot be opened.
        """
        self._stop = stop
        if self._container is None and not self._begin(stop):
            return
        clock = self._clock()
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

    def _clock(self) -> StreamClock:
        return StreamClock(step_seconds=1.0 / self.rate if self.rate else 0.04)

    def _begin(self, stop: threading.Event) -> bool:
        """Open the input and decode the first frame; return False when stopped."""
        try:
            self._open(self._file_options.threads)
            self._decode_first(stop)
        except SourceError:
            if not stop.is_set():
                raise
        return not stop.is_set()

    def _pass(self, clock: StreamClock, index: int, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of one pass over the file; frame numbers start at ``index``."""
        converter, corrupt = FrameConverter(self._decoder.copy_planes, self.camera), 0
        self.health = Health("live", corrupt=self._decoding.corrupt)
        self._frames_delivered = 0
        for frame in self._decoded_frames:
            if stop.is_set():
                return
            if self._decoding.corrupt != corrupt:
                corrupt = self._decoding.corrupt
                self.health = Health("live", corrupt=corrupt)
            pts = clock.to_seconds(None if frame.pts is None else frame.time)
            self._last_seconds = pts
            self._note_end(frame)
            try:
                image = converter.convert(frame, self._aspect.now())
            except ColoursRefusedError as error:
                message = f"{self.uri}: {error}"
                self.health = Health("failed", message, corrupt=corrupt, cause="codec")
                raise SourceError(message) from None
            yield Frame(
                image, self.camera, index + self._frames_delivered, time.monotonic(), pts, source_name=self.name
            )
            self._frames_delivered += 1

    def _note_end(self, frame: av.VideoFrame) -> None:
        """Record when the presentation of ``frame`` ends, in the file's time."""
        if frame.pts is None or frame.time is None:
            return
        seconds = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        end = frame.time + (seconds or (1.0 / self.rate if self.rate else 0.0))
        self._end_seconds = end if self._end_seconds is None else max(end, self._end_seconds)

    def _open(self, threads: Threads) -> None:
        if not self._remote and not self._is_pipe:
            check_file(self._path)
        options = self._file_options
        try:
            self._container = self._decoder.open(
                self._open_input(),
                options=dict(options.options) if self._remote else {**_TIMESTAMP_OPTIONS, **dict(options.options)},
                timeout=(options.open_timeout_seconds, options.read_timeout_seconds),
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
            message = f"{self.uri}: contains no video, only {kinds}; use a video file"
            raise SourceError(message)
        if cast("VideoCodecContext | None", stream.codec_context) is None:  # PyAV's stub excludes None: unknown codecs
            self._close()
            message = f"{self.uri}: the codec of its video is unknown, or its header is damaged; {_REMUX}"
            raise SourceError(message)
        stream.thread_type = "SLICE" if self._decoder.opened_on_gpu else threads  # a GPU decodes one frame at a time
        self._is_cut_gif = self._is_local and "gif" in self._formats and not is_complete_gif(self._path)
        self._stream: VideoStream = stream
        self._aspect = PixelAspect(stream, max_pixels=self._decoder.max_pixels)
        self.rate = float(stream.average_rate) if stream.average_rate else None
        self.frames_total = None if options.loop else frames_total(self._container, stream)
        self._packets_total = packets_total(self._container, stream)
        self._end_seconds = None
        self._decoding = VideoDecoder(
            trust=CorruptionTracker(), max_pixels=self._decoder.max_pixels, camera=self.camera
        )

    def _open_input(self) -> str | BinaryIO | RemoteFile:
        """Return the input for FFmpeg: an address, a path, or an open file."""
        if self._file_options.open_remote is not None:
            self._input = self._file_options.open_remote(self._stop)
            return self._input
        if self._remote:
            return self._path
        if self._is_pipe:
            self._input = PipeReader(self._path, self._stop)
            return cast("BinaryIO", self._input)  # FFmpeg needs only ``read`` of an input that cannot seek
        file = opened(self._path)
        self._input = None if isinstance(file, str) else file
        return file

    def _decode_first(self, stop: threading.Event) -> None:
        """Decode the first frame. Raises ``SourceError`` for a file without frames."""
        self._stop = stop
        frames = self._all_frames()
        first = next(frames, None)
        if not stop.is_set() and self._falls_back_to_cpu(has_frame=first is not None):
            self._close()
            self._open(self._file_options.threads)
            frames = self._all_frames()
            first = next(frames, None)
        if first is None and not stop.is_set():
            codec = self._stream.codec_context.name
            message = f"{self.uri}: none of its frames can be decoded; they are damaged, or not {codec}: {_REMUX}"
            raise SourceError(message)
        self._decoded_frames = frames if first is None else itertools.chain([first], frames)

    def _falls_back_to_cpu(self, *, has_frame: bool) -> bool:
        """Return whether to reopen the file on the CPU (only with ``decoder: auto``)."""
        was_on_gpu = self._decoder.opened_on_gpu
        failure = self._decoder.verify_first_frame(self._stream.codec_context, self.camera, has_frame=has_frame)
        if failure is not None:
            message = f"{self.uri}: {failure.message}"
            raise SourceError(message)
        return was_on_gpu and not self._decoder.wants_gpu

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        """Yield every intact frame.

        With frame threads, the decoder loses the frames in flight at the first damage. The file is then opened again
        without frame threads, and read on from the same position.
        """
        delivered = 0
        for frame in self._decode():
            if self._is_threaded and self._decoding.corrupt:
                break
            delivered += 1
            yield frame
        if self._is_threaded and self._decoding.corrupt and not self._stop.is_set():
            self._close()
            self._open("SLICE")
            yield from itertools.islice(self._decode(), delivered, None)

    @property
    def _is_threaded(self) -> bool:
        return self._stream.thread_type.name != "SLICE"

    def _decode(self) -> Iterator[av.VideoFrame]:
        frames = self._decoding.run(self._packets(), self._stop)
        try:
            yield from _all_but_last(frames) if self._is_cut_gif else frames
        except ImageTooLargeError as error:
            if self._is_threaded:  # the second pass, without frame threads, yields the frames in flight
                self._decoding.note_damage()
                return
            message = f"{self.uri}: {error}"
            self.health = Health("failed", message, corrupt=self._decoding.corrupt, cause="codec")
            raise SourceError(message) from None

    def _packets(self) -> Iterator[VideoPacket]:
        """Yield the packets of the video; splices and padding do not count as damage."""
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
            yield without_corrupt_flag(packet) if is_joint else packet

    def _finish(self) -> None:
        """Set the final state; raise ``CorruptMediaError`` if frames are missing."""
        decoding = self._decoding
        damage_after = decoding.damage_after
        if damage_after == 0 and not _BEGINS_ANYWHERE.isdisjoint(self._formats):
            damage_after = None
        truncation = self._truncation()
        if damage_after is None and not truncation:
            self.health = Health("live" if self._file_options.loop else "ended", corrupt=decoding.corrupt)
            return
        index = self._frames_delivered if damage_after is None else damage_after
        dropped = f"{decoding.corrupt} damaged or suspect frames were dropped; " if decoding.corrupt else ""
        message = (
            f"{self.uri}: damaged near frame {index} of {self.frames_total or 'unknown'}{truncation}; "
            f"{self._frames_delivered} intact frames were read, up to {self._last_seconds:.2f} s; {dropped}{_REMUX}"
        )
        self.health = Health("failed", message, corrupt=decoding.corrupt)
        raise CorruptMediaError(message)

    def _truncation(self) -> str:
        """Return which part of the file is missing, as text; empty if it is complete."""
        assert self._container is not None  # noqa: S101 - _open comes first
        if self._is_cut_gif:
            return ", cut off: its trailer is missing"
        total, decoding = self._packets_total, self._decoding
        if total is not None:  # the packet count is more reliable than the duration
            return f", cut off: contains {decoding.packets} of {total} packets" if decoding.packets < total else ""
        if "mp4" in self._formats and self._is_local and not mp4_is_whole(self._path):
            return ", cut off: its last part is not complete"
        has_index = "avi" in self._formats and self._is_local and avi_has_index(self._path)
        has_duration = not has_index and _WITHOUT_DURATION.isdisjoint(self._formats) and not decoding.corrupt
        declared = declared_duration(self._container, self._stream) if has_duration else None
        end = max(self._last_seconds, self._end_seconds or 0.0)
        is_short = declared is not None and end < declared - max(1.0, 0.05 * declared)
        return f", cut off: its header states {declared:.2f} s" if is_short else ""

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
            f"{self.uri}: is not a video that FFmpeg can read, or its beginning or index is missing (an unfinished "
            f"recording); {_REMUX}"
        )

    def _close(self) -> None:
        self._decoded_frames = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._input is not None:
            self._input.close()
            self._input = None


def _all_but_last(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    return (frame for frame, _ in itertools.pairwise(frames))

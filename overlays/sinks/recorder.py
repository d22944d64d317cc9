"""The recorder: H.264 in MP4 or Matroska, one file per camera, timed as the frames were.

The file is a fragmented MP4 while it grows (a killed run leaves all but its last second or two playable) and becomes an
ordinary one, index and all, when it is closed. Colours are BT.601, limited range, and tagged so.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import av.error
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.stream import VideoStream

from overlays.sinks.files import check_writable, free_path, paths_for
from overlays.sinks.fragments import WholeWrites, cut_to_whole_fragments
from overlays.sinks.options import SinkOptions
from overlays.sinks.timeline import TICKS_PER_SECOND, Timeline
from pipeline.errors import LossError, SinkError
from pipeline.frames import Image, Overlay

log = logging.getLogger(__name__)

# ISO/IEC 23091-2: matrix 6 is BT.601 (what OpenCV's conversion makes), primaries and transfer 1 are BT.709, as sRGB's.
_MATRIX_BT601: Final = 6
_BT709: Final = 1
_LIMITED_RANGE: Final = 1

_KEYFRAME_FRAMES: Final = 60
_FRAGMENT_MICROSECONDS: Final = 1_000_000
_ONE_THREAD_PIXELS: Final = 1280 * 720
"""Up to here one encoder thread keeps up with 60 frames per second, and more would only take from the engine."""


class RecorderSink:
    """Writes ``*.mp4`` or ``*.mkv``: as many frames as were put, timed as they were.

    With several cameras each has its file, ``out.<camera>.mp4``. An existing file is replaced when the first frame of
    its camera arrives. A picture of another size than the first is fitted into it with a border; odd sides are padded
    by one pixel.
    """

    lossless = True

    def __init__(self, path: Path, *, cameras: tuple[str, ...] = (), options: SinkOptions | None = None) -> None:
        """Take where to write.

        Args:
            path: the file; its suffix chooses the container.
            cameras: who will come, where that is known; whoever comes beside them gets a file with its name in it.
            options: quality and preset.
        """
        self.uri = str(path)
        self._path = path
        self._paths = paths_for(path, cameras)
        self._options = options or SinkOptions()
        self._recordings: dict[str, _Recording] = {}

    def __enter__(self) -> Self:
        for path in self._paths.values() or [self._path]:
            check_writable(path)
        return self

    def needs_picture(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say yes: every frame is recorded."""
        return True

    def idle(self) -> None:
        """Do nothing: a file can wait."""

    def put(self, overlay: Overlay) -> None:
        """Record one frame.

        Raises:
            SinkError: the disk is full or gone, or the encoder refused.
        """
        frame = overlay.explanation.frame
        recording = self._recordings.get(frame.camera)
        if recording is None:
            if frame.camera not in self._paths:
                self._paths[frame.camera] = free_path(self._path, frame.camera, set(self._paths.values()))
            recording = _Recording(self._paths[frame.camera], overlay.image, self._options)
            self._recordings[frame.camera] = recording
        silent = 0.0 if overlay.silence is None else overlay.silence.seconds
        ticks = recording.timeline.ticks(frame.pts_seconds, frame.taken_at, silent_seconds=silent)
        recording.add(overlay.image, ticks)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        failures = []
        for recording in self._recordings.values():
            try:
                recording.close()
            except SinkError as failure:
                failures.append(failure)
        self._recordings.clear()
        if failures and kind is None:
            raise failures[0]


class _Recording:
    """One open file."""

    def __init__(self, path: Path, image: Image, options: SinkOptions) -> None:
        self._path = path
        self._size = (image.shape[1], image.shape[0])
        self.timeline = Timeline(options.fallback_rate)
        self._fits = True
        self._broken = False
        try:
            self._film = WholeWrites(path)
            self._container = _open(self._film, path)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise SinkError(f"{path}: cannot be recorded ({_reason(error)})") from error
        self._stream = add_video_stream(self._container, self._size, options)

    def add(self, image: Image, ticks: int) -> None:
        """Encode one picture; ``ticks``: when it is shown, as ``timeline`` has just told."""
        if (image.shape[1], image.shape[0]) != self._size:
            self._say_once(image)
            image = fitted(image, self._size)
        width, height = self._size
        if width % 2 or height % 2:
            padded = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            image = np.asarray(padded, np.uint8)
        picture = av.VideoFrame.from_ndarray(
            np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), np.uint8), format="yuv420p"
        )
        picture.pts = ticks
        picture.time_base = Fraction(1, TICKS_PER_SECOND)
        picture.duration = self.timeline.step_ticks
        try:
            self._container.mux(self._stream.encode(picture))
        except (av.error.FFmpegError, OSError) as error:
            self._broken = True
            raise SinkError(self._failed(error)) from error

    def close(self) -> None:
        """Write what waits, and the index.

        Raises:
            LossError: that failed, where nothing had failed before.
        """
        try:
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            self._broken, told = True, self._broken
            if not told:
                raise LossError(self._failed(error)) from error
        finally:
            if not self._film.stands_at(self._path):
                log.warning("%s: was moved or removed while it was recorded; nothing of it is here", self._path)
            self._film.close()
            if self._broken and self._path.suffix.lower() == ".mp4":
                with suppress(OSError):  # somebody took it away meanwhile
                    cut_to_whole_fragments(self._path)

    def _failed(self, error: Exception) -> str:
        return f"{self._path}: recording failed ({_reason(error)}); what came before is kept. Free some room"

    def _say_once(self, image: Image) -> None:
        if self._fits:
            new = f"{image.shape[1]}x{image.shape[0]}"
            log.warning("%s: pictures are %s now; fitted into %dx%d with borders", self._path, new, *self._size)
        self._fits = False


def _open(film: WholeWrites, path: Path) -> OutputContainer:
    # Fragments are on their way to the disk at once.
    mp4 = {"movflags": "hybrid_fragmented", "frag_duration": str(_FRAGMENT_MICROSECONDS), "flush_packets": "1"}
    is_mp4 = path.suffix.lower() == ".mp4"
    return av.open(film, "w", format="mp4" if is_mp4 else "matroska", options=mp4 if is_mp4 else {})


def add_video_stream(container: OutputContainer, size: tuple[int, int], options: SinkOptions) -> VideoStream:
    """Give a container a stream of H.264 for pictures of ``size`` (width, height)."""
    # Without B-frames pictures leave in the order in which they came, and a killed run loses fewer of them.
    x264 = {"preset": options.video_preset, "crf": str(options.video_quality), "bf": "0"}
    stream = container.add_stream("libx264", rate=Fraction(options.fallback_rate).limit_denominator(1001), options=x264)
    width, height = size
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    stream.time_base = Fraction(1, TICKS_PER_SECOND)
    codec = stream.codec_context
    codec.time_base = Fraction(1, TICKS_PER_SECOND)
    codec.flags |= Flags.frame_duration  # or the last frame's length would be the declared rate's
    codec.gop_size = _KEYFRAME_FRAMES
    codec.thread_count = 1 if width * height <= _ONE_THREAD_PIXELS else 0
    codec.colorspace, codec.color_primaries, codec.color_trc = _MATRIX_BT601, _BT709, _BT709
    codec.color_range = _LIMITED_RANGE
    return stream


def fitted(image: Image, size: tuple[int, int]) -> Image:
    """Return the picture scaled into ``size`` (width, height), its shape kept, with black borders."""
    width, height = size
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    bordered = cv2.copyMakeBorder(
        small, top, height - inner[1] - top, left, width - inner[0] - left, cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )
    return np.asarray(bordered, np.uint8)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

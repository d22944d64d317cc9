"""Video sink: writes H.264 in MP4 or Matroska, one file per camera, with the timing of the frames.

The file is a fragmented MP4 while it grows (a killed run loses only the last second or two) and becomes a regular MP4
with an index when it is closed. Colours are BT.601, limited range, and the file is tagged accordingly.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
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
from av.packet import Packet
from av.video.stream import VideoStream

from overlays.h264 import ONE_THREAD_PIXELS, tag_colours, yuv_frame
from overlays.render.jpeg import bounded_image
from overlays.sinks.clips.fragments import AllOrNothingFile, truncate_to_last_fragment
from overlays.sinks.disk import DiskSink
from overlays.sinks.paths import camera_path, check_writable, paths_for
from overlays.sinks.settings import EncodingSettings, VideoSettings
from overlays.sinks.timeline import TICKS_PER_SECOND, Timeline
from pipeline.errors import FrameError, SinkError
from pipeline.frames import Image, Overlay
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_KEYFRAME_FRAMES: Final = 60
_FRAGMENT_MICROSECONDS: Final = 1_000_000


class VideoSink(DiskSink):
    """Writes ``*.mp4`` or ``*.mkv`` with every frame and its timing.

    If the run may have several cameras, each camera has its own file, ``out.<camera>.mp4``. An existing video is kept:
    the new file has the time in its name. All images of a video have the size of the first; others are fitted with a
    border. An image above the encoder's limits is reduced, and odd sides are padded by one pixel.

    After a failed write the run continues: the video ends at its last complete fragment, frames are counted as lost,
    and the sink creates a new file after 1 second, later after up to 30 seconds.
    """

    def __init__(
        self,
        settings: VideoSettings | Path | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the options; the first frame of a camera opens its file.

        Args:
            settings: the file, whose suffix selects the container, and the encoder's options.
            context: the expected cameras, if known; a single camera gets the given file, several cameras get files with
                their names.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.
        """
        self._settings = VideoSettings.of(settings)
        self._path = Path(self._settings.uri)
        super().__init__(self._settings.uri, self._path.parent, wall_clock, clock)
        self._paths = paths_for(self._path, (context or SinkContext()).cameras)
        self._replace = self._settings.mode == "replace"
        self._recordings: dict[str, _Recording] = {}
        self._interrupted: set[str] = set()
        """Cameras whose last recording has ended; their next recording gets a new file."""

    def __enter__(self) -> Self:
        for path in self._paths.values() or [self._path]:
            check_writable(path)
        self._reserve.fill()
        return self

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Return True: every frame is recorded."""
        return True

    def put(self, overlay: Overlay) -> None:
        """Record one frame.

        Raises:
            FrameError: this frame cannot be encoded; the sink continues. A refused write raises no error: it is tried
                again later.
            SinkError: another run writes the same file.
        """
        self._disk.refresh()
        if self._disk.in_backoff:
            self._disk.count_lost(1)
            return
        frame = overlay.explanation.frame
        recording = self._recordings.get(frame.camera)
        if recording is None:
            recording = self._begin(frame.camera, overlay.image)
        lost_seconds = 0.0 if overlay.signal_loss is None else overlay.signal_loss.seconds
        ticks = recording.timeline.ticks(frame.pts_seconds, frame.captured_at, silent_seconds=lost_seconds)
        try:
            recording.add(overlay.image, ticks)
        except OSError as error:
            self._recordings.pop(frame.camera, None)
            if error.errno == errno.EBUSY:
                raise SinkError(f"{recording.path}: {error.strerror}") from error
            self._interrupt(frame.camera, recording, error)
            return
        self._recordings[frame.camera] = recording
        if recording.has_fragments:
            self._disk.record_success()

    def forget_camera(self, camera: str) -> None:
        """Complete the video of a camera that left; if the camera returns, its next frame starts another file."""
        super().forget_camera(camera)
        recording = self._recordings.pop(camera, None)
        if recording is not None:
            self._close(camera, recording)
            self._interrupted.add(camera)  # ``replace`` must not replace the file of this run

    def _close(self, camera: str, recording: _Recording) -> None:
        try:
            recording.close()
        except OSError as failure:
            self._interrupt(camera, recording, failure)

    def _interrupt(self, camera: str, recording: _Recording, error: OSError) -> None:
        """End a recording that cannot be written; the camera's next recording gets a new file."""
        self._interrupted.add(camera)
        self._disk.count_lost(recording.pending_frames)
        self._disk.record_failure(error)
        recording.discard()

    def _begin(self, camera: str, image: Image) -> _Recording:
        """Begin the recording of a camera, in an unused file unless ``replace`` is set."""
        if camera not in self._paths:
            self._paths[camera] = camera_path(self._path, camera, set(self._paths.values()))
        path = self._paths[camera]
        is_further = camera in self._interrupted
        began = None if self._replace and not is_further else self._wall_clock()
        file = AllOrNothingFile(path, self._reserve, began, is_further=is_further)
        return _Recording(file, image, self._settings)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._reserve.close()
        for camera, recording in self._recordings.items():
            self._close(camera, recording)
        self._recordings.clear()
        self._report_losses(self.uri, "frames", kind)


class _Recording:
    """Recording of one camera into one file."""

    def __init__(self, file: AllOrNothingFile, image: Image, settings: EncodingSettings) -> None:
        self._file = file
        first = bounded_image(image)
        self._size = (first.shape[1], first.shape[0])
        self.timeline = Timeline(settings.fallback_rate)
        self._fits = True
        self._added = self._muxed = self._written = 0  # frames
        if first is not image:
            size = f"{image.shape[1]}x{image.shape[0]}"
            log.warning("%s: images are %s, more than can be encoded; recorded as %dx%d", file.path, size, *self._size)
        try:
            self._container = _open(self._file)
            self._stream = add_video_stream(self._container, self._size, settings)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise FrameError(f"{file.path}: cannot be recorded ({_reason(error)})") from error

    def add(self, image: Image, ticks: int) -> None:
        """Encode one image.

        Args:
            image: RGB, ``(height, width, 3)``, uint8.
            ticks: presentation time in ticks, from ``Timeline.ticks``.

        Raises:
            FrameError: the image cannot be encoded.
            OSError: the file cannot be written.
        """
        image = bounded_image(image)
        if (image.shape[1], image.shape[0]) != self._size:
            self._log_size_change(image)
            image = letterbox(image, self._size)
        frame = yuv_frame(image, ticks)
        frame.duration = self.timeline.step_ticks
        try:
            packets = list(self._stream.encode(frame))
        except (av.error.FFmpegError, ValueError) as error:
            size = f"{self._size[0]}x{self._size[1]}"
            raise FrameError(
                f"{self._file.path}: an image of {size} cannot be encoded ({_reason(error)}); see video_preset"
            ) from error
        self._added += 1
        self._mux(packets)

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        """Write packets. Raises ``OSError``."""
        try:
            self._file.open()
            before = self._file.tell()
            self._container.mux(packets)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise _as_os_error(error) from error
        if self._muxed and self._file.tell() > before:  # the frames before this one are on the disk
            self._written = self._muxed
        self._muxed += len(packets)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._file.path

    @property
    def has_fragments(self) -> bool:
        """True if at least one frame was written to the disk."""
        return self._written > 0

    @property
    def pending_frames(self) -> int:
        """Number of frames that were not written to the disk yet."""
        return self._added - self._written

    def close(self) -> None:
        """Write the frames that are still in the encoder, and the index. Raises ``OSError``; call ``discard`` then."""
        try:
            self._mux(self._stream.encode(None))
            self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            raise _as_os_error(error) from error
        self._written = self._added
        self._close_file()

    def discard(self) -> None:
        """Release a recording whose file cannot be written; keep its complete fragments."""
        with suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()
        path = self._file.path
        is_own = self._file.stands_at(path) and path.is_file()
        self._close_file()
        if not is_own:
            return
        with suppress(OSError):  # another program has deleted it
            is_playable = truncate_to_last_fragment(path) if path.suffix.lower() == ".mp4" else self.has_fragments
            if not is_playable:
                path.unlink()

    def _close_file(self) -> None:
        path = self._file.path
        if self._file.is_open and not self._file.stands_at(path):
            log.warning("%s: was moved or deleted during the recording; the recording is not at this path", path)
        self._file.close()

    def _log_size_change(self, image: Image) -> None:
        if self._fits:
            size = f"{image.shape[1]}x{image.shape[0]}"
            log.warning("%s: images are now %s; fitted into %dx%d with borders", self._file.path, size, *self._size)
        self._fits = False


def _open(file: AllOrNothingFile) -> OutputContainer:
    # Each fragment is flushed to the disk at once.
    mp4 = {"movflags": "hybrid_fragmented", "frag_duration": str(_FRAGMENT_MICROSECONDS), "flush_packets": "1"}
    is_mp4 = file.path.suffix.lower() == ".mp4"
    return av.open(file, "w", format="mp4" if is_mp4 else "matroska", options=mp4 if is_mp4 else {})


def add_video_stream(container: OutputContainer, size: tuple[int, int], settings: EncodingSettings) -> VideoStream:
    """Add an H.264 stream for images of ``size`` (width, height) to a container and return it."""
    # Without B-frames, packets keep the order of the images, and a killed run loses fewer frames.
    x264 = {"preset": settings.preset, "crf": str(settings.crf), "bf": "0"}
    rate = Fraction(settings.fallback_rate).limit_denominator(1001)
    stream = container.add_stream("libx264", rate=rate, options=x264)
    width, height = size
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    stream.time_base = Fraction(1, TICKS_PER_SECOND)
    codec = stream.codec_context
    codec.time_base = Fraction(1, TICKS_PER_SECOND)
    codec.flags |= Flags.frame_duration  # otherwise the last frame would last as long as the declared rate says
    codec.gop_size = _KEYFRAME_FRAMES
    codec.thread_count = 1 if width * height <= ONE_THREAD_PIXELS else 0
    tag_colours(codec)
    return stream


def letterbox(image: Image, size: tuple[int, int]) -> Image:
    """Return an image scaled to fit into ``size`` (width, height) with its aspect ratio, on a black background."""
    width, height = size
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    bordered = cv2.copyMakeBorder(
        small, top, height - inner[1] - top, left, width - inner[0] - left, cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )
    return np.asarray(bordered, np.uint8)


def _as_os_error(error: Exception) -> OSError:
    """Return an FFmpeg error as ``OSError``; errors with a system error number are ``OSError`` already."""
    return error if isinstance(error, OSError) else OSError(errno.EIO, _reason(error))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

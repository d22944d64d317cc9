"""Clip writer, the encoder that feeds it, and the pre-roll buffer of frames before an event.

The encoder runs without interruption, and clips are cut from its packets at requested key frames. A new clip therefore
neither loses nor repeats a frame. The pre-roll buffer stores encoded frames, about a hundredth of the size of images.
"""

from __future__ import annotations

import errno
import json
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import av.error
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType
from av.video.stream import VideoStream

from overlays.h264 import yuv_frame
from overlays.sinks.clips.fragments import AllOrNothingFile, truncate_to_last_fragment
from overlays.sinks.clips.store import part_of
from overlays.sinks.disk import HandleReserve
from overlays.sinks.settings import EncodingSettings
from overlays.sinks.timeline import TICKS_PER_SECOND
from overlays.sinks.video import add_video_stream
from pipeline.errors import FrameError
from pipeline.frames import Image

_FRAGMENT_MICROSECONDS: Final = 400_000
_CLIP_OVERHEAD_BYTES: Final = 4096
_FRAME_OVERHEAD_BYTES: Final = 64
"""Upper bounds of the container's overhead for a clip and for each frame: fragments, and the index at the end."""


@dataclass(slots=True)
class EncodedFrame:
    """One encoded frame and its log record."""

    packet: Packet[VideoStream]
    seconds: float
    """Time on the recorder's timeline of this camera."""
    taken_unix: float
    record: dict[str, object] | None
    """Log record; None for the repeated image of a camera with signal loss, which has no explanation."""
    record_bytes: int = 0
    missed: bool = False
    """True if the frame was counted as lost, because the disk refused it when it arrived."""

    @property
    def size_bytes(self) -> int:
        """Size in memory in bytes; the size on disk is nearly the same."""
        return self.packet.size + self.record_bytes + _FRAME_OVERHEAD_BYTES


class ClipEncoder:
    """H.264 encoder for one camera and one image size, without delay: it returns the packet of each image at once."""

    def __init__(self, size: tuple[int, int], settings: EncodingSettings) -> None:
        self.size = size
        self._container = av.open(os.devnull, "w", format="null")
        try:
            self.stream = add_video_stream(self._container, size, settings)
            self.stream.codec_context.options |= {"tune": "zerolatency"}
        except BaseException:
            self._container.close()
            raise

    def encode(self, image: Image, ticks: int, step_ticks: int, *, key: bool) -> list[Packet[VideoStream]]:
        """Encode one image.

        Args:
            image: RGB, ``(height, width, 3)``, uint8.
            ticks: presentation time in ticks of 1/90000 s.
            step_ticks: duration in ticks of 1/90000 s.
            key: whether to request a key frame, at which a clip can begin.

        Returns:
            The packets that are ready.

        Raises:
            FrameError: the encoder refused the image.
        """
        frame = yuv_frame(image, ticks)
        frame.duration = step_ticks
        if key:
            frame.pict_type = PictureType.I
        try:
            return list(self.stream.encode(frame))
        except (av.error.FFmpegError, ValueError) as error:
            size = f"{self.size[0]}x{self.size[1]}"
            raise FrameError(f"an image of {size} cannot be encoded ({error}); see video_preset") from error

    def close(self) -> None:
        """Release the encoder."""
        self._container.close()


class ClipWriter:
    """An open clip and the log beside it. Raises ``OSError`` if the disk refuses a write."""

    def __init__(
        self, path: Path, stream: VideoStream, first: EncodedFrame, reserve: HandleReserve | None = None
    ) -> None:
        self.path = path
        self.began_seconds = first.seconds
        self.bytes = _CLIP_OVERHEAD_BYTES
        self._origin = first.packet.pts or 0
        self._log_path = path.with_suffix(".jsonl")
        self._log_bytes = 0
        self._log = AllOrNothingFile(part_of(self._log_path), reserve)
        self._video = AllOrNothingFile(part_of(path), reserve)
        self._log.open()
        try:
            self._video.open()
        except OSError:
            self._log.close()
            part_of(self._log_path).unlink(missing_ok=True)
            raise
        # A fragmented MP4 while it grows, each fragment flushed to the disk at once; a regular MP4 after closing.
        options = {
            "movflags": "hybrid_fragmented",
            "frag_duration": str(_FRAGMENT_MICROSECONDS),
            "flush_packets": "1",
        }
        self._container: OutputContainer = av.open(self._video, "w", format="mp4", options=options)
        self._stream = self._container.add_stream_from_template(stream)
        self._stream.time_base = Fraction(1, TICKS_PER_SECOND)
        self._broken = False
        self.frames = 0

    def add(self, frame: EncodedFrame) -> None:
        """Write one frame and its log record."""
        packet = frame.packet
        packet.pts = packet.dts = (packet.pts or 0) - self._origin
        packet.stream = self._stream
        self.bytes += frame.size_bytes
        if frame.record is not None:
            record = {**frame.record, "clip_seconds": round(frame.seconds - self.began_seconds, 6)}
            self._write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        try:
            self._container.mux(packet)
        except OSError:
            self._broken = True
            raise
        self.frames += 1

    def close(self) -> None:
        """Finish both files and rename them to their final names, as far as the disk allows.

        Raises:
            OSError: the disk refused the index at the end of the video; it can still be played.
        """
        failure: OSError | None = None
        plays = False
        try:
            self._container.close()
        except OSError as error:
            failure = error
        except av.error.FFmpegError as error:
            failure = OSError(errno.EIO, str(error))
        self._log.close()
        self._video.close()
        with suppress(FileNotFoundError):
            incomplete = self._broken or failure is not None
            plays = self.frames > 0 and (not incomplete or truncate_to_last_fragment(part_of(self.path)))
        for path in (self.path, self._log_path):
            with suppress(FileNotFoundError):  # another program has deleted it
                part_of(path).rename(path) if plays else part_of(path).unlink()
        if failure is not None:
            raise failure

    def _write(self, line: bytes) -> None:
        """Write the whole line or nothing."""
        try:
            self._log.write(line)
        except OSError:
            with suppress(OSError):
                self._log.truncate(self._log_bytes)
            raise
        self._log_bytes += len(line)


class PreRollBuffer:
    """Encoded frames of the last seconds, in groups that start with a key frame, up to a maximum size in bytes."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.overran = False
        """True if frames younger than ``seconds`` were dropped because of ``max_bytes``."""
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._bytes = 0
        self._groups: deque[list[EncodedFrame]] = deque()

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def bytes(self) -> int:
        """Size of the buffered frames in bytes."""
        return self._bytes

    def add(self, frame: EncodedFrame) -> None:
        """Append one frame; drop whole groups that are too old or exceed ``max_bytes``."""
        if frame.packet.is_keyframe:
            self._groups.append([])
        if not self._groups:
            return
        self._groups[-1].append(frame)
        self._bytes += frame.size_bytes
        while len(self._groups) > 1 and self._groups[1][0].seconds <= frame.seconds - self._seconds:
            self._drop_oldest()
        while self._groups and self._bytes > self._max_bytes:
            self._drop_oldest()
            self.overran = True

    def take(self) -> list[EncodedFrame]:
        """Return all frames, oldest first, and empty the buffer."""
        frames = [frame for group in self._groups for frame in group]
        self._groups.clear()
        self._bytes = 0
        return frames

    def _drop_oldest(self) -> None:
        self._bytes -= sum(frame.size_bytes for frame in self._groups.popleft())

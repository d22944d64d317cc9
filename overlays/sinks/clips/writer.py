"""One clip while it is written, the encoder that feeds it, and the ring of what came before an event.

The encoder runs through; clips are cut out of what it gives, at key pictures that are asked for. So a rotation loses no
frame and repeats none, and the seconds before an event cost what they weigh encoded: a hundredth of their pictures.
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
import cv2
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType
from av.video.stream import VideoStream

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
"""Container bytes of a clip, and of each of its frames, at the most: fragments, and the index at its end."""


@dataclass(slots=True)
class EncodedFrame:
    """One encoded frame and its line of the log."""

    packet: Packet[VideoStream]
    seconds: float
    """On the recorder's timeline of this camera."""
    taken_unix: float
    record: dict[str, object] | None
    """None for the picture of a camera that has gone silent: nothing was explained."""
    record_bytes: int = 0
    missed: bool = False
    """Whether it was counted as lost, because the disk took none when it came."""

    @property
    def size_bytes(self) -> int:
        """What it takes in memory and, nearly, on the disk."""
        return self.packet.size + self.record_bytes + _FRAME_OVERHEAD_BYTES


class ClipEncoder:
    """H.264 for one camera and one size: a picture in, its packet out at once."""

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
        """Return the picture's packet; ``key`` asks for one at which a clip can begin.

        Raises:
            FrameError: the encoder refused.
        """
        width, height = self.size
        if width % 2 or height % 2:
            image = np.asarray(cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)
        planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), np.uint8)
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts, picture.duration = ticks, step_ticks
        picture.time_base = Fraction(1, TICKS_PER_SECOND)
        if key:
            picture.pict_type = PictureType.I
        try:
            return list(self.stream.encode(picture))
        except (av.error.FFmpegError, ValueError) as error:
            raise FrameError(f"a picture of {width}x{height} cannot be encoded ({error}); see video_preset") from error

    def close(self) -> None:
        """Free it."""
        self._container.close()


class ClipWriter:
    """An open clip and the log beside it. Raises ``OSError`` where the disk does not take them."""

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
        self._film = AllOrNothingFile(part_of(path), reserve)
        self._log.open()
        try:
            self._film.open()
        except OSError:
            self._log.close()
            part_of(self._log_path).unlink(missing_ok=True)
            raise
        # A fragmented MP4 while it grows, each fragment on its way to the disk at once; an ordinary one when closed.
        options = {
            "movflags": "hybrid_fragmented",
            "frag_duration": str(_FRAGMENT_MICROSECONDS),
            "flush_packets": "1",
        }
        self._container: OutputContainer = av.open(self._film, "w", format="mp4", options=options)
        self._stream = self._container.add_stream_from_template(stream)
        self._stream.time_base = Fraction(1, TICKS_PER_SECOND)
        self._broken = False
        self.frames = 0

    def add(self, coded: EncodedFrame) -> None:
        """Write one frame and its line."""
        packet = coded.packet
        packet.pts = packet.dts = (packet.pts or 0) - self._origin
        packet.stream = self._stream
        self.bytes += coded.size_bytes
        if coded.record is not None:
            shown = {**coded.record, "clip_seconds": round(coded.seconds - self.began_seconds, 6)}
            self._write(json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        try:
            self._container.mux(packet)
        except OSError:
            self._broken = True
            raise
        self.frames += 1

    def close(self) -> None:
        """Finish both files and give them their names, as far as the disk takes it.

        Raises:
            OSError: the video has no index at its end; it plays all the same.
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
        self._film.close()
        with suppress(FileNotFoundError):
            hurt = self._broken or failure is not None
            plays = self.frames > 0 and (not hurt or truncate_to_last_fragment(part_of(self.path)))
        for path in (self.path, self._log_path):
            with suppress(FileNotFoundError):  # somebody took it away meanwhile
                part_of(path).rename(path) if plays else part_of(path).unlink()
        if failure is not None:
            raise failure

    def _write(self, line: bytes) -> None:
        """Write a whole line or none."""
        try:
            self._log.write(line)
        except OSError:
            with suppress(OSError):
                self._log.truncate(self._log_bytes)
            raise
        self._log_bytes += len(line)


class PreRollBuffer:
    """The last seconds, encoded, bounded in bytes: from key picture to key picture, so that a clip can begin there."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.overran = False
        """Whether the bound, not the time, has made it forget."""
        self._seconds = seconds
        self._most_bytes = max_bytes
        self._bytes = 0
        self._groups: deque[list[EncodedFrame]] = deque()

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def bytes(self) -> int:
        """What it holds."""
        return self._bytes

    def add(self, coded: EncodedFrame) -> None:
        """Keep one frame; forget whole groups that nobody needs any more, or that there is no room for."""
        if coded.packet.is_keyframe:
            self._groups.append([])
        if not self._groups:
            return
        self._groups[-1].append(coded)
        self._bytes += coded.size_bytes
        while len(self._groups) > 1 and self._groups[1][0].seconds <= coded.seconds - self._seconds:
            self._forget()
        while self._groups and self._bytes > self._most_bytes:
            self._forget()
            self.overran = True

    def take(self) -> list[EncodedFrame]:
        """Return what it holds, and hold nothing."""
        held = [coded for group in self._groups for coded in group]
        self._groups.clear()
        self._bytes = 0
        return held

    def _forget(self) -> None:
        self._bytes -= sum(coded.size_bytes for coded in self._groups.popleft())

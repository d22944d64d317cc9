"""Clip sink: records all frames, or frames that meet a condition, as a series of clips in ``FOLDER/``.

A new clip begins after a maximum time or size. The oldest clips are deleted to stay within a disk budget. A full disk
ends a clip, but never the stream.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import av.error

from overlays.render.jpeg import bounded_image
from overlays.sinks.clips.store import ClipStore
from overlays.sinks.clips.writer import ClipEncoder, ClipWriter, EncodedFrame, PreRollBuffer
from overlays.sinks.disk import NO_HANDLES, DiskSink
from overlays.sinks.settings import ClipSettings
from overlays.sinks.timeline import TICKS_PER_SECOND, Timeline
from overlays.sinks.video import letterbox
from pipeline.errors import FrameError
from pipeline.frames import Image, Overlay
from pipeline.guards.parser import parse_condition
from pipeline.ports import MetricSample
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_KEY_SECONDS: Final = 1.0
"""Interval of key frames if only events are recorded: a clip can begin only at a key frame."""
_ROUNDING_SECONDS: Final = 1e-6
_HELD_SECONDS: Final = 10.0
"""Length of the pre-roll buffer without a condition: it stores frames while no clip can be opened."""
_MIN_SIZE_SECONDS: Final = 10.0
"""Minimum time that clips of a camera keep their image size after a change."""
_NEVER: Final = float("-inf")


@dataclass
class _Track:
    """State of the recording of one camera."""

    timeline: Timeline
    ring: PreRollBuffer
    encoder: ClipEncoder | None = None
    clip: ClipWriter | None = None
    pending: list[tuple[float, float, dict[str, object] | None, int]] = field(default_factory=list)
    """Frames inside the encoder: (seconds, taken_unix, record, record bytes)."""
    record_until: float = _NEVER
    key_at: float = _NEVER
    resized_at: float = _NEVER


class ClipSink(DiskSink):
    """Writes clips into ``FOLDER/``, one series per camera, each clip with its ``.jsonl``.

    Without a condition, all frames are recorded. With a condition, a clip begins ``seconds_before`` the first frame
    that meets the condition, at the key frame before that time (up to one second earlier). It ends ``seconds_after``
    the last frame that meets the condition.
    """

    def __init__(
        self,
        settings: ClipSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options; ``__enter__`` opens the folder.

        Args:
            settings: the folder, the limits of clips, and the condition.
            context: the expected cameras, if known; their clips of earlier runs count against the budget.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.

        Raises:
            ConfigError: the condition cannot be parsed.
        """
        self._settings = ClipSettings.of(settings)
        uri = self._settings.uri
        super().__init__(uri, Path(uri), wall_clock, clock)
        when = self._settings.record_when
        self._condition = None if when is None else parse_condition(when)
        self._store = ClipStore(Path(uri), self._settings.budget_bytes)
        for camera in (context or SinkContext()).cameras:
            self._store.add_camera(camera)
        self._tracks: dict[str, _Track] = {}
        self._bounded: set[str] = set()
        """Cameras for which a smaller size of recorded images was logged."""
        self._fitted: set[str] = set()
        """Cameras for which repeated changes of the image size were logged."""

    def __enter__(self) -> Self:
        self._store.open()
        self._reserve.fill()
        self._store.rescan({})
        self._store.enforce_budget(0)
        self._disk.refresh()
        return self

    def metrics(self) -> list[MetricSample]:
        """Return the state of the disk and the bytes in use."""
        labels = (("sink", self.uri),)
        used = self._store.known_bytes + self._open_bytes()
        samples = [MetricSample("recorder_bytes", used, "Disk space of a recorder's clips, in bytes.", labels=labels)]
        if (budget := self._settings.budget_bytes) is not None:
            help_text = "Maximum disk space of a recorder's clips, in bytes."
            samples.append(MetricSample("recorder_budget_bytes", budget, help_text, labels=labels))
        return [*samples, *super().metrics()]

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Return True, because a later frame may decide that this frame is recorded."""
        return True

    def put(self, overlay: Overlay) -> None:
        """Record one frame, or buffer it in case an event follows.

        Raises:
            FrameError: this frame cannot be encoded; the sink continues with the next frame. A full disk raises no
                error: it is logged, and writing is tried again later.
        """
        camera = overlay.explanation.frame.camera
        track = self._tracks.get(camera)
        if track is None:
            self._store.add_camera(camera)
            timeline = Timeline(self._settings.fallback_rate)
            before = self._settings.seconds_before if self._condition else _HELD_SECONDS
            track = self._tracks[camera] = _Track(timeline, PreRollBuffer(before, self._settings.preroll_bytes))
        self._disk.refresh()
        if self._condition is None and self._disk.in_backoff:
            self._disk.count_lost(1)
            return
        for encoded in self._encode(track, overlay):
            if self._is_recorded(track, encoded.seconds):
                self._write(camera, track, encoded)
            else:
                self._end_clip(track)
                overran = track.ring.overran
                track.ring.add(encoded)
                if track.ring.overran and not overran:
                    log.warning(
                        "%s: %s: %g s before an event do not fit into %d MiB; the newest frames are kept",
                        self.uri,
                        camera,
                        self._settings.seconds_before,
                        self._settings.preroll_bytes >> 20,
                    )

    def find_clip(self, camera: str, start_unix: float, end_unix: float) -> Path | None:
        """Return the finished clip that shows the start of a time span of a camera, or else its first part.

        For any thread.
        """
        return self._store.find(camera, start_unix, end_unix)

    def forget_camera(self, camera: str) -> None:
        """Complete the clip of a camera that left. The camera's clips still count against the budget."""
        super().forget_camera(camera)
        if (track := self._tracks.pop(camera, None)) is not None:
            self._end(track)

    def _end(self, track: _Track) -> None:
        self._end_clip(track)
        if track.encoder is not None:
            track.encoder.close()

    def __exit__(self, *_: object) -> None:
        for track in self._tracks.values():
            self._end(track)
        self._tracks.clear()
        self._reserve.close()
        self._disk.close()

    def _is_recorded(self, track: _Track, seconds: float) -> bool:
        return self._condition is None or seconds <= track.record_until

    def _encode(self, track: _Track, overlay: Overlay) -> list[EncodedFrame]:
        """Encode a frame, update the event state, and end the clip if it must end before this frame."""
        frame = overlay.explanation.frame
        lost_seconds = 0.0 if overlay.signal_loss is None else overlay.signal_loss.seconds
        ticks = track.timeline.ticks(frame.pts_seconds, frame.captured_at, silent_seconds=lost_seconds)
        seconds = ticks / TICKS_PER_SECOND
        if self._condition is not None and overlay.signal_loss is None and self._condition(overlay.explanation):
            track.record_until = seconds + self._settings.seconds_after
        record, size = None, 0
        if overlay.signal_loss is None:
            record, line = self._record(overlay)
            size = len(line)
        taken_unix = self._wall_clock() - (self._clock() - frame.captured_at) + lost_seconds
        image = self._in_lasting_size(track, self._bounded_image(overlay), seconds, frame.camera)
        encoder = self._encoder(track, (image.shape[1], image.shape[0]))
        if track.clip is not None and (not self._is_recorded(track, seconds) or self._is_full(track.clip, seconds)):
            self._end_clip(track)
        key = (track.clip is None and not track.ring) or (
            self._condition is not None and seconds - track.key_at >= _KEY_SECONDS
        )
        track.key_at = seconds if key else track.key_at
        track.pending.append((seconds, taken_unix, record, size))
        try:
            packets = encoder.encode(image, ticks, track.timeline.step_ticks, key=key)
        except FrameError:
            track.pending.pop()
            if track.clip is None:  # the encoder may be broken; the next frame gets a new encoder
                self._forget_encoder(track)
            raise
        return [EncodedFrame(packet, *track.pending.pop(0)) for packet in packets]

    def _encoder(self, track: _Track, size: tuple[int, int]) -> ClipEncoder:
        """Return the encoder of the camera; a change of image size ends the clip and creates a new encoder."""
        if track.encoder is not None and track.encoder.size != size:
            self._end_clip(track)
            self._forget_encoder(track)
        if track.encoder is None:
            try:
                track.encoder = self._reserve.opened(lambda: ClipEncoder(size, self._settings))
            except (av.error.FFmpegError, OSError, ValueError) as error:
                raise FrameError(f"{self.uri}: cannot be recorded ({error})") from error
        return track.encoder

    def _forget_encoder(self, track: _Track) -> None:
        track.ring.take()
        track.pending.clear()
        if track.encoder is not None:
            track.encoder.close()
        track.encoder = None

    def _bounded_image(self, overlay: Overlay) -> Image:
        """Return the image in a size that can be encoded; log once per camera if it is reduced."""
        image, camera = bounded_image(overlay.image), overlay.explanation.frame.camera
        if image is not overlay.image and camera not in self._bounded:
            self._bounded.add(camera)
            height, width = overlay.image.shape[:2]
            log.warning("%s: %s: images are %dx%d, more than can be encoded; recorded as %dx%d",
                        self.uri, camera, width, height, image.shape[1], image.shape[0])  # fmt: skip
        return image

    def _in_lasting_size(self, track: _Track, image: Image, seconds: float, camera: str) -> Image:
        """Return the image, scaled to the previous size if the size has changed only recently.

        Each change of size begins a clip, so a camera that changes the size with every image would create many clips.
        """
        size = (image.shape[1], image.shape[0])
        if track.encoder is None or track.encoder.size == size:
            return image
        if 0 <= seconds - track.resized_at < _MIN_SIZE_SECONDS:
            if camera not in self._fitted:
                self._fitted.add(camera)
                log.warning("%s: %s: images change their size repeatedly; they are fitted into one size for %g s each, "
                            "with borders", self.uri, camera, _MIN_SIZE_SECONDS)  # fmt: skip
            return letterbox(image, track.encoder.size)
        track.resized_at = seconds
        return image

    def _is_full(self, clip: ClipWriter, seconds: float) -> bool:
        limits = [b for b in (self._settings.rotate_bytes, self._store.longest_clip_bytes()) if b is not None]
        too_long = (
            self._settings.rotate_seconds is not None
            and seconds - clip.began_seconds >= self._settings.rotate_seconds - _ROUNDING_SECONDS
        )
        return too_long or any(clip.bytes >= limit for limit in limits)

    def _write(self, camera: str, track: _Track, encoded: EncodedFrame) -> None:
        """Write a frame; if it begins a clip, write the pre-roll buffer before it."""
        if self._disk.in_backoff:
            self._abandon_clip(track)  # decoders show wrong images after a missing frame
            self._count_missed([encoded])
            track.ring.add(encoded)
            return
        frames = [encoded]
        if track.clip is None:
            track.ring.add(encoded)
            frames = track.ring.take()
        written = 0
        try:
            for frame in frames:
                if track.clip is None:
                    track.clip = self._begin_clip(camera, track, frame)
                track.clip.add(frame)
                written += 1
            self._store.enforce_budget(self._open_bytes())
        except OSError as error:
            self._handle_disk_error(track, error)
            if error.errno in NO_HANDLES:  # buffer the frames, so that the next clip has no gap
                self._buffer(track, frames[written:])
        self._count_missed(frames[written:])
        self._disk.count_lost(-sum(frame.missed for frame in frames[:written]))
        if written and written == len(frames):
            self._disk.record_success()

    def _buffer(self, track: _Track, frames: list[EncodedFrame]) -> None:
        """Buffer frames for the next clip, if a clip can begin with the first of them."""
        if frames and frames[0].packet.is_keyframe and not track.ring:
            for frame in frames:
                track.ring.add(frame)

    def _count_missed(self, frames: list[EncodedFrame]) -> None:
        self._disk.count_lost(sum(not frame.missed for frame in frames))
        for frame in frames:
            frame.missed = True

    def _begin_clip(self, camera: str, track: _Track, first: EncodedFrame) -> ClipWriter:
        assert track.encoder is not None  # noqa: S101 - it made the packet
        self._reserve.opened(lambda: self._store.rescan(self._open_clips()))
        return ClipWriter(self._store.new_path(camera, first.taken_unix), track.encoder.stream, first, self._reserve)

    def _end_clip(self, track: _Track) -> None:
        if track.clip is None:
            return
        clip, track.clip = track.clip, None
        try:
            clip.close()
            self._reserve.opened(lambda: self._store.rescan(self._open_clips()))
        except OSError as error:
            self._handle_disk_error(track, error)

    def _handle_disk_error(self, track: _Track, error: OSError) -> None:
        """Close the clip and start the wait before the next attempt."""
        self._disk.record_failure(error)
        self._abandon_clip(track)

    def _abandon_clip(self, track: _Track) -> None:
        """Close the clip after a disk error. A further error is only logged: the first one is reported."""
        clip, track.clip = track.clip, None
        if clip is not None:
            try:
                clip.close()
            except OSError as failure:
                log.debug("%s: %s", clip.path, failure)

    def _open_clips(self) -> dict[Path, int]:
        clips = [track.clip for track in list(self._tracks.values())]  # a copy: any thread may read the metrics
        return {clip.path: clip.bytes for clip in clips if clip is not None}

    def _open_bytes(self) -> int:
        return sum(self._open_clips().values())

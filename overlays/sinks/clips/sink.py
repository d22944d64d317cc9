"""The recorder of clips: ``FOLDER/``, one file after the other, all of it or only what was worth it.

Clips are rotated by time and size, the oldest make room for new ones within a budget, and a full disk ends a clip but
never the stream.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av.error

from overlays.render.jpeg import bounded_image
from overlays.sinks.clips.store import ClipStore
from overlays.sinks.clips.writer import ClipEncoder, ClipWriter, EncodedFrame, PreRollBuffer
from overlays.sinks.disk import NO_HANDLES, DiskMonitor, HandleReserve
from overlays.sinks.settings import ClipSettings
from overlays.sinks.timeline import TICKS_PER_SECOND, Timeline
from overlays.sinks.video import letterbox
from overlays.wire.message import explanation_record, record_bytes
from pipeline.errors import FrameError
from pipeline.frames import Image, Overlay
from pipeline.guards.parser import parse_condition
from pipeline.ports import MetricSample
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_KEY_SECONDS: Final = 1.0
"""Where only events are recorded, a clip can begin this often."""
_ROUNDING_SECONDS: Final = 1e-6
_HELD_SECONDS: Final = 10.0
"""What is held of a recording that cannot be opened for a moment: it goes into the next clip."""
_MIN_SIZE_SECONDS: Final = 10.0
"""How long a camera's clips keep their size at the least, once it has changed."""
_NO_WANTED: Final = float("-inf")


@dataclass
class _Track:
    """What the recorder keeps of one camera."""

    timeline: Timeline
    ring: PreRollBuffer
    encoder: ClipEncoder | None = None
    clip: ClipWriter | None = None
    waiting: list[tuple[float, float, dict[str, object] | None, int]] = field(default_factory=list)
    """Frames in the encoder: (seconds, taken_unix, record, its bytes)."""
    wanted_until: float = _NO_WANTED
    key_at: float = _NO_WANTED
    resized_at: float = _NO_WANTED


class ClipSink:
    """Writes clips into ``FOLDER/``, one set for each camera, each clip with its ``.jsonl``.

    Without a condition everything is recorded. With one, a clip begins ``seconds_before`` the first frame that meets it
    (at the key picture before that, up to a second earlier) and ends ``seconds_after`` the last.
    """

    lossless = True

    def __init__(
        self,
        settings: ClipSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to write.

        Args:
            settings: the folder, when clips end, and what is recorded.
            context: its cameras, where they are known: their clips of earlier runs count against the budget.
            wall_clock: Unix time.
            clock: monotonic seconds.

        Raises:
            ConfigError: the condition cannot be read.
        """
        self._settings = ClipSettings.of(settings)
        self.uri = uri = self._settings.uri
        when = self._settings.record_when
        self._condition = None if when is None else parse_condition(when)
        self._store = ClipStore(Path(uri), self._settings.budget_bytes)
        for camera in (context or SinkContext()).cameras:
            self._store.add_camera(camera)
        self._tracks: dict[str, _Track] = {}
        self._wall_clock, self._clock = wall_clock, clock
        self._disk = DiskMonitor(uri, Path(uri), clock)
        self._reserve = HandleReserve()
        self._bounded: set[str] = set()
        """Cameras of which it was said that their pictures are recorded smaller."""
        self._fitted: set[str] = set()
        """Cameras of which it was said that they change their size again and again."""

    def __enter__(self) -> Self:
        self._store.open()
        self._reserve.fill()
        self._store.rescan({})
        self._store.enforce_budget(0)
        self._disk.refresh()
        return self

    @property
    def lost(self) -> int:
        """Frames that should have been recorded while the disk took none."""
        return self._disk.lost

    @property
    def problem(self) -> str:
        """Why nothing is recorded, in words; empty while all is."""
        return self._disk.problem

    def metrics(self) -> list[MetricSample]:
        """Return how the disk does, and what lies on it."""
        here = (("sink", self.uri),)
        held = self._store.known_bytes + self._open_bytes()
        told = [MetricSample("recorder_bytes", held, "What a recorder's clips take on the disk.", labels=here)]
        if (budget := self._settings.budget_bytes) is not None:
            told.append(MetricSample("recorder_budget_bytes", budget, "What they may take at the most.", labels=here))
        return [*told, *self._disk.metrics()]

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say yes: whether a frame belongs to an event may only be known later."""
        return True

    def idle(self) -> None:
        """Do nothing: a file can wait."""

    def put(self, overlay: Overlay) -> None:
        """Record one frame, or keep it in case an event follows.

        Raises:
            FrameError: this frame cannot be encoded; the next one is tried. A disk that is full is no reason: it is
                said, and tried again.
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
        for coded in self._coded(track, overlay):
            if self._wanted(track, coded.seconds):
                self._keep(camera, track, coded)
            else:
                self._end_clip(track)
                overran = track.ring.overran
                track.ring.add(coded)
                if track.ring.overran and not overran:
                    log.warning(
                        "%s: %s: %g s before an event do not fit into %d MiB; the newest are kept",
                        self.uri,
                        camera,
                        self._settings.seconds_before,
                        self._settings.preroll_bytes >> 20,
                    )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for track in self._tracks.values():
            self._end_clip(track)
            if track.encoder is not None:
                track.encoder.close()
        self._tracks.clear()
        self._reserve.close()
        self._disk.close()

    def _wanted(self, track: _Track, seconds: float) -> bool:
        return self._condition is None or seconds <= track.wanted_until

    def _coded(self, track: _Track, overlay: Overlay) -> list[EncodedFrame]:
        """Encode a frame; note whether it is an event; cut where a clip should end before it."""
        frame = overlay.explanation.frame
        passed = 0.0 if overlay.signal_loss is None else overlay.signal_loss.seconds
        ticks = track.timeline.ticks(frame.pts_seconds, frame.captured_at, silent_seconds=passed)
        seconds = ticks / TICKS_PER_SECOND
        if self._condition is not None and overlay.signal_loss is None and self._condition(overlay.explanation):
            track.wanted_until = seconds + self._settings.seconds_after
        record, size = None, 0
        now, unix = self._clock(), self._wall_clock()
        if overlay.signal_loss is None:
            record = explanation_record(overlay.explanation, sent_at_unix=unix, now_monotonic=now)
            size = len(record_bytes(record))
        taken_unix = unix - (now - frame.captured_at) + passed
        image = self._in_lasting_size(track, self._bounded_image(overlay), seconds, frame.camera)
        encoder = self._encoder(track, (image.shape[1], image.shape[0]))
        if track.clip is not None and (not self._wanted(track, seconds) or self._is_full(track.clip, seconds)):
            self._end_clip(track)
        key = (track.clip is None and not track.ring) or (
            self._condition is not None and seconds - track.key_at >= _KEY_SECONDS
        )
        track.key_at = seconds if key else track.key_at
        track.waiting.append((seconds, taken_unix, record, size))
        try:
            packets = encoder.encode(image, ticks, track.timeline.step_ticks, key=key)
        except FrameError:
            track.waiting.pop()
            if track.clip is None:  # it may be the encoder that is broken; another one is made for the next frame
                self._forget_encoder(track)
            raise
        return [EncodedFrame(packet, *track.waiting.pop(0)) for packet in packets]

    def _encoder(self, track: _Track, size: tuple[int, int]) -> ClipEncoder:
        """Return the camera's encoder; a change of size ends the clip and begins another."""
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
        track.waiting.clear()
        if track.encoder is not None:
            track.encoder.close()
        track.encoder = None

    def _bounded_image(self, overlay: Overlay) -> Image:
        """Return the picture as large as it can be encoded, and say so once where that is smaller."""
        image, camera = bounded_image(overlay.image), overlay.explanation.frame.camera
        if image is not overlay.image and camera not in self._bounded:
            self._bounded.add(camera)
            height, width = overlay.image.shape[:2]
            log.warning("%s: %s: pictures are %dx%d, more than can be encoded; recorded as %dx%d",
                        self.uri, camera, width, height, image.shape[1], image.shape[0])  # fmt: skip
        return image

    def _in_lasting_size(self, track: _Track, image: Image, seconds: float, camera: str) -> Image:
        """Return the picture, fitted into the size of those before it where that has changed a moment ago.

        Each change begins a clip: a camera that changes it with every picture would fill the folder with them.
        """
        size = (image.shape[1], image.shape[0])
        if track.encoder is None or track.encoder.size == size:
            return image
        if 0 <= seconds - track.resized_at < _MIN_SIZE_SECONDS:
            if camera not in self._fitted:
                self._fitted.add(camera)
                log.warning("%s: %s: pictures change their size again and again; they are fitted into one size for "
                            "%g s each, with borders", self.uri, camera, _MIN_SIZE_SECONDS)  # fmt: skip
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

    def _keep(self, camera: str, track: _Track, coded: EncodedFrame) -> None:
        """Write a frame, with what came before it where it begins a clip."""
        if self._disk.in_backoff:
            self._leave_clip(track)  # a clip with a hole shows wrong pictures behind it
            self._lose([coded])
            track.ring.add(coded)
            return
        held = [coded]
        if track.clip is None:
            track.ring.add(coded)
            held = track.ring.take()
        written = 0
        try:
            for one in held:
                if track.clip is None:
                    track.clip = self._begin_clip(camera, track, one)
                track.clip.add(one)
                written += 1
            self._store.enforce_budget(self._open_bytes())
        except OSError as error:
            self._refused(track, error)
            if error.errno in NO_HANDLES:  # the next frame tries again, so that nothing is missing in between
                self._hold(track, held[written:])
        self._lose(held[written:])
        self._disk.count_lost(-sum(one.missed for one in held[:written]))
        if written and written == len(held):
            self._disk.record_success()

    def _hold(self, track: _Track, frames: list[EncodedFrame]) -> None:
        """Keep frames that no clip took for the next one, where it can begin with the first of them."""
        if frames and frames[0].packet.is_keyframe and not track.ring:
            for one in frames:
                track.ring.add(one)

    def _lose(self, frames: list[EncodedFrame]) -> None:
        self._disk.count_lost(sum(not one.missed for one in frames))
        for one in frames:
            one.missed = True

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
            self._refused(track, error)

    def _refused(self, track: _Track, error: OSError) -> None:
        """Close what is open, and try again later."""
        self._disk.record_failure(error)
        self._leave_clip(track)

    def _leave_clip(self, track: _Track) -> None:
        """Close what is open as far as the disk takes it; that it does not take all is known."""
        clip, track.clip = track.clip, None
        if clip is not None:
            try:
                clip.close()
            except OSError as failure:
                log.debug("%s: %s", clip.path, failure)

    def _open_clips(self) -> dict[Path, int]:
        clips = [track.clip for track in list(self._tracks.values())]  # a copy: any thread may ask for figures
        return {clip.path: clip.bytes for clip in clips if clip is not None}

    def _open_bytes(self) -> int:
        return sum(self._open_clips().values())

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

from overlays.condition import parse_condition
from overlays.sinks.clip import Clip, ClipEncoder, Coded, Ring
from overlays.sinks.options import ClipOptions, SinkOptions
from overlays.sinks.shelf import Shelf
from overlays.sinks.timeline import TICKS_PER_SECOND, Timeline
from overlays.wire import explanation_record, record_bytes
from pipeline.errors import SinkError
from pipeline.frames import Overlay

log = logging.getLogger(__name__)

_KEY_SECONDS: Final = 1.0
"""Where only events are recorded, a clip can begin this often."""
_RETRY_SECONDS: Final = (1.0, 30.0)
"""How soon a full disk is tried again: first, and at the longest."""
_ROUNDING_SECONDS: Final = 1e-6
_NO_WANTED: Final = float("-inf")


@dataclass
class _Track:
    """What the recorder keeps of one camera."""

    timeline: Timeline
    ring: Ring
    encoder: ClipEncoder | None = None
    clip: Clip | None = None
    waiting: list[tuple[float, float, dict[str, object] | None, int]] = field(default_factory=list)
    """Frames in the encoder: (seconds, taken_unix, record, its bytes)."""
    wanted_until: float = _NO_WANTED
    key_at: float = _NO_WANTED


class ClipsSink:
    """Writes clips into ``FOLDER/``, one set for each camera, each clip with its ``.jsonl``.

    Without a condition everything is recorded. With one, a clip begins ``seconds_before`` the first frame that meets it
    (at the key picture before that, up to a second earlier) and ends ``seconds_after`` the last.
    """

    lossless = True

    def __init__(
        self,
        uri: str,
        *,
        cameras: tuple[str, ...] = (),
        options: SinkOptions | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to write.

        Args:
            uri: the folder, as given.
            cameras: who will come, where that is known: their clips of earlier runs count against the budget.
            options: quality, preset and ``clips``.
            wall: Unix time.
            clock: monotonic seconds.

        Raises:
            ConfigError: the condition cannot be read.
        """
        self.uri = uri
        self._options = options or SinkOptions()
        self._knobs: ClipOptions = self._options.clips
        self._condition = None if self._knobs.when is None else parse_condition(self._knobs.when)
        self._shelf = Shelf(Path(uri), self._knobs.budget_bytes)
        for camera in cameras:
            self._shelf.admit(camera)
        self._tracks: dict[str, _Track] = {}
        self._wall, self._clock = wall, clock
        self._retry_at: float | None = None
        """When a disk that took no more is tried again; None while it takes all."""
        self._pause = _RETRY_SECONDS[0]
        self.lost = 0
        """Frames that should have been recorded while the disk took none."""
        self._lost_since = 0

    def __enter__(self) -> Self:
        self._shelf.open()
        self._shelf.look({})
        self._shelf.keep_budget(0)
        return self

    def needs_picture(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say yes: whether a frame belongs to an event may only be known later."""
        return True

    def idle(self) -> None:
        """Do nothing: a file can wait."""

    def put(self, overlay: Overlay) -> None:
        """Record one frame, or keep it in case an event follows.

        Raises:
            SinkError: the encoder refused. A disk that is full is no reason: it is said, and tried again.
        """
        camera = overlay.explanation.frame.camera
        track = self._tracks.get(camera)
        if track is None:
            self._shelf.admit(camera)
            timeline = Timeline(self._options.fallback_rate)
            before = self._knobs.seconds_before if self._condition else 0.0
            track = self._tracks[camera] = _Track(timeline, Ring(before, self._knobs.ring_bytes))
        if self._condition is None and self._waits():
            self.lost, self._lost_since = self.lost + 1, self._lost_since + 1
            return
        for coded in self._coded(track, overlay):
            if self._wanted(track, coded.seconds):
                self._keep(camera, track, coded)
            else:
                self._end_clip(track)
                overran = track.ring.overran
                track.ring.add(coded)
                if track.ring.overran and not overran:
                    log.warning("%s: %s: %g s before an event do not fit into %d MiB; the newest are kept",
                                self.uri, camera, self._knobs.seconds_before, self._knobs.ring_bytes >> 20)  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for track in self._tracks.values():
            self._end_clip(track)
            if track.encoder is not None:
                track.encoder.close()
        self._tracks.clear()
        if self._lost_since:
            log.warning("%s: %d frames were not recorded for want of room", self.uri, self._lost_since)

    def _wanted(self, track: _Track, seconds: float) -> bool:
        return self._condition is None or seconds <= track.wanted_until

    def _coded(self, track: _Track, overlay: Overlay) -> list[Coded]:
        """Encode a frame; note whether it is an event; cut where a clip should end before it."""
        frame = overlay.explanation.frame
        passed = 0.0 if overlay.silence is None else overlay.silence.seconds
        ticks = track.timeline.ticks(
            None if frame.pts_seconds is None else frame.pts_seconds + passed, frame.taken_at + passed
        )
        seconds = ticks / TICKS_PER_SECOND
        if self._condition is not None and overlay.silence is None and self._condition(overlay.explanation):
            track.wanted_until = seconds + self._knobs.seconds_after
        record, size = None, 0
        now, unix = self._clock(), self._wall()
        if overlay.silence is None:
            record = explanation_record(overlay.explanation, sent_at_unix=unix, now_monotonic=now)
            size = len(record_bytes(record))
        taken_unix = unix - (now - frame.taken_at) + passed
        encoder = self._encoder(track, (overlay.image.shape[1], overlay.image.shape[0]))
        if track.clip is not None and (not self._wanted(track, seconds) or self._is_full(track.clip, seconds)):
            self._end_clip(track)
        key = (track.clip is None and not track.ring) or (
            self._condition is not None and seconds - track.key_at >= _KEY_SECONDS
        )
        track.key_at = seconds if key else track.key_at
        track.waiting.append((seconds, taken_unix, record, size))
        packets = encoder.encode(overlay.image, ticks, track.timeline.step_ticks, key=key)
        return [Coded(packet, *track.waiting.pop(0)) for packet in packets]

    def _encoder(self, track: _Track, size: tuple[int, int]) -> ClipEncoder:
        """Return the camera's encoder; a change of size ends the clip and begins another."""
        if track.encoder is not None and track.encoder.size != size:
            self._end_clip(track)
            track.ring.take()
            track.waiting.clear()
            track.encoder.close()
            track.encoder = None
        if track.encoder is None:
            try:
                track.encoder = ClipEncoder(size, self._options)
            except (av.error.FFmpegError, ValueError) as error:
                raise SinkError(f"{self.uri}: cannot be recorded ({error})") from error
        return track.encoder

    def _is_full(self, clip: Clip, seconds: float) -> bool:
        limits = [b for b in (self._knobs.rotate_bytes, self._shelf.longest_clip_bytes()) if b is not None]
        too_long = (
            self._knobs.rotate_seconds is not None
            and seconds - clip.began_seconds >= self._knobs.rotate_seconds - _ROUNDING_SECONDS
        )
        return too_long or any(clip.bytes >= limit for limit in limits)

    def _keep(self, camera: str, track: _Track, coded: Coded) -> None:
        """Write a frame, with what came before it where it begins a clip."""
        if self._waits():
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
            self._shelf.keep_budget(self._open_bytes())
        except OSError as error:
            self._refused(track, error)
        self._lose(held[written:])
        again = sum(one.missed for one in held[:written])
        self.lost, self._lost_since = self.lost - again, self._lost_since - again
        if written and written == len(held) and self._retry_at is not None:
            log.warning("%s: there is room again; %d frames were not recorded", self.uri, self._lost_since)
            self._retry_at, self._lost_since = None, 0

    def _waits(self) -> bool:
        """Say whether the disk took no more, and it is too soon to try it again."""
        return self._retry_at is not None and self._clock() < self._retry_at

    def _lose(self, frames: list[Coded]) -> None:
        new = sum(not one.missed for one in frames)
        self.lost, self._lost_since = self.lost + new, self._lost_since + new
        for one in frames:
            one.missed = True

    def _begin_clip(self, camera: str, track: _Track, first: Coded) -> Clip:
        assert track.encoder is not None  # noqa: S101 - it made the packet
        self._shelf.look(self._open_clips())
        return Clip(self._shelf.place(camera, first.taken_unix), track.encoder.stream, first)

    def _end_clip(self, track: _Track) -> None:
        if track.clip is None:
            return
        clip, track.clip = track.clip, None
        try:
            clip.close()
            self._shelf.look(self._open_clips())
        except OSError as error:
            self._refused(track, error)

    def _refused(self, track: _Track, error: OSError) -> None:
        """Close what is open, say so once, and try again later."""
        clip, track.clip = track.clip, None
        again = self._retry_at is not None
        self._pause = min(2 * self._pause, _RETRY_SECONDS[1]) if again else _RETRY_SECONDS[0]
        self._retry_at = self._clock() + self._pause
        if not again:
            log.error("%s: the disk takes no more (%s); the clip is closed and what came is kept. The stream goes on, "
                      "and recording resumes when there is room", self.uri, error.strerror or error)  # fmt: skip
        if clip is not None:
            try:
                clip.close()
            except OSError as failure:
                log.debug("%s: %s", clip.path, failure)

    def _open_clips(self) -> dict[Path, int]:
        return {track.clip.path: track.clip.bytes for track in self._tracks.values() if track.clip is not None}

    def _open_bytes(self) -> int:
        return sum(self._open_clips().values())

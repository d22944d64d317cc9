"""Index of a log: finds a frame's record by file name, by frame index and time, or by time only."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from overlays.records.reader import RecordKey
from overlays.wire.text import escaped
from pipeline.frames import Frame

_SAME_SECONDS: Final = 0.002
"""Maximum difference between two times of the same frame in seconds, because containers store milliseconds."""


@dataclass(slots=True)
class CameraLines:
    """Index of one camera's records in the log."""

    offsets: dict[int, int] = field(default_factory=dict)
    """Offset of a record in the log by frame index, in the order of the file."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Presentation time in seconds by frame index, for records with a time."""
    clip_seconds: dict[int, float] = field(default_factory=dict)
    """Time in the clip in seconds by frame index, for records of a clip."""
    sources: dict[str, list[int]] = field(default_factory=dict)
    """Frame indices by the name of the file from which the frames were read."""
    repeated: int = 0
    """Number of ignored records of frames that have a record already."""
    by_clip: bool = False
    """True if the times are times in a clip. Frames of a clip have other indices than the log."""
    by_time: list[tuple[float, int]] = field(default_factory=list)

    def add(self, key: RecordKey) -> None:
        """Add one record; a second record of the same frame is only counted."""
        if key.index in self.offsets:
            self.repeated += 1
            return
        self.offsets[key.index] = key.offset
        if key.seconds is not None:
            self.seconds[key.index] = key.seconds
        if key.clip_seconds is not None:
            self.clip_seconds[key.index] = key.clip_seconds
        if key.source:
            self.sources.setdefault(key.source, []).append(key.index)

    def sort(self) -> None:
        """Build the index by time. Call this after the last ``add``."""
        self.by_time = sorted((seconds, index) for index, seconds in self.seconds.items())

    def as_clip(self) -> CameraLines:
        """Return an index that finds records only by their time in the clip, not by frame index."""
        offsets = {index: self.offsets[index] for index in self.clip_seconds}
        return CameraLines(offsets, dict(self.clip_seconds), repeated=self.repeated, by_clip=True)

    def index_of(self, frame: Frame) -> int | None:
        """Return the frame index of the record that belongs to a frame; None if there is no such record."""
        name = escaped(frame.source_name)
        if len(self.sources) > 1 and name:
            indices = self.sources.get(name, [])
            if len(indices) <= 1:
                return next(iter(indices), None)  # an image file, whose index differs if the folder has changed
        seconds = self.seconds.get(frame.index)
        if not self.by_clip and frame.index in self.offsets and _agree(seconds, frame.pts_seconds):
            return frame.index
        if frame.pts_seconds is None:
            return None
        position = bisect.bisect_left(self.by_time, (frame.pts_seconds, -1))
        near = self.by_time[max(0, position - 1) : position + 1]
        seconds, index = min(near, key=lambda entry: abs(entry[0] - (frame.pts_seconds or 0.0)), default=(np.inf, -1))
        return index if abs(seconds - frame.pts_seconds) < _SAME_SECONDS else None


def _agree(first: float | None, second: float | None) -> bool:
    return first is None or second is None or abs(first - second) < _SAME_SECONDS

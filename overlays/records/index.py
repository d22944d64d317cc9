"""Which line of a log belongs to a frame: by the file's name, by its number and time, or by its time alone. Pure."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from overlays.records.reader import RecordKey
from overlays.wire.json_fields import escaped
from pipeline.frames import Frame

_SAME_SECONDS: Final = 0.002
"""Times that differ by less are one frame's: containers count in milliseconds, cameras in more."""


@dataclass(slots=True)
class CameraLines:
    """Where one camera's lines stand in the log."""

    places: dict[int, int] = field(default_factory=dict)
    """By index, in the order of the file."""
    seconds: dict[int, float] = field(default_factory=dict)
    """By index, where the line has a time."""
    clip_seconds: dict[int, float] = field(default_factory=dict)
    """By index, where the line has a time in a clip."""
    sources: dict[str, list[int]] = field(default_factory=dict)
    """The indices by the name of the file that the frames were read from."""
    repeated: int = 0
    """Lines that tell of a frame that was told of before."""
    by_clip: bool = False
    """Whether the times are those of a clip, whose pictures have other numbers."""
    by_time: list[tuple[float, int]] = field(default_factory=list)

    def note(self, gist: RecordKey) -> None:
        """Take note of one line."""
        if gist.index in self.places:
            self.repeated += 1
            return
        self.places[gist.index] = gist.offset
        if gist.seconds is not None:
            self.seconds[gist.index] = gist.seconds
        if gist.clip_seconds is not None:
            self.clip_seconds[gist.index] = gist.clip_seconds
        if gist.source:
            self.sources.setdefault(gist.source, []).append(gist.index)

    def sort(self) -> None:
        """Make the lines findable by their time."""
        self.by_time = sorted((seconds, index) for index, seconds in self.seconds.items())

    def as_clip(self) -> CameraLines:
        """Return the same lines by their time in the clip: the numbers of its pictures are not theirs."""
        places = {index: self.places[index] for index in self.clip_seconds}
        return CameraLines(places, dict(self.clip_seconds), repeated=self.repeated, by_clip=True)

    def index_of(self, frame: Frame) -> int | None:
        """Return the index of the line that belongs to a frame; None where none does."""
        name = escaped(frame.source_name)
        if len(self.sources) > 1 and name:
            named = self.sources.get(name, [])
            if len(named) <= 1:
                return next(iter(named), None)  # a photo is known by its name: others may have come and gone since
        told = self.seconds.get(frame.index)
        if not self.by_clip and frame.index in self.places and _agree(told, frame.pts_seconds):
            return frame.index
        if frame.pts_seconds is None:
            return None
        place = bisect.bisect_left(self.by_time, (frame.pts_seconds, -1))
        near = self.by_time[max(0, place - 1) : place + 1]
        seconds, index = min(near, key=lambda one: abs(one[0] - (frame.pts_seconds or 0.0)), default=(np.inf, -1))
        return index if abs(seconds - frame.pts_seconds) < _SAME_SECONDS else None


def _agree(one: float | None, other: float | None) -> bool:
    return one is None or other is None or abs(one - other) < _SAME_SECONDS

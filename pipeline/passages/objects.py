"""The objects of a camera: joins tracks that belong to one object. Pure state, no I/O.

The tracker assigns a new track to an object that was lost for longer than the tracker waits, or whose class and
position changed together. A detector may return two boxes for one object, and a track may jump to the next object.
Therefore an object is a set of tracks, by these rules:

- a track whose box overlaps the box of an object in the same frame belongs to that object, until they separate;
- a new track at the place where an object that is not in the frame is expected belongs to that object;
- a track that appears far from where its object is expected does not belong to it any more;
- a box whose size jumps is ignored, as an error of the detector, unless the new size stays for several frames.

The expected position of an object is its last box, moved by its velocity. The velocity is measured on the edges of the
box that are not cut by the edge of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pipeline.frames import Box, Finding
from pipeline.polygons import Point

SAME_OBJECT_OVERLAP: Final = 0.5
"""Two boxes that overlap by more than this fraction of the smaller box belong to one object."""
SEPARATE_RATIO: Final = 0.4
"""Tracks of one object separate when their boxes overlap by less than this fraction of ``same_object_overlap``."""
MAX_SHIFT: Final = 0.5
"""Largest distance of a new track from the expected centre of an object, in mean diagonals of both boxes."""
MAX_JUMP: Final = 0.75
"""Largest distance of a known track from the expected centre of its object, in mean diagonals of both boxes."""
MAX_AREA_RATIO: Final = 2.5
"""Largest ratio of the areas of two boxes that may belong to one object."""
MAX_SIZE_CHANGE: Final = 0.5
"""Largest change of a side of an object's box per frame since its last box, as a fraction of the shorter length. A
width or height that an edge of the image cuts may change by any length."""
MAX_MISFITS: Final = 2
"""Maximum number of consecutive frames in which an object's boxes are ignored because of their size."""
MIN_FRAMES_FOR_MOTION: Final = 3
"""Minimum number of frames of an object before its velocity is used."""
EDGE_PIXELS: Final = 3.0
"""An edge of a box is cut by the edge of the image if it is at most this far from it, in pixels."""
VELOCITY_SECONDS: Final = 0.5
"""Time constant of the exponential mean of the velocity."""


Edges = tuple[float, ...]


@dataclass(slots=True, eq=False)
class TrackedObject:
    """An object that is followed through the image."""

    track: int
    """Number of the object's first track."""
    box: Box
    """The object's last box, in frame pixels."""
    seen_at: float
    """Time of the object's last frame, on the stream's clock."""
    frames: int = 1
    velocity: tuple[float | None, float | None] = (None, None)
    """Velocity (x, y) in pixels per second, to the right and down; None: not known yet."""
    is_clipped: bool = False
    """True if the object's last box touches the edge of the image."""
    absent_frames: int = 0
    """Number of consecutive frames without the object, the current frame included."""
    misfits: int = 0
    """Number of consecutive frames in which the object's boxes were ignored because of their size."""

    def accepts(self, box: Box, frame_size: tuple[int, int]) -> bool:
        """Return whether a box has the object's size, or the size is accepted after ``MAX_MISFITS`` frames."""
        limit = MAX_SIZE_CHANGE * self.absent_frames
        return (
            self.frames == 0
            or self.misfits >= MAX_MISFITS
            or all(_similar_length(self.box[axis::2], box[axis::2], frame_size[axis], limit) for axis in (0, 1))
        )

    def expected(self, timestamp: float) -> Box:
        """Return the expected box of the object at a time on the stream's clock."""
        x, y = ((speed or 0.0) * (timestamp - self.seen_at) for speed in self.velocity)
        return Box(self.box.left + x, self.box.top + y, self.box.right + x, self.box.bottom + y)

    def move(self, box: Box, timestamp: float, frame_size: tuple[int, int]) -> None:
        """Set the object's box in a later frame; ``frame_size`` is width and height in pixels."""
        elapsed = timestamp - self.seen_at
        if elapsed > 0.0:
            weight = 1.0 - math.exp(-elapsed / VELOCITY_SECONDS)
            self.velocity = (
                _blended(self.velocity[0], _speed(self.box[0::2], box[0::2], frame_size[0], elapsed), weight),
                _blended(self.velocity[1], _speed(self.box[1::2], box[1::2], frame_size[1], elapsed), weight),
            )
        self.box, self.seen_at = box, timestamp
        self.frames += 1
        self.absent_frames = self.misfits = 0


def _speed(before: Edges, now: Edges, limit: int, elapsed: float) -> float | None:
    """Return the speed of the edges of a box along an axis, in pixels per second.

    An edge at 0 or at ``limit`` is cut by the edge of the image and is not used; None if both are.
    """
    moved = [
        (edge - old) / elapsed
        for old, edge in zip(before, now, strict=True)
        if all(EDGE_PIXELS < each < limit - EDGE_PIXELS for each in (old, edge))
    ]
    return sum(moved) / len(moved) if moved else None


def _similar_length(before: Edges, now: Edges, size: int, limit: float) -> bool:
    """Return whether the distance of two edges changes by at most ``limit`` times the shorter distance."""
    if any(not EDGE_PIXELS < edge < size - EDGE_PIXELS for edge in (*before, *now)):
        return True
    shorter, longer = sorted((before[1] - before[0], now[1] - now[0]))
    return longer - shorter <= limit * shorter + EDGE_PIXELS


def _blended(speed: float | None, measured: float | None, weight: float) -> float | None:
    """Return the exponential mean of a speed and a measured speed; one of them alone if the other is None."""
    if speed is None or measured is None:
        return measured if speed is None else speed
    return speed + weight * (measured - speed)


class TrackedBox(NamedTuple):
    """A box of a frame with the number of its track."""

    finding: Finding
    box: Box
    track: int


Groups = dict[TrackedObject, list[TrackedBox]]
"""The boxes of a frame by object."""


@dataclass(slots=True)
class ObjectRegistry:
    """The objects of one camera."""

    same_object_overlap: float = SAME_OBJECT_OVERLAP
    objects: list[TrackedObject] = field(default_factory=list)
    _by_track: dict[int, TrackedObject] = field(default_factory=dict)

    def update(
        self, findings: Sequence[Finding], timestamp: float, frame_size: tuple[int, int]
    ) -> list[tuple[TrackedObject, Finding]]:
        """Assign the boxes of a frame to objects.

        Args:
            findings: the findings of the frame; those without a box or a track are ignored.
            timestamp: time of the frame in seconds, on the stream's clock.
            frame_size: width and height in pixels.

        Returns:
            Each object of the frame, with the box of the highest score among its boxes of the right size.
        """
        tracked = [TrackedBox(f, f.box, f.track) for f in findings if f.box is not None and f.track is not None]
        tracked.sort(key=lambda each: -each.finding.score)
        for known in self.objects:
            known.absent_frames += 1
        groups = self._known(tracked, timestamp, frame_size)
        for each in tracked:
            if each.track not in self._by_track:
                found = (
                    self._overlapping(each.box, groups)
                    or self._expected(each.box, timestamp, groups)
                    or self._begin(each, timestamp)
                )
                self._by_track[each.track] = found
                if found.accepts(each.box, frame_size):
                    groups.setdefault(found, []).append(each)
        self._join(groups)
        for known in {self._by_track[each.track] for each in tracked} - groups.keys():
            known.misfits += 1
        return [(each, _moved(each, boxes, timestamp, frame_size)) for each, boxes in groups.items()]

    def drop(self, gone: TrackedObject) -> None:
        """Remove an object and its tracks."""
        self.objects.remove(gone)
        self._by_track = {track: each for track, each in self._by_track.items() if each is not gone}

    def _known(self, tracked: Sequence[TrackedBox], timestamp: float, frame_size: tuple[int, int]) -> Groups:
        """Return the boxes of known tracks by object; boxes that do not have the object's size are left out.

        A track that left its object is removed from it.
        """
        groups: Groups = {}
        for each in tracked:
            if (known := self._by_track.get(each.track)) is not None:
                groups.setdefault(known, []).append(each)
        for known, boxes in list(groups.items()):
            expected = known.expected(timestamp)
            boxes.sort(key=lambda each: _shift(expected, each.box))
            accepted = [each for each in boxes if known.accepts(each.box, frame_size)]
            nearest = (accepted or boxes)[0]
            has_jumped = known.frames >= MIN_FRAMES_FOR_MOTION and _shift(expected, nearest.box) > MAX_JUMP
            for each in boxes:
                if has_jumped or not self._belong_together(nearest.box, each.box):
                    del self._by_track[each.track]
            groups[known] = [each for each in accepted if each.track in self._by_track]
        return {known: boxes for known, boxes in groups.items() if boxes}

    def _belong_together(self, box: Box, other: Box) -> bool:
        """Return whether two tracks of one object still overlap enough to belong together."""
        return box is other or _overlap(box, other) >= SEPARATE_RATIO * self.same_object_overlap

    def _overlapping(self, box: Box, groups: Groups) -> TrackedObject | None:
        """Return the object of this frame whose box overlaps a box enough; None if there is none."""
        overlaps = [(_overlap(other.box, box), each) for each, boxes in groups.items() for other in boxes]
        overlap, best = max(overlaps, key=lambda pair: pair[0], default=(0.0, None))
        return best if overlap >= self.same_object_overlap else None

    def _expected(self, box: Box, timestamp: float, groups: Groups) -> TrackedObject | None:
        """Return the object that is not in the frame and is expected at a new track; None if there is none."""
        absent = [each for each in self.objects if each not in groups and _similar_size(each.box, box)]
        shifts = [(_shift(each.expected(timestamp), box), each) for each in absent]
        shift, best = min(shifts, key=lambda pair: pair[0], default=(math.inf, None))
        return best if shift <= MAX_SHIFT else None

    def _begin(self, each: TrackedBox, timestamp: float) -> TrackedObject:
        begun = TrackedObject(each.track, each.box, timestamp, frames=0)
        self.objects.append(begun)
        return begun

    def _join(self, groups: Groups) -> None:
        """Join objects whose boxes now overlap; the later object is removed."""
        for each in sorted(groups, key=lambda known: known.track):
            for other in [later for later in groups if later.track > each.track and each in groups]:
                if _overlap(groups[each][0].box, groups[other][0].box) >= self.same_object_overlap:
                    groups[each] += groups.pop(other)
                    self.objects.remove(other)
                    self._by_track = {t: each if o is other else o for t, o in self._by_track.items()}


def _moved(each: TrackedObject, boxes: Sequence[TrackedBox], timestamp: float, frame_size: tuple[int, int]) -> Finding:
    """Move an object to the box of the highest score in a frame, and return the finding of this box."""
    best = max(boxes, key=lambda found: found.finding.score)
    if each.frames:
        each.move(best.box, timestamp, frame_size)
    else:
        each.frames = 1
    box, (width, height) = best.box, frame_size
    each.is_clipped = box.left <= 1 or box.top <= 1 or box.right >= width - 1 or box.bottom >= height - 1
    return best.finding


def centre(box: Box) -> Point:
    """Return the centre of a box."""
    return (box.left + box.right) / 2.0, (box.top + box.bottom) / 2.0


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection of two boxes as a fraction of the smaller area; 0 if one has no area."""
    width, height = min(a.right, b.right) - max(a.left, b.left), min(a.bottom, b.bottom) - max(a.top, b.top)
    smaller = min(a.width * a.height, b.width * b.height)
    return max(width, 0.0) * max(height, 0.0) / smaller if smaller > 0.0 else 0.0


def _shift(expected: Box, box: Box) -> float:
    """Return the distance of the centres of two boxes, in mean diagonals of both."""
    (x, y), (other_x, other_y) = centre(expected), centre(box)
    diagonal = (math.hypot(expected.width, expected.height) + math.hypot(box.width, box.height)) / 2.0
    return math.hypot(x - other_x, y - other_y) / diagonal if diagonal > 0.0 else math.inf


def _similar_size(a: Box, b: Box) -> bool:
    """Return whether the areas of two boxes differ by at most a factor of ``MAX_AREA_RATIO``."""
    smaller, larger = sorted((a.width * a.height, b.width * b.height))
    return larger <= MAX_AREA_RATIO * smaller

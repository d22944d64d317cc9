"""The objects of a camera: tracks, joined where one object has several. Pure.

The tracker gives an object a new track where it was lost for longer than the tracker waits, or where its class changed
together with its place. A detector may also give two boxes of different classes for one object. An object is therefore
a set of tracks:

- a new track whose box overlaps the box of an object in the same frame, with another class, belongs to that object;
- a new track at the place where an object that is not in the frame is expected belongs to that object.

An object is expected where its last box moved with its velocity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.frames import Box, Finding
from pipeline.polygons import Point

SAME_OBJECT_IOU: Final = 0.65
"""Two boxes of different classes that overlap more are of one object."""
SEPARATE_IOU: Final = 0.3
"""Two tracks of an object whose boxes overlap less are of two objects."""
MAX_SHIFT: Final = 0.5
"""Largest distance of a new track from the expected centre of an object, in mean diagonals of both boxes."""
MAX_AREA_RATIO: Final = 2.5
"""Largest ratio of the areas of both boxes."""
VELOCITY_SECONDS: Final = 0.5
"""Time constant of the velocity."""


@dataclass(slots=True, eq=False)
class TrackedObject:
    """An object that is followed through the image."""

    track: int
    """Its first track."""
    box: Box
    """Its last box."""
    seen_at: float
    """Time of its last frame, on the stream's clock."""
    frames: int = 1
    velocity: Point = (0.0, 0.0)
    """Of its centre, in pixels per second."""
    is_clipped: bool = False
    """True if its last box touches the edge of the image."""

    def expected(self, timestamp: float) -> Box:
        """Return its expected box at a time."""
        x, y = (speed * (timestamp - self.seen_at) for speed in self.velocity)
        return Box(self.box.left + x, self.box.top + y, self.box.right + x, self.box.bottom + y)

    def move(self, box: Box, timestamp: float) -> None:
        """Set its box in a later frame."""
        elapsed = timestamp - self.seen_at
        if elapsed > 0.0:
            weight = 1.0 if self.frames == 1 else 1.0 - math.exp(-elapsed / VELOCITY_SECONDS)
            old, new = centre(self.box), centre(box)
            measured = ((new[0] - old[0]) / elapsed, (new[1] - old[1]) / elapsed)
            x, y = self.velocity
            self.velocity = (x + weight * (measured[0] - x), y + weight * (measured[1] - y))
        self.box, self.seen_at = box, timestamp
        self.frames += 1


@dataclass(slots=True)
class ObjectRegistry:
    """The objects of one camera."""

    objects: list[TrackedObject] = field(default_factory=list)
    _by_track: dict[int, TrackedObject] = field(default_factory=dict)

    def update(
        self, findings: Sequence[Finding], timestamp: float, frame_size: tuple[int, int]
    ) -> list[tuple[TrackedObject, Finding]]:
        """Assign the boxes of a frame to objects.

        Args:
            findings: those with a box and a track are used.
            timestamp: of the frame, in seconds on the stream's clock.
            frame_size: width and height in pixels.

        Returns:
            Each object of the frame with its box of the highest score.
        """
        groups = self._known(findings)
        for finding in sorted(findings, key=lambda each: -each.score):
            if finding.box is not None and finding.track is not None and finding.track not in self._by_track:
                found = self._overlapping(finding, finding.box, groups) or self._expected(
                    finding.box, timestamp, groups
                )
                found = found or self._begin(finding.track, finding.box, timestamp)
                self._by_track[finding.track] = found
                groups.setdefault(found, []).append(finding)
        self._join(groups)
        return [(each, self._moved(each, found, timestamp, frame_size)) for each, found in groups.items()]

    def drop(self, gone: TrackedObject) -> None:
        """Forget an object."""
        self.objects.remove(gone)
        self._by_track = {track: each for track, each in self._by_track.items() if each is not gone}

    def _known(self, findings: Sequence[Finding]) -> dict[TrackedObject, list[Finding]]:
        """Return the findings of known tracks by object; a track that moved away from its object is released."""
        groups: dict[TrackedObject, list[Finding]] = {}
        for finding in sorted(findings, key=lambda each: -each.score):
            known = None if finding.track is None else self._by_track.get(finding.track)
            if known is None or finding.box is None:
                continue
            others = groups.setdefault(known, [])
            if others and _iou(others[0], finding) < SEPARATE_IOU:
                del self._by_track[finding.track or 0]
            else:
                others.append(finding)
        return groups

    @staticmethod
    def _overlapping(
        finding: Finding, box: Box, groups: Mapping[TrackedObject, Sequence[Finding]]
    ) -> TrackedObject | None:
        """Return the object of this frame that the box of another class belongs to."""
        overlaps = [
            (other.box.iou(box), each)
            for each, found in groups.items()
            for other in found
            if other.box is not None and other.label != finding.label
        ]
        iou, best = max(overlaps, key=lambda pair: pair[0], default=(0.0, None))
        return best if iou >= SAME_OBJECT_IOU else None

    def _expected(self, box: Box, timestamp: float, groups: Mapping[TrackedObject, object]) -> TrackedObject | None:
        """Return the object that is expected at the place of a new track and is not in the frame."""
        absent = [each for each in self.objects if each not in groups]
        shifts = [(_shift(each.expected(timestamp), box), each) for each in absent]
        shift, best = min(shifts, key=lambda pair: pair[0], default=(math.inf, None))
        return best if shift <= MAX_SHIFT else None

    def _begin(self, track: int, box: Box, timestamp: float) -> TrackedObject:
        begun = TrackedObject(track, box, timestamp, frames=0)
        self.objects.append(begun)
        return begun

    def _join(self, groups: dict[TrackedObject, list[Finding]]) -> None:
        """Join objects whose boxes of different classes have come to overlap: the later one is the same object."""
        for each in sorted(groups, key=lambda known: known.track):
            if each not in groups:
                continue
            for other in [later for later in groups if later.track > each.track]:
                first, second = groups[each][0], groups[other][0]
                if first.label != second.label and _iou(first, second) >= SAME_OBJECT_IOU:
                    groups[each] = sorted(groups[each] + groups.pop(other), key=lambda found: -found.score)
                    self.objects.remove(other)
                    self._by_track = {t: each if o is other else o for t, o in self._by_track.items()}

    @staticmethod
    def _moved(
        each: TrackedObject, findings: Sequence[Finding], timestamp: float, frame_size: tuple[int, int]
    ) -> Finding:
        best = max(findings, key=lambda found: found.score)
        box = best.box or each.box
        if each.frames:
            each.move(box, timestamp)
        else:
            each.frames = 1
        width, height = frame_size
        each.is_clipped = box.left <= 1 or box.top <= 1 or box.right >= width - 1 or box.bottom >= height - 1
        return best


def centre(box: Box) -> Point:
    """Return the centre of a box."""
    return (box.left + box.right) / 2.0, (box.top + box.bottom) / 2.0


def _iou(a: Finding, b: Finding) -> float:
    return 0.0 if a.box is None or b.box is None else a.box.iou(b.box)


def _shift(expected: Box, box: Box) -> float:
    """Return the distance of two boxes in mean diagonals; infinite if their areas differ too much."""
    areas = sorted((expected.width * expected.height, box.width * box.height))
    if areas[0] <= 0.0 or areas[1] / areas[0] > MAX_AREA_RATIO:
        return math.inf
    (x, y), (other_x, other_y) = centre(expected), centre(box)
    diagonal = (math.hypot(expected.width, expected.height) + math.hypot(box.width, box.height)) / 2.0
    return math.hypot(x - other_x, y - other_y) / diagonal

"""Counts the objects of one camera: parts in zones, and crossings of lines. Starts no threads, does no I/O.

An object enters a zone in the first frame in which its anchor lies inside. It leaves the zone when the anchor lies
outside by a tenth of its box, so that a box that trembles on the border does not enter and leave several times. An
object that is not found any more leaves when its expected position is outside, or after ``gap_seconds``. When the
object has left, the part is counted. An object that returns within ``gap_seconds`` is not counted again.

Boxes of classes that no zone and no line names are ignored: a wrong box that covers the image would join objects.

A line is crossed when the anchor was on one side by at least a tenth of the box, then is on the other side by as much,
and the segment between the two positions meets the line.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pipeline.frames import Box, Explanation, Finding, Frame
from pipeline.guards.heatmap_stats import stream_time
from pipeline.passages.config import LineConfig, ZoneConfig
from pipeline.passages.geometry import anchor_point, crosses, depth_inside, signed_distance
from pipeline.passages.objects import MIN_FRAMES_FOR_MOTION, SAME_OBJECT_OVERLAP, ObjectRegistry, TrackedObject
from pipeline.passages.passage import MAX_RECENT, Direction, Passage, Place, PlaceCount
from pipeline.passages.record import PassageRecord
from pipeline.passages.vote import Vote
from pipeline.polygons import Point
from pipeline.trial import Trial

HYSTERESIS: Final = 0.1
"""Minimum distance behind a border or a line at which an object has passed it, as a fraction of its box's sides."""
OBJECT_GAP_SECONDS: Final = 1.0
"""Minimum time for which a lost object is remembered; a longer ``gap_seconds`` of a zone replaces it."""


@dataclass(frozen=True, slots=True)
class Places:
    """The zones and lines of a camera, as configured."""

    zones: tuple[ZoneConfig, ...] = ()
    lines: tuple[LineConfig, ...] = ()
    same_object_overlap: float = SAME_OBJECT_OVERLAP
    """Two boxes that overlap by more than this fraction of the smaller box belong to one object."""

    def __bool__(self) -> bool:
        return bool(self.zones or self.lines)

    def classes(self, ok: Collection[str] = ()) -> frozenset[str] | None:
        """Return the classes that a zone or line counts, or that are ok in a zone; None: all classes.

        Args:
            ok: the classes that are ok in zones without their own list.
        """
        counted = [place.classes for place in self.zones] + [line.classes for line in self.lines]
        good = [ok if zone.ok is None else zone.ok for zone in self.zones]
        if not counted or None in counted:
            return None
        return frozenset().union(*filter(None, counted), *good)


@dataclass(slots=True)
class _Visit:
    """The state of an object relative to a zone."""

    record: PassageRecord | None = None
    """The object's frames in the zone; None while it is outside."""
    left_at: float | None = None
    """Time at which the counted object was inside last; None if it was not counted."""


@dataclass(slots=True)
class _ObjectState:
    """The state of an object: its visits of zones, and its positions relative to lines."""

    record: PassageRecord
    """All frames of the object; lines use them."""
    visits: dict[str, _Visit] = field(default_factory=dict)
    sides: dict[str, Point] = field(default_factory=dict)
    """By line: the object's last anchor that was clearly on one side of the line."""


@dataclass(slots=True)
class _Tally:
    """Counts of a zone or a line."""

    number: int = 0
    disagreements: int = 0
    """Passages for which the network on trial decides another class or verdict."""
    counts: dict[tuple[str, Direction, bool | None], int] = field(default_factory=dict)


class PassageCounter:
    """Counts the objects of one camera. Used by one thread."""

    def __init__(
        self,
        camera: str,
        places: Places,
        ok_default: Collection[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a counter without objects.

        Args:
            camera: the camera's name.
            places: its zones and lines.
            ok_default: the classes that are ok in zones without their own list.
            clock: returns monotonic seconds; measures the time to the verdict.
        """
        self._camera, self._places, self._clock = camera, places, clock
        self._ok = {zone.name: frozenset(ok_default if zone.ok is None else zone.ok) for zone in places.zones}
        self._classes = places.classes(ok_default)
        self._gap_seconds = max([OBJECT_GAP_SECONDS, *(zone.gap_seconds for zone in places.zones)])
        self.next_sequence = 1
        """Sequence number of the next passage."""
        self.recent: deque[Passage] = deque(maxlen=MAX_RECENT)
        self.tallies: dict[str, _Tally] = {f"{kind} {each.name}": _Tally() for kind, each in _named(places)}
        self.has_trial = False
        """True if a network on trial explained a frame."""
        self.unfinished = 0
        """Number of parts that were in a zone when the camera left or its clock went back."""
        self._size = (0, 0)
        self._polygons: dict[str, tuple[Point, ...]] = {}
        self._ends: dict[str, tuple[Point, Point]] = {}
        self._registry = ObjectRegistry(places.same_object_overlap)
        self._states: dict[TrackedObject, _ObjectState] = {}
        self._source_name = ""
        self._timestamp = 0.0
        self._new: list[Passage] = []
        self._trial: Trial | None = None

    def add(self, explanation: Explanation) -> Explanation:
        """Return the explanation with the passages that were finished at its frame."""
        frame = explanation.frame
        timestamp = stream_time(frame)
        self._new, self._trial = [], explanation.trial
        self.has_trial |= self._trial is not None
        if timestamp < self._timestamp or frame.source_name != self._source_name:
            self.end()
        self._timestamp, self._source_name = timestamp, frame.source_name
        self._place((frame.width, frame.height))
        classes = self._classes
        counted = [each for each in explanation.findings if classes is None or each.label in classes]
        found = self._registry.update(counted, timestamp, self._size)
        self._states = {each: self._states.get(each) or self._begin() for each in self._registry.objects}
        for each, finding in found:
            self._observe(each, finding, frame)
        present = {each for each, _ in found}
        for each in [known for known in self._registry.objects if known not in present]:
            self._expect(each, timestamp)
        self.recent.extend(self._new)
        return replace(
            explanation, passages=tuple(self._new), recent_passages=tuple(self.recent), places=self.counted()
        )

    def resume(self, before: PassageCounter) -> None:
        """Continue the counts of an earlier counter of this camera, for zones and lines with the same names."""
        self.next_sequence, self.unfinished = before.next_sequence, before.unfinished
        self.tallies |= before.tallies

    def end(self) -> None:
        """Remove all objects; the parts in zones are not counted, but added to ``unfinished``."""
        self.unfinished += sum(
            visit.record is not None for state in self._states.values() for visit in state.visits.values()
        )
        self._registry, self._states = ObjectRegistry(self._places.same_object_overlap), {}

    def _begin(self) -> _ObjectState:
        visits = {zone.name: _Visit() for zone in self._places.zones}
        return _ObjectState(PassageRecord(Vote()), visits)

    def _place(self, size: tuple[int, int]) -> None:
        """Compute the positions of zones and lines for frames of a size (width, height) in pixels."""
        if size == self._size:
            return
        self._size = size
        self._polygons = {zone.name: zone.placed(*size).polygon for zone in self._places.zones}
        self._ends = {line.name: line.placed(*size) for line in self._places.lines}

    def _observe(self, each: TrackedObject, finding: Finding, frame: Frame) -> None:
        """Update the zones and lines of an object that is in the frame."""
        state, box = self._states[each], each.box
        if self._places.lines:
            state.record.add(finding, box, frame, is_clipped=each.is_clipped, trial=self._trial)
        for zone in self._places.zones:
            depth = depth_inside(anchor_point(box, zone.anchor), self._polygons[zone.name])
            self._visit(each, zone, state.visits[zone.name], (depth, _margin(box)), (finding, frame))
        for line in self._places.lines:
            self._approach(each, line, state)

    def _visit(
        self,
        each: TrackedObject,
        zone: ZoneConfig,
        visit: _Visit,
        position: tuple[float, float],
        seen: tuple[Finding, Frame],
    ) -> None:
        """Update an object relative to a zone.

        Args:
            each: the object.
            zone: the zone.
            visit: the object's state relative to the zone.
            position: distance inside the zone (negative outside), and minimum distance of a clear exit, in pixels.
            seen: the object's box in the frame, and the frame.
        """
        (depth, margin), (finding, frame) = position, seen
        timestamp = stream_time(frame)
        if depth >= 0.0:
            if visit.record is None and visit.left_at is not None and timestamp - visit.left_at <= zone.gap_seconds:
                visit.left_at = timestamp  # the object was counted, but is still in the zone
                return
            if visit.record is None:
                visit.record, visit.left_at = PassageRecord(zone.parsed_vote, self._ok[zone.name]), None
            visit.record.add(finding, each.box, frame, is_clipped=each.is_clipped, trial=self._trial)
        elif visit.record is not None and depth < -margin:
            self._finish(each, zone, visit, timestamp)

    def _expect(self, each: TrackedObject, timestamp: float) -> None:
        """Update an object that is not in the frame: it leaves a zone if it is expected outside, or is lost."""
        state, lost_seconds = self._states[each], timestamp - each.seen_at
        box = each.expected(timestamp)
        for zone in self._places.zones:
            visit = state.visits[zone.name]
            if visit.record is None:
                continue
            has_left = lost_seconds > zone.gap_seconds
            if not has_left and each.frames >= MIN_FRAMES_FOR_MOTION:
                depth = depth_inside(anchor_point(box, zone.anchor), self._polygons[zone.name])
                has_left = depth < -_margin(box)
            if has_left:
                self._finish(each, zone, visit, timestamp)
        if lost_seconds > self._gap_seconds:
            self._registry.drop(each)
            del self._states[each]

    def _finish(self, each: TrackedObject, zone: ZoneConfig, visit: _Visit, timestamp: float) -> None:
        """Count a part, unless it is too short or of a class that is not counted."""
        record, visit.record = visit.record, None
        if record is None or record.frames < zone.min_frames:
            return
        visit.left_at = timestamp
        result, ok = record.result(), self._ok[zone.name]
        is_ok = result["label"] in ok if ok else None
        if zone.classes is None or result["label"] in zone.classes:
            self._count(each, {"kind": "part", "place": zone.name, "direction": "", "is_ok": is_ok, **result})

    def _approach(self, each: TrackedObject, line: LineConfig, state: _ObjectState) -> None:
        """Count a crossing where an object is now on the other side of a line."""
        ends, anchor = self._ends[line.name], anchor_point(each.box, line.anchor)
        distance = signed_distance(anchor, ends)
        if abs(distance) < _margin(each.box):
            return
        before, state.sides[line.name] = state.sides.get(line.name), anchor
        if before is None or (signed_distance(before, ends) > 0.0) == (distance > 0.0):
            return
        direction: Direction = "forward" if distance > 0.0 else "backward"
        if state.record.frames < line.min_frames or line.direction not in {"both", direction}:
            return
        result = state.record.result() if crosses(before, anchor, ends) else None
        if result is not None and (line.classes is None or result["label"] in line.classes):
            self._count(each, {"kind": "crossing", "place": line.name, "direction": direction, "is_ok": None, **result})

    def _count(self, each: TrackedObject, result: Mapping[str, Any]) -> None:
        tally = self.tallies[f"{result['kind']} {result['place']}"]
        tally.number += 1
        key = (result["label"], result["direction"], result["is_ok"])
        tally.counts[key] = tally.counts.get(key, 0) + 1
        latency = max(0.0, self._clock() - result["last_captured_at"])
        passage = Passage(
            camera=self._camera, sequence=self.next_sequence, number=tally.number, track=each.track,
            latency_seconds=latency, **result,
        )  # fmt: skip
        self.next_sequence += 1
        tally.disagreements += passage.disagrees
        self._new.append(passage)

    def counted(self) -> tuple[Place, ...]:
        """Return all zones and lines with their counts."""
        inside = {
            zone.name: sum(state.visits[zone.name].record is not None for state in self._states.values())
            for zone in self._places.zones
        }
        zones = [
            Place("zone", name, polygon, _counts(self.tallies[f"part {name}"]), inside[name])
            for name, polygon in self._polygons.items()
        ]
        lines = [
            Place("line", name, ends, _counts(self.tallies[f"crossing {name}"])) for name, ends in self._ends.items()
        ]
        return (*zones, *lines)


def _named(places: Places) -> Sequence[tuple[str, ZoneConfig | LineConfig]]:
    return [*(("part", zone) for zone in places.zones), *(("crossing", line) for line in places.lines)]


def _counts(tally: _Tally) -> tuple[PlaceCount, ...]:
    return tuple([PlaceCount(*key, count) for key, count in tally.counts.items()])


def _margin(box: Box) -> float:
    """Return the distance from a border or a line at which a box has clearly passed it."""
    return HYSTERESIS * min(box.width, box.height)

"""Keeps the figures of the last minutes that rules need, and replays a rule on them.

A frame is stored as its figures and its heat grids in float16: 537 bytes for a classifier with 7 x 7 cells. Rules are
evaluated by ``pipeline.guards.alert``, as in the live run. The fraction of the evidence in a region is computed anew,
for any region; float16 changes it by less than 0.001.
"""

from __future__ import annotations

import math
import struct
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from pipeline.frames import (
    NO_HEAT,
    Box,
    BoxMap,
    DeletionCheck,
    Explanation,
    Finding,
    Frame,
    HeatmapStats,
    top_scoring,
)
from pipeline.guards.alert import AlertState
from pipeline.guards.box_stats import BOX, has_boxes, track_key
from pipeline.guards.config import GuardConfig, RegionConfig
from pipeline.guards.heatmap_stats import Weights, stream_time
from pipeline.guards.state import GuardState
from pipeline.guards.variables import RuleContext, box_drop
from pipeline.polygons import cell_weights

HISTORY_SECONDS: Final = 600.0
MAX_CAMERA_BYTES: Final = 32 << 20
MAX_BYTES: Final = 128 << 20
"""Maximum memory of all cameras."""
MAX_REPLAYED_FINDINGS: Final = 100_000
"""Maximum number of findings on which a rule is tried, the newest; each takes about 0.01 ms of processor time."""
MAX_SPANS: Final = 200
"""Maximum number of past alarms that are listed; all are counted."""
_FRAME_OVERHEAD_BYTES: Final = 220
_FINDING_OVERHEAD_BYTES: Final = 41
"""Memory of the Python objects of a frame, and of each finding, beside their bytes."""
_MAPS_AT_ONCE: Final = 4096
_PRUNE_FRAMES: Final = 500
"""Number of recorded frames after which the frames of all cameras are pruned, also of cameras without new frames."""

_FRAME: Final = struct.Struct("<ddHHffff?HddIf")
"""Times, size, heat region, whether it has boxes; label, scores, index and age of a deletion check (no label: none)."""
_FINDING: Final = struct.Struct("<Hdddddd4fqHH?dfd4f")
"""Label, score, statistics, box, track, grid, map mode, its drop, age and share in the box, and its region."""
_NO_LABEL: Final = 0xFFFF


class _Kept(NamedTuple):
    """A stored frame."""

    figures: bytes
    maps: tuple[bytes, ...]
    """The heat of each finding as float16 bytes; empty without a map. Equal maps of a track are the same object."""
    captured_at: float
    size: int
    """Memory of the frame in bytes, without maps that an earlier frame shares."""


@dataclass(slots=True)
class _CameraFrames:
    """The frames of one camera, the oldest first."""

    frames: deque[_Kept] = field(default_factory=deque)
    size: int = 0
    maps: dict[Hashable, tuple[int, bytes]] = field(default_factory=dict)
    """By track in the newest frame: the index and heat of its newest map."""


@dataclass(frozen=True, slots=True)
class PastAlarms:
    """The alarms that a rule would have raised on the stored frames."""

    spans: Sequence[tuple[float, float, str]]
    """The last alarms, the oldest first: start and end in monotonic seconds, and the message of the worst frame."""
    count: int
    """Number of all alarms."""
    firing_seconds: float
    known_seconds: float
    """Time between the first and the last frame on which the rule was evaluated."""
    frames: int
    """Number of frames on which the rule was evaluated."""
    since: float
    """Monotonic time of the first frame on which the rule was evaluated."""


class RuleHistory:
    """Stores the figures of each camera's last frames that rules need. One thread records; any thread evaluates."""

    def __init__(
        self, max_camera_bytes: int = MAX_CAMERA_BYTES, max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Create an empty history.

        Args:
            max_camera_bytes: maximum memory of one camera; the oldest frames are removed.
            max_bytes: maximum memory of all cameras.
            clock: returns the time on the clock of ``Frame.captured_at``.
        """
        self._max_camera_bytes, self._max_bytes, self._clock = max_camera_bytes, max_bytes, clock
        self._cameras: dict[str, _CameraFrames] = {}
        self._labels: dict[str, int] = {}
        self._recorded = 0

    @property
    def size(self) -> int:
        """Memory of the frames of all cameras in bytes."""
        return sum(kept.size for kept in tuple(self._cameras.values()))

    def known_seconds(self, camera: str) -> float:
        """Return the time between the first and the last stored frame of a camera."""
        kept = self._cameras.get(camera)
        frames = () if kept is None else tuple(kept.frames)
        return round(frames[-1].captured_at - frames[0].captured_at, 2) if frames else 0.0

    def record(self, explanation: Explanation) -> None:
        """Store the figures of a frame with statistics; remove old frames and frames above the memory limit."""
        camera = explanation.frame.camera
        kept = self._cameras.get(camera)
        if kept is None:
            kept = _CameraFrames()
            self._cameras = {**self._cameras, camera: kept}  # other threads iterate over it
        entry = self._entry(explanation, kept)
        kept.frames.append(entry)
        kept.size += entry.size
        limit = min(self._max_camera_bytes, self._max_bytes // len(self._cameras))
        _prune(kept, entry.captured_at - HISTORY_SECONDS, limit)
        self._recorded += 1
        if self._recorded % _PRUNE_FRAMES == 0:
            for each in self._cameras.values():
                _prune(each, self._clock() - HISTORY_SECONDS, limit)
            self._cameras = {name: each for name, each in self._cameras.items() if each.frames}

    def _entry(self, explanation: Explanation, kept: _CameraFrames) -> _Kept:
        frame, check = explanation.frame, explanation.deletion
        boxes = has_boxes(explanation)
        findings = explanation.findings if boxes else (top_scoring(explanation.findings),)
        checked = (_NO_LABEL, 0.0, 0.0, 0, 0.0)
        if check is not None:
            checked = (self._label(check.label), check.score, check.masked_score, check.index, check.age_seconds)
        figures = [_FRAME.pack(stream_time(frame), frame.captured_at, frame.width, frame.height, *explanation.region,
                               boxes, *checked)]  # fmt: skip
        maps: list[bytes] = []
        seen: dict[Hashable, tuple[int, bytes]] = {}
        added = 0
        for finding in findings:
            if finding is None:
                continue
            figures.append(self._figures(finding))
            key, heat = track_key(frame, finding), b""
            tracked = finding.box_map is not None and finding.track is not None
            if (
                tracked
                and finding.box_map is not None
                and (last := kept.maps.get(key))
                and last[0] == finding.box_map.index
            ):
                heat = last[1]
            elif finding.box is None or finding.box_map is not None:
                heat = finding.heat.astype(np.float16).tobytes()
                added += len(heat)
            if tracked and finding.box_map is not None:
                seen[key] = finding.box_map.index, heat
            maps.append(heat)
        kept.maps = seen
        packed = b"".join(figures)
        size = len(packed) + added + _FRAME_OVERHEAD_BYTES + len(maps) * _FINDING_OVERHEAD_BYTES
        return _Kept(packed, tuple(maps), frame.captured_at, size)

    def _figures(self, finding: Finding) -> bytes:
        stats, box_map, box = finding.heatmap_stats, finding.box_map, finding.box
        known: tuple[float | None, ...] = (None,) * 5
        inside = None
        if stats is not None:
            known = (stats.focus_area, stats.entropy, *(stats.centre or (None, None)), stats.stability)
            inside = stats.heat_inside.get(BOX)
        numbers = [math.nan if number is None else number for number in known]
        placed = (math.nan,) * 4 if box is None else box
        drop = None if box_map is None else box_drop(finding)
        is_drop, age, region = False, math.nan, placed
        if box_map is not None:
            is_drop, age, region = box_map.mode == "drop", box_map.age_seconds, box_map.region
        return _FINDING.pack(
            self._label(finding.label), finding.score, *numbers, *placed,
            -1 if finding.track is None else finding.track, *finding.heat.shape, is_drop,
            math.nan if drop is None else drop, age,
            math.nan if inside is None else inside, *region,
        )  # fmt: skip

    def _label(self, label: str) -> int:
        return self._labels.setdefault(label, min(len(self._labels), _NO_LABEL - 1))

    def alarms(self, camera: str, guard: GuardConfig, regions: Sequence[RegionConfig] = ()) -> PastAlarms:
        """Return the alarms that a guard would have raised on the newest stored frames of a camera.

        Args:
            camera: name of the camera.
            guard: the rule and its times.
            regions: the regions that the rule may name.
        """
        kept = self._cameras.get(camera)
        frames = _newest(() if kept is None else tuple(kept.frames), MAX_REPLAYED_FINDINGS)
        if not frames:
            return PastAlarms((), 0, 0.0, 0.0, 0, self._clock())
        named = guard.parsed.regions
        replay = _Replay(camera, [*self._labels], [each for each in regions if each.name in named])
        alert = AlertState(guard)
        spans: deque[tuple[float, float, str]] = deque(maxlen=MAX_SPANS)
        begun, text, slack, firing_seconds, last = None, "", math.inf, 0.0, 0.0
        for captured_at, state in replay.states(frames, alert):
            if state.firing:
                begun = captured_at if begun is None else begun
                if not text or (state.figure is not None and state.figure.slack < slack):
                    text, slack = state.message, math.inf if state.figure is None else state.figure.slack
                last = captured_at
            elif begun is not None:
                spans.append((begun, captured_at, text))
                firing_seconds += captured_at - begun
                begun, text, slack = None, "", math.inf
        if begun is not None:
            spans.append((begun, last, text))
            firing_seconds += last - begun
        first, newest = frames[0].captured_at, frames[-1].captured_at
        return PastAlarms(tuple(spans), alert.fire_count, firing_seconds, newest - first, len(frames), first)


def _newest(frames: Sequence[_Kept], max_findings: int) -> Sequence[_Kept]:
    """Return the newest frames that have no more findings in all; a frame without any counts as one."""
    count = 0
    for index in range(len(frames) - 1, -1, -1):
        count += max(len(frames[index].maps), 1)
        if count > max_findings:
            return frames[index + 1 :]
    return frames


def _prune(kept: _CameraFrames, before: float, max_bytes: int) -> None:
    while kept.frames and (kept.frames[0].captured_at < before or kept.size > max_bytes):
        kept.size -= kept.frames.popleft().size


class _Figures(NamedTuple):
    """The figures of a stored finding."""

    label: int
    score: float
    stats: tuple[float | None, ...]
    box: Box | None
    track: int | None
    grid: tuple[int, int]
    is_drop: bool
    drop: float | None
    age_seconds: float
    inside_box: float | None
    region: Box


class _Replay:
    """Evaluates a rule on stored frames."""

    def __init__(self, camera: str, labels: Sequence[str], regions: Sequence[RegionConfig]) -> None:
        """Set the camera, the labels by their numbers in stored frames, and the regions that the rule names."""
        self._camera, self._labels, self._regions = camera, labels, regions
        self._stubs: dict[tuple[int, int], Frame] = {}

    def states(self, frames: Sequence[_Kept], alert: AlertState) -> Iterator[tuple[float, GuardState]]:
        """Yield the capture time and the state of the guard of each frame."""
        inside = self._shares(frames) if self._regions else {}
        for entry in frames:
            timestamp, captured_at, width, height, *rest = _FRAME.unpack_from(entry.figures)
            region, (boxes, label, score, masked, index, age) = Box(*rest[:4]), rest[4:]
            check = None if label == _NO_LABEL else DeletionCheck(self._labels[label], score, masked, index, age)
            findings = tuple(
                self._finding(figures, inside.get((id(heat), width, height, figures.region if boxes else region)))
                for figures, heat in zip(_findings(entry), entry.maps, strict=True)
            )
            explanation = Explanation(self._stub(width, height), findings, "", "", heat_region=region)
            facts = RuleContext(explanation, top_scoring(findings), check)
            if boxes:
                each = [facts._replace(finding=finding) for finding in findings]
                yield captured_at, alert.update_boxes(facts, each, timestamp)
            else:
                yield captured_at, alert.update(facts, timestamp)

    def _stub(self, width: int, height: int) -> Frame:
        """Return a frame of a size in pixels; its image needs no memory."""
        found = self._stubs.get((width, height))
        if found is None:
            image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))
            found = self._stubs[width, height] = Frame(image, self._camera, 0, 0.0)
        return found

    def _finding(self, figures: _Figures, inside: Mapping[str, float] | None) -> Finding:
        focus, entropy, x, y, stability = figures.stats
        centre = None if x is None or y is None else (x, y)
        shares = dict(inside or {})
        if figures.inside_box is not None:
            shares[BOX] = figures.inside_box
        stats = HeatmapStats(focus, entropy, centre, stability, shares)
        box_map, heat = None, NO_HEAT
        if figures.box is not None and not math.isnan(figures.age_seconds):
            # With this scale, a heat of 1 means the stored drop.
            heat, scale = (NO_HEAT, 1.0) if figures.drop is None else (_ONE, figures.drop)
            against = None if figures.drop is None else NO_HEAT
            box_map = BoxMap(
                "drop" if figures.is_drop else "keep",
                "",
                figures.region,
                scale,
                against,
                age_seconds=figures.age_seconds,
            )
        label = self._labels[figures.label]
        return Finding(label, figures.score, heat, -1, figures.box, stats, figures.track, box_map)

    def _shares(self, frames: Sequence[_Kept]) -> dict[tuple[int, int, int, Box], dict[str, float]]:
        """Return the fraction of the evidence in each region, by map, frame size and heat region."""
        groups: dict[tuple[tuple[int, int], bool, int, int, Box], dict[int, bytes]] = {}
        for entry in frames:
            _, _, width, height, *rest = _FRAME.unpack_from(entry.figures)
            region, boxes = Box(*rest[:4]), rest[4]
            for figures, heat in zip(_findings(entry), entry.maps, strict=True):
                if heat:
                    key = figures.grid, figures.is_drop, width, height, figures.region if boxes else region
                    groups.setdefault(key, {})[id(heat)] = heat
        shares: dict[tuple[int, int, int, Box], dict[str, float]] = {}
        for (grid, is_drop, width, height, region), maps in groups.items():
            placed = [each.placed(width, height) for each in self._regions]
            weights = np.stack([cell_weights(each.polygon, region, grid) for each in placed])
            listed = list(maps.items())
            for start in range(0, len(listed), _MAPS_AT_ONCE):
                part = listed[start : start + _MAPS_AT_ONCE]
                found = _inside([heat for _, heat in part], weights, is_drop=is_drop)
                for (identity, _), row in zip(part, found, strict=True):
                    if row is not None:
                        names = {each.name: share for each, share in zip(placed, row, strict=True)}
                        shares[identity, width, height, region] = names
        return shares


_ONE: Final = np.ones((1, 1), np.float32)


def _findings(entry: _Kept) -> Iterator[_Figures]:
    for offset in range(_FRAME.size, len(entry.figures), _FINDING.size):
        label, score, *rest = _FINDING.unpack_from(entry.figures, offset)
        stats, box, (track, rows, columns, is_drop, drop, age, inside), region = (
            rest[:5],
            rest[5:9],
            rest[9:16],
            rest[16:],
        )
        yield _Figures(
            label, score, tuple(_known(number) for number in stats), None if math.isnan(box[0]) else Box(*box),
            None if track < 0 else track, (rows, columns), is_drop, _known(drop), age, _known(inside), Box(*region),
        )  # fmt: skip


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _inside(maps: Sequence[bytes], weights: Weights, *, is_drop: bool) -> list[list[float] | None]:
    """Return the fractions of the evidence of maps in regions, as ``heatmap_stats`` does; None for a flat map.

    Args:
        maps: maps as float16 bytes, all of the same grid.
        weights: fraction of each cell in each region, float32, (regions, cells).
        is_drop: whether the maps are ``drop`` maps, in which the heat of a cell without influence is 0.
    """
    heats = np.frombuffer(b"".join(maps), np.float16).reshape(len(maps), -1).astype(np.float32)
    count = heats.shape[1]
    if is_drop:
        floors = np.zeros((len(maps), 1), np.float32)
    else:
        floors = np.partition(heats, (count - 1) // 2, axis=1)[:, (count - 1) // 2, None]
        floors = np.where(heats.max(axis=1, keepdims=True) <= floors, np.float32(0.0), floors)
    evidence = np.maximum(heats, floors) - floors
    totals = evidence.sum(axis=1)
    sums = evidence @ weights.T
    return [None if not total else (row / total).tolist() for row, total in zip(sums, totals, strict=True)]

"""Statistics of the heat maps of a detector's boxes.

Each box has its own grid and region of the frame. The formulas of ``pipeline.guards.heatmap_stats`` apply, with two
changes:

- The evidence of a cell in a ``drop`` map is its heat, because the heat of a cell without influence is 0. Only in
  ``keep`` maps, whose level is arbitrary, the evidence is the heat above the median.
- ``heat_inside`` has one more entry, ``BOX``, for the box itself, widened by a cell on each side: the position of
  evidence is known only to a cell, and the cells at a small box lie mostly outside the box.

A box without a map has no statistics. The statistics of a map from an earlier frame are those of that frame: they
describe where the evidence was at that time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from pipeline.frames import Box, BoxMap, Explanation, Finding, Frame, HeatmapStats, Region
from pipeline.guards.heatmap_stats import (
    PAUSE_SECONDS,
    CentredMap,
    RegionsOf,
    centred,
    correlation,
    heatmap_stats,
    region_weights,
    stream_time,
)
from pipeline.polygons import Flat

BOX: Final = "box"
"""Name of the box itself among the regions in ``heat_inside``."""
MAX_TRACKS: Final = 256
"""Maximum number of tracks of a camera whose statistics are stored while they are not in the frame."""


def has_boxes(explanation: Explanation) -> bool:
    """Return whether an explanation is from a detector: it has boxes, or no findings at all."""
    return not explanation.findings or explanation.findings[0].box is not None


def track_key(frame: Frame, finding: Finding) -> Hashable:
    """Return the key of a box's object in later frames: its track, or its class if it has no track.

    The key includes the name of the file, because each file of a folder has its own tracks.
    """
    return frame.source_name, finding.label if finding.track is None else finding.track


def box_weights(box: Box, region: Box, grid: tuple[int, int]) -> Flat:
    """Return the exact fraction of each cell's area inside a box: float32 in [0, 1], (rows * columns,).

    Args:
        box: the rectangle of the box, in frame pixels.
        region: the rectangle of the frame that the grid covers, in pixels.
        grid: rows and columns.
    """
    rows, columns = grid
    down = _covered(box.top, box.bottom, region.top, region.height / rows, rows)
    across = _covered(box.left, box.right, region.left, region.width / columns, columns)
    fractions: Flat = np.outer(down, across).ravel()
    return fractions


def _covered(low: float, high: float, start: float, size: float, count: int) -> Flat:
    """Return the fraction of each interval that lies between two bounds.

    Args:
        low: the lower bound.
        high: the upper bound.
        start: start of the first interval.
        size: length of each interval.
        count: number of adjacent intervals.

    Returns:
        float32, (count,), 0 to 1.
    """
    cells = np.arange(count)
    shared = np.minimum((high - start) / size, cells + 1) - np.maximum((low - start) / size, cells)
    fractions: Flat = np.clip(shared, 0.0, 1.0).astype(np.float32)
    return fractions


def _widened(box: Box, region: Box, grid: tuple[int, int]) -> Box:
    """Return a box widened by a cell on each side, so that every cell that the box touches lies inside."""
    x, y = region.width / grid[1], region.height / grid[0]
    return Box(box.left - x, box.top - y, box.right + x, box.bottom + y)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Statistics of the newest map of a track."""

    index: int
    """Index of the frame of the map."""
    timestamp: float
    stats: HeatmapStats
    centred: CentredMap


@dataclass(slots=True)
class _CameraBoxes:
    """Regions and measured maps of one camera."""

    size: tuple[int, int] = (0, 0)
    regions: tuple[Region, ...] = ()
    names: tuple[str, ...] = (BOX,)
    measured: dict[Hashable, _Measured] = field(default_factory=dict)
    """Statistics by track, in the order in which the tracks were last in a frame."""


class BoxStatsTracker:
    """Computes the statistics of the boxes of consecutive explanations. For one thread."""

    def __init__(self, regions_of: RegionsOf | None = None) -> None:
        """Set the function that returns a camera's regions; None: no regions."""
        self._regions_of = regions_of
        self._cameras: dict[str, _CameraBoxes] = {}

    def forget(self, camera: str) -> None:
        """Remove the state of a camera that left the run."""
        self._cameras.pop(camera, None)

    def refresh_regions(self) -> None:
        """Call ``regions_of`` again for each camera at its next frame; its maps are then measured anew."""
        for state in self._cameras.values():
            state.size = (0, 0)
            state.measured.clear()

    def measure(self, explanation: Explanation) -> tuple[tuple[Finding, ...], tuple[Region, ...]]:
        """Return the findings with statistics, and the camera's regions in pixels of this frame."""
        frame, state = explanation.frame, self._cameras.setdefault(explanation.frame.camera, _CameraBoxes())
        size = (frame.width, frame.height)
        if self._regions_of is not None and state.size != size:
            state.size, state.regions = size, self._regions_of(frame)
            state.names = (*(region.name for region in state.regions), BOX)
        measured = tuple([self._with_stats(finding, state, frame) for finding in explanation.findings])
        for key in list(state.measured)[: max(len(state.measured) - max(MAX_TRACKS, len(measured)), 0)]:
            del state.measured[key]
        return measured, state.regions

    def _with_stats(self, finding: Finding, state: _CameraBoxes, frame: Frame) -> Finding:
        """Return a finding with the statistics of its map."""
        if finding.box is None or finding.box_map is None:
            return finding
        key, index = track_key(frame, finding), finding.box_map.index
        last = state.measured.pop(key, None)
        if last is None or last.index != index or finding.track is None:
            last = _measure(finding, finding.box, finding.box_map, state, (last, stream_time(frame)))
        state.measured[key] = last
        return replace(finding, heatmap_stats=last.stats)


def _measure(
    finding: Finding, box: Box, box_map: BoxMap, state: _CameraBoxes, before: tuple[_Measured | None, float]
) -> _Measured:
    """Compute the statistics of a new map.

    Args:
        finding: the finding with the map.
        box: the rectangle of the finding, in frame pixels.
        box_map: describes how the map was computed.
        state: the state of the camera, with its regions.
        before: the last measured map of the track, and the time of this frame.
    """
    last, now = before
    timestamp = now - box_map.age_seconds
    current, passed = centred(finding.heat), math.inf if last is None else timestamp - last.timestamp
    stability = correlation(current, None if last is None or not 0.0 <= passed <= PAUSE_SECONDS else last.centred)
    rows, columns = finding.heat.shape
    grid, region = (int(rows), int(columns)), box_map.region
    own = box_weights(_widened(box, region, grid), region, grid)
    weights = np.concatenate([region_weights(state.regions, region, grid), own[None]])
    floor_level: Literal["median", "zero"] = "zero" if box_map.mode == "drop" else "median"
    stats = heatmap_stats(finding.heat, region, state.names, weights, stability, floor_level=floor_level)
    return _Measured(box_map.index, timestamp, stats, current)

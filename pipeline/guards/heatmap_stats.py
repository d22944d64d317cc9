"""Where the heat of a finding lies, as numbers.

Pure but for ``HeatmapStatsTracker``, which remembers each camera's last maps.

Recipro-CAM's heat is min-max normalised: its coldest cell is 0 and its hottest 1, and a cell that says nothing lies
wherever the rest of the picture left it. Sums over raw heat are sums over that floor: 0.03 on 1200 cells outweighs a
defect of 12. So everything here but the stability goes by the *evidence* of a cell,

    e_i = max(0, heat_i - median(heat)),        p_i = e_i / sum(e)

with the lower median, the cell that most of the picture resembles. Where the median is the maximum itself (half of the
map or more is hottest) nothing is taken off. A map of zeros has no evidence, and no numbers.

    heat_inside(R) = sum_i p_i a_i(R)             a_i: the share of cell i's area that lies in region R; 0 to 1
    focus_area     = k / n                        k: the fewest of the n cells whose evidence sums to half or more
    entropy        = -sum_i p_i ln p_i / ln n     Shannon's, as a share of its maximum; 0 to 1
    centre         = sum_i p_i (x_i, y_i)         x_i, y_i: the cell's centre, frame pixels
    stability      = corr(heat, heat before)      Pearson's, with the same class's map in the camera's frame before

``heat_inside`` is the energy-based pointing game of Wang et al. (*Score-CAM*, CVPR Workshops 2020) with a polygon for a
box and evidence for heat. Cells beyond the frame (a letterbox's border) count as outside every region.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.frames import Box, Explanation, Finding, Frame, Heat, HeatmapStats, Region

Flat = npt.NDArray[np.float32]
"""One number per cell, float32, (rows * columns,)."""
Weights = npt.NDArray[np.float32]
"""What evidence is summed by, float32, (2 + regions, rows * columns): see ``region_weights``."""
Point = tuple[float, float]

PAUSE_SECONDS: Final = 2.0
"""After a pause this long the map before says nothing about this one."""


def stream_time(frame: Frame) -> float:
    """Return the frame's time on its own clock: the stream's where it has one, when it was taken otherwise."""
    return frame.captured_at if frame.pts_seconds is None else frame.pts_seconds


def heatmap_stats(
    heat: Heat, region: Box, names: Sequence[str] = (), weights: Weights | None = None, stability: float | None = None
) -> HeatmapStats:
    """Measure one map; the module's first lines hold the formulas.

    Args:
        heat: float32 in [0, 1], (rows, columns).
        region: the rectangle of the frame that the grid covers, in pixels.
        names: of the regions whose weights are given.
        weights: as ``region_weights`` made them for those regions; None where there is none.
        stability: as ``HeatmapStatsTracker`` found it.
    """
    flat: Flat = heat.ravel()
    count = flat.size
    ordered = flat.copy()
    ordered.sort()
    floor = ordered[(count - 1) // 2]
    if ordered[-1] <= floor:
        floor = np.float32(0.0)
    hot = ordered[ordered.searchsorted(floor, "right") :] - floor
    if not hot.size:
        return HeatmapStats(None, None, None, stability)
    upwards = hot.cumsum()
    total = float(upwards[-1])
    # From the coldest on: the cells below half of the sum are those that the fewest hot ones leave.
    cells = hot.size - int(upwards.searchsorted(total / 2.0, "right"))
    entropy = (math.log(total) - float(hot @ np.log(hot)) / total) / math.log(count) if count > 1 else 0.0
    evidence = np.maximum(flat, floor) - floor
    rows, columns = heat.shape
    x, y, *fractions = ((_places(rows, columns) if weights is None else weights) @ evidence).tolist()
    inside: Mapping[str, float] = _NOTHING
    if names:
        inside = MappingProxyType({name: fraction / total for name, fraction in zip(names, fractions, strict=True)})
    return HeatmapStats(
        focus_area=max(cells, 1) / count,
        entropy=min(max(entropy, 0.0), 1.0),
        centre=(region.left + x / total * region.width, region.top + y / total * region.height),
        stability=stability,
        heat_inside=inside,
    )


_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


@functools.lru_cache(maxsize=64)
def _places(rows: int, columns: int) -> Weights:
    """Return the cells' centres x and y, as shares of the grid: float32, (2, rows * columns)."""
    down, across = np.indices((rows, columns))
    return np.stack([(across.ravel() + 0.5) / columns, (down.ravel() + 0.5) / rows]).astype(np.float32)


@functools.lru_cache(maxsize=256)
def cell_weights(polygon: tuple[Point, ...], region: Box, grid: tuple[int, int]) -> Flat:
    """Return the share of each cell's area that lies in a polygon, exactly: float32 in [0, 1], (rows * columns,).

    Args:
        polygon: corners in frame pixels; it may not cross itself.
        region: the rectangle of the frame that the grid covers, in pixels.
        grid: rows and columns.
    """
    rows, columns = grid
    fractions = np.zeros((rows, columns), np.float32)
    high, wide = region.height / rows, region.width / columns
    for row in range(rows):
        top = region.top + row * high
        band = _cut(_cut(list(polygon), 1, top, 1.0), 1, top + high, -1.0)
        for column in range(columns) if len(band) > 2 else ():
            left = region.left + column * wide
            piece = _cut(_cut(band, 0, left, 1.0), 0, left + wide, -1.0)
            fractions[row, column] = _area(piece) / (high * wide)
    flat = np.clip(fractions.ravel(), 0.0, 1.0)
    flat.flags.writeable = False
    return flat


def _cut(points: list[Point], axis: int, bound: float, side: float) -> list[Point]:
    """Keep what lies at ``side`` (1: beyond, -1: before) of a line across one axis (Sutherland and Hodgman, 1974)."""
    kept: list[Point] = []
    for place, point in enumerate(points):
        before = points[place - 1]
        now, then = side * (point[axis] - bound), side * (before[axis] - bound)
        if (now >= 0.0) != (then >= 0.0):
            fraction = then / (then - now)
            kept.append((before[0] + fraction * (point[0] - before[0]), before[1] + fraction * (point[1] - before[1])))
        if now >= 0.0:
            kept.append(point)
    return kept


def _area(points: list[Point]) -> float:
    """Return a polygon's area, whichever way round it is given (the shoelace formula)."""
    doubled = sum(points[i - 1][0] * points[i][1] - points[i][0] * points[i - 1][1] for i in range(len(points)))
    return abs(doubled) / 2.0


def region_weights(regions: Sequence[Region], heat_region: Box, grid: tuple[int, int]) -> Weights:
    """Return each cell's centre x and y, as shares of the grid, then every region's share of each cell."""
    return np.concatenate([_places(*grid), *(cell_weights(one.polygon, heat_region, grid)[None] for one in regions)])


@dataclass(slots=True)
class _Memory:
    """What is remembered of one camera."""

    moment: float = -math.inf
    geometry: tuple[Any, ...] = ()
    """Frame size, heat region and grid that ``regions`` and ``weights`` were made for."""
    regions: tuple[Region, ...] = ()
    names: tuple[str, ...] = ()
    weights: Weights | None = None
    maps: dict[tuple[int, str], tuple[Flat, float]] = field(default_factory=dict)
    """By class: the last frame's heat less its mean, and that vector's length."""


RegionsOf = Callable[[str, int, int], tuple[Region, ...]]
"""Gives a camera's regions for frames of a width and height."""


class HeatmapStatsTracker:
    """Measures explanations one after the other. Used by one thread."""

    def __init__(self, regions_of: RegionsOf | None = None) -> None:
        """Take how to find a camera's regions; None: there are none."""
        self._regions_of = regions_of
        self._memories: dict[str, _Memory] = {}

    def measure(self, explanation: Explanation) -> tuple[tuple[Finding, ...], tuple[Region, ...]]:
        """Return the findings with their grounds, and the camera's regions in this frame's pixels."""
        if not explanation.findings:
            return (), ()
        frame, memory = explanation.frame, self._memories.setdefault(explanation.frame.camera, _Memory())
        passed = stream_time(frame) - memory.moment
        memory.moment = stream_time(frame)
        self._settle(memory, explanation)
        before = memory.maps if 0.0 <= passed <= PAUSE_SECONDS else {}
        maps: dict[tuple[int, str], tuple[Flat, float]] = {}
        measured = []
        for finding in explanation.findings:
            named = (finding.class_index, finding.label)
            maps[named] = centred = _centred(finding.heat)
            stability = _correlation(centred, before.get(named))
            grounds = heatmap_stats(finding.heat, explanation.region, memory.names, memory.weights, stability)
            measured.append(replace(finding, heatmap_stats=grounds))
        memory.maps = maps
        return tuple(measured), memory.regions

    def _settle(self, memory: _Memory, explanation: Explanation) -> None:
        """Make the weights anew where the frame's or the grid's geometry has changed."""
        frame, region = explanation.frame, explanation.region
        grid = explanation.first.heat.shape
        geometry = (frame.width, frame.height, region, grid)
        if self._regions_of is None or memory.geometry == geometry:
            return
        memory.geometry = geometry
        memory.regions = self._regions_of(frame.camera, frame.width, frame.height)
        memory.names = tuple(one.name for one in memory.regions)
        memory.weights = region_weights(memory.regions, region, (int(grid[0]), int(grid[1])))


def _centred(heat: Heat) -> tuple[Flat, float]:
    flat: Flat = heat.ravel()
    flat = flat - np.float32(float(flat @ _ones(flat.size)) / flat.size)
    return flat, math.sqrt(float(flat @ flat))


@functools.lru_cache(maxsize=64)
def _ones(count: int) -> Flat:
    return np.ones(count, np.float32)


def _correlation(now: tuple[Flat, float], before: tuple[Flat, float] | None) -> float | None:
    if before is None or before[0].shape != now[0].shape or not now[1] or not before[1]:
        return None
    return min(max(float(now[0] @ before[0]) / (now[1] * before[1]), -1.0), 1.0)

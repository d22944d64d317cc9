"""Statistics of heat maps.

All are pure functions, except ``HeatmapStatsTracker``, which stores each camera's last maps. The statistics of a
detector's boxes are in ``pipeline.guards.box_stats``.

Recipro-CAM's heat map is min-max normalised: its coldest cell is 0, its hottest cell is 1, and irrelevant cells have a
level between. A sum of raw heat mostly sums this level: 0.03 on 1200 cells is more than a defect of 12 cells. Therefore
all statistics except the stability use the *evidence* of a cell,

    e_i = max(0, heat_i - median(heat)),        p_i = e_i / sum(e)

with the lower median. If the median equals the maximum (at least half of the cells are hottest), nothing is subtracted.
A map of zeros has no evidence and no statistics.

    heat_inside(R) = sum_i p_i a_i(R)             a_i: the fraction of cell i's area inside region R; 0 to 1
    focus_area     = k / n                        k: smallest number of the n cells with half of the evidence
    entropy        = -sum_i p_i ln p_i / ln n     Shannon entropy, as a fraction of its maximum; 0 to 1
    centre         = sum_i p_i (x_i, y_i)         x_i, y_i: the cell's centre, frame pixels
    stability      = corr(heat, heat before)      Pearson's, with the map of the same class in the previous frame

``heat_inside`` is the energy-based pointing game of Wang et al. (*Score-CAM*, CVPR Workshops 2020), with a polygon in
place of a box and evidence in place of heat. Cells outside the frame (the border of a letterbox) are in no region.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from pipeline.frames import Box, Explanation, Finding, Frame, Heat, HeatmapStats, Region
from pipeline.polygons import Flat, cell_weights

Weights = npt.NDArray[np.float32]
"""Weights of the evidence, float32, (2 + regions, rows * columns): see ``region_weights``."""
CentredMap = tuple[Flat, float]
"""The heat of a map minus its mean, and the norm of that vector."""

PAUSE_SECONDS: Final = 2.0
"""After a longer pause, maps are not compared with the maps before it."""


def stream_time(frame: Frame) -> float:
    """Return the frame's ``pts_seconds``, or ``captured_at`` if it has none."""
    return frame.captured_at if frame.pts_seconds is None else frame.pts_seconds


def heatmap_stats(
    heat: Heat,
    region: Box,
    names: Sequence[str] = (),
    weights: Weights | None = None,
    stability: float | None = None,
    *,
    floor_level: Literal["median", "zero"] = "median",
) -> HeatmapStats:
    """Compute the statistics of a heat map; the module docstring has the formulas.

    Args:
        heat: float32 in [0, 1], (rows, columns).
        region: the rectangle of the frame that the grid covers, in pixels.
        names: the regions in ``weights``.
        weights: from ``region_weights`` for those regions; None without regions.
        stability: from ``HeatmapStatsTracker``.
        floor_level: the heat of a cell without influence, which is subtracted: ``zero`` where it is known to be 0.
    """
    flat: Flat = heat.ravel()
    count = flat.size
    ordered = flat.copy()
    ordered.sort()
    floor = ordered[(count - 1) // 2]
    if ordered[-1] <= floor or floor_level == "zero":
        floor = np.float32(0.0)
    hot = ordered[ordered.searchsorted(floor, "right") :] - floor
    if not hot.size:
        return HeatmapStats(None, None, None, stability)
    cumulative = hot.cumsum()
    total = float(cumulative[-1])
    # Sorted by evidence, ascending: the first cells, up to half of the sum, are not needed for the other half.
    cells = hot.size - int(cumulative.searchsorted(total / 2.0, "right"))
    entropy = (math.log(total) - float(hot @ np.log(hot)) / total) / math.log(count) if count > 1 else 0.0
    evidence = np.maximum(flat, floor) - floor
    rows, columns = heat.shape
    x, y, *fractions = ((_cell_centres(rows, columns) if weights is None else weights) @ evidence).tolist()
    inside: Mapping[str, float] = _NO_REGIONS
    if names:
        inside = MappingProxyType({name: fraction / total for name, fraction in zip(names, fractions, strict=True)})
    return HeatmapStats(
        focus_area=max(cells, 1) / count,
        entropy=min(max(entropy, 0.0), 1.0),
        centre=(region.left + x / total * region.width, region.top + y / total * region.height),
        stability=stability,
        heat_inside=inside,
    )


_NO_REGIONS: Final[Mapping[str, float]] = MappingProxyType({})


@functools.lru_cache(maxsize=64)
def _cell_centres(rows: int, columns: int) -> Weights:
    """Return the x and y of the cells' centres as fractions of the grid: float32, (2, rows * columns)."""
    down, across = np.indices((rows, columns))
    return np.stack([(across.ravel() + 0.5) / columns, (down.ravel() + 0.5) / rows]).astype(np.float32)


def region_weights(regions: Sequence[Region], heat_region: Box, grid: tuple[int, int]) -> Weights:
    """Return the centre of each cell, and the fraction of each cell in every region.

    Args:
        regions: polygons in frame pixels.
        heat_region: the rectangle of the frame that the grid covers, in pixels.
        grid: rows and columns.

    Returns:
        float32, (2 + regions, rows * columns): x and y of the centre as fractions of the grid, then one row for each
        region, 0 to 1.
    """
    return np.concatenate(
        [_cell_centres(*grid), *(cell_weights(region.polygon, heat_region, grid)[None] for region in regions)]
    )


@dataclass(slots=True)
class _CameraMaps:
    """Maps and region weights of one camera."""

    timestamp: float = -math.inf
    geometry: tuple[Any, ...] = ()
    """Frame size, heat region and grid of ``regions`` and ``weights``."""
    regions: tuple[Region, ...] = ()
    names: tuple[str, ...] = ()
    weights: Weights | None = None
    maps: dict[tuple[int, str], CentredMap] = field(default_factory=dict)
    """By class: the map in the last frame."""


RegionsOf = Callable[[Frame], tuple[Region, ...]]
"""Returns the regions of a frame's camera in pixels of the frame."""


class HeatmapStatsTracker:
    """Computes the statistics of consecutive explanations. For one thread."""

    def __init__(self, regions_of: RegionsOf | None = None) -> None:
        """Set the function that returns a camera's regions; None: no regions."""
        self._regions_of = regions_of
        self._cameras: dict[str, _CameraMaps] = {}

    def forget(self, camera: str) -> None:
        """Remove the state of a camera that left the run."""
        self._cameras.pop(camera, None)

    def refresh_regions(self) -> None:
        """Call ``regions_of`` again for each camera, at its next frame."""
        for state in self._cameras.values():
            state.geometry = ()

    def measure(self, explanation: Explanation) -> tuple[tuple[Finding, ...], tuple[Region, ...]]:
        """Return the findings with statistics, and the camera's regions in pixels of this frame."""
        if not explanation.findings:
            return (), ()
        frame, state = explanation.frame, self._cameras.setdefault(explanation.frame.camera, _CameraMaps())
        passed = stream_time(frame) - state.timestamp
        state.timestamp = stream_time(frame)
        self._update_weights(state, explanation)
        before = state.maps if 0.0 <= passed <= PAUSE_SECONDS else {}
        maps: dict[tuple[int, str], CentredMap] = {}
        measured = []
        for finding in explanation.findings:
            key = (finding.class_index, finding.label)
            maps[key] = current = centred(finding.heat)
            stability = correlation(current, before.get(key))
            stats = heatmap_stats(finding.heat, explanation.region, state.names, state.weights, stability)
            measured.append(replace(finding, heatmap_stats=stats))
        state.maps = maps
        return tuple(measured), state.regions

    def _update_weights(self, state: _CameraMaps, explanation: Explanation) -> None:
        """Compute new weights if the size of the frame or the grid has changed."""
        frame, region = explanation.frame, explanation.region
        grid = explanation.first.heat.shape
        geometry = (frame.width, frame.height, region, grid)
        if self._regions_of is None or state.geometry == geometry:
            return
        state.geometry = geometry
        state.regions = self._regions_of(frame)
        state.names = tuple(placed.name for placed in state.regions)
        state.weights = region_weights(state.regions, region, (int(grid[0]), int(grid[1])))


def centred(heat: Heat) -> CentredMap:
    """Return the heat minus its mean, and the norm of that vector."""
    flat: Flat = heat.ravel()
    flat = flat - np.float32(float(flat @ _ones(flat.size)) / flat.size)
    return flat, math.sqrt(float(flat @ flat))


@functools.lru_cache(maxsize=64)
def _ones(count: int) -> Flat:
    return np.ones(count, np.float32)


def correlation(now: CentredMap, before: CentredMap | None) -> float | None:
    """Return Pearson's correlation of two maps; None if one is flat or missing, or the grids differ."""
    if before is None or before[0].shape != now[0].shape or not now[1] or not before[1]:
        return None
    return min(max(float(now[0] @ before[0]) / (now[1] * before[1]), -1.0), 1.0)

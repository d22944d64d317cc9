"""Statistics of heat maps: each formula by hand, and the geometry of regions on the grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames import Box, Explanation, Finding, Frame, Region
from pipeline.guards.heatmap_stats import HeatmapStatsTracker, heatmap_stats, region_weights
from pipeline.polygons import cell_weights

WHOLE = Box(0.0, 0.0, 80.0, 60.0)


def heat(rows) -> np.ndarray:
    return np.array(rows, np.float32)


def frame(index=0, seconds=0.0, camera="line", size=(60, 80)):
    return Frame(np.zeros((*size, 3), np.uint8), camera, index, 0.0, seconds)


def explained(values, index=0, seconds=0.0, label="scratch", camera="line"):
    return Explanation(frame(index, seconds, camera), (Finding(label, 0.9, heat(values), 1),), "m", "l")


def test_heatmap_stats_use_heat_above_the_median():
    # Lower median 0.2: evidence 0.8 and 0.4 of 1.2, the floor counts for nothing.
    actual = heatmap_stats(heat([[0.2, 0.2, 1.0], [0.0, 0.2, 0.6]]), Box(0, 0, 30, 20))
    assert actual.centre == pytest.approx((0.8 / 1.2 * 25 + 0.4 / 1.2 * 25, 0.8 / 1.2 * 5 + 0.4 / 1.2 * 15), rel=1e-5)
    p, q = 0.8 / 1.2, 0.4 / 1.2
    assert actual.entropy == pytest.approx(-(p * math.log(p) + q * math.log(q)) / math.log(6), rel=1e-5)
    assert actual.focus_area == pytest.approx(1 / 6)


def test_focus_area_is_the_fewest_cells_with_half_of_the_evidence():
    spread = heat([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert heatmap_stats(spread, WHOLE).focus_area == pytest.approx(2 / 8)
    single = heat([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert heatmap_stats(single, WHOLE).focus_area == pytest.approx(1 / 8)
    assert heatmap_stats(single, WHOLE).entropy == 0.0


def test_heatmap_stats_subtract_nothing_where_half_of_the_map_is_hottest():
    actual = heatmap_stats(heat([[1.0, 1.0], [1.0, 0.0]]), WHOLE)
    assert actual.focus_area == pytest.approx(2 / 4)
    assert actual.entropy == pytest.approx(math.log(3) / math.log(4), rel=1e-6)


def test_heatmap_stats_of_a_flat_map_are_none():
    actual = heatmap_stats(heat([[0.0, 0.0], [0.0, 0.0]]), WHOLE)
    assert (actual.focus_area, actual.entropy, actual.centre, dict(actual.heat_inside)) == (None, None, None, {})


def test_heat_inside_uses_the_covered_fraction_of_each_cell():
    # Cells of 20 x 20; the region covers the left column and a quarter of the next one.
    weights = cell_weights(((0.0, 0.0), (25.0, 0.0), (25.0, 40.0), (0.0, 40.0)), Box(0, 0, 80, 40), (2, 4))
    assert weights.reshape(2, 4).tolist() == [[1.0, 0.25, 0.0, 0.0]] * 2
    part = Region("part", ((0.0, 0.0), (25.0, 0.0), (25.0, 40.0), (0.0, 40.0)))
    weights = region_weights([part], Box(0, 0, 80, 40), (2, 4))
    actual = heatmap_stats(heat([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), Box(0, 0, 80, 40), ["part"], weights)
    assert actual.heat_inside["part"] == pytest.approx((1.0 + 0.25) / 2)


def test_cell_weights_of_a_triangle_are_half_in_both_orientations():
    corners = ((0.0, 0.0), (10.0, 0.0), (0.0, 10.0))
    for polygon in (corners, corners[::-1]):
        assert cell_weights(polygon, Box(0, 0, 10, 10), (1, 1))[0] == pytest.approx(0.5)


def test_cell_weights_exclude_the_notch_of_a_concave_region():
    # A U: the middle column's upper half is not in it.
    polygon = ((0, 0), (10, 0), (10, 10), (20, 10), (20, 0), (30, 0), (30, 20), (0, 20))
    weights = cell_weights(polygon, Box(0, 0, 30, 20), (2, 3)).reshape(2, 3)
    assert weights.tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]


def test_heat_inside_excludes_the_border_of_a_letterbox():
    # The grid covers more than the frame: 80 x 60 within 80 x 80, cells of 20.
    region = Region("all", ((0.0, 0.0), (80.0, 0.0), (80.0, 60.0), (0.0, 60.0)))
    weights = region_weights([region], Box(0.0, -10.0, 80.0, 70.0), (4, 4))
    assert weights[2].reshape(4, 4)[:, 0].tolist() == [0.5, 1.0, 1.0, 0.5]


def test_heat_inside_follows_the_crop():
    region = Region("left", ((0.0, 0.0), (40.0, 0.0), (40.0, 60.0), (0.0, 60.0)))
    weights = region_weights([region], Box(10.0, 0.0, 70.0, 60.0), (1, 2))
    assert weights[2].tolist() == [1.0, 0.0]


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.tuples(st.floats(0, 80), st.floats(0, 60)), min_size=3, max_size=3),
)
def test_cell_weights_sum_to_the_area_of_the_region(rows, columns, corners):
    weights = cell_weights(tuple(corners), WHOLE, (rows, columns))
    (a, b), (c, d), (e, f) = corners
    area = abs((c - a) * (f - b) - (e - a) * (d - b)) / 2
    assert float(weights.sum()) * 80 * 60 / (rows * columns) == pytest.approx(area, abs=0.5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_heatmap_stats_stay_within_their_ranges(seed, rows, columns):
    values = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
    halves = [Region("a", ((0, 0), (40, 0), (40, 60), (0, 60))), Region("b", ((40, 0), (80, 0), (80, 60), (40, 60)))]
    actual = heatmap_stats(values.astype(np.float32), WHOLE, ["a", "b"], region_weights(halves, WHOLE, (rows, columns)))
    if actual.focus_area is None:
        return
    assert 0.0 < actual.focus_area <= 1.0
    assert 0.0 <= actual.entropy <= 1.0
    assert sum(actual.heat_inside.values()) == pytest.approx(1.0, abs=1e-4)


def test_stability_is_the_correlation_with_the_previous_map():
    surveyor = HeatmapStatsTracker()
    first, then = [[0.0, 0.5, 1.0]], [[0.0, 1.0, 0.5]]
    assert surveyor.measure(explained(first))[0][0].heatmap_stats.stability is None
    actual = surveyor.measure(explained(then, 1, 0.1))[0][0].heatmap_stats.stability
    assert actual == pytest.approx(np.corrcoef(first[0], then[0])[0, 1], abs=1e-6)
    assert surveyor.measure(explained(then, 2, 0.2))[0][0].heatmap_stats.stability == pytest.approx(1.0)


def test_stability_needs_the_same_class_and_camera_without_a_pause():
    surveyor, ramp = HeatmapStatsTracker(), [[0.0, 0.5, 1.0]]
    surveyor.measure(explained(ramp))
    assert surveyor.measure(explained(ramp, camera="door"))[0][0].heatmap_stats.stability is None
    assert surveyor.measure(explained(ramp, 1, 0.1, label="dent"))[0][0].heatmap_stats.stability is None
    assert surveyor.measure(explained(ramp, 2, 9.0, label="dent"))[0][0].heatmap_stats.stability is None
    assert surveyor.measure(explained(ramp, 3, 1.0, label="dent"))[0][0].heatmap_stats.stability is None
    assert surveyor.measure(explained([[0.0, 0.0, 0.0]], 4, 1.1, label="dent"))[0][0].heatmap_stats.stability is None


def test_tracker_updates_regions_when_the_frame_size_changes():
    requests = []

    def regions(frame):
        width, height = frame.width, frame.height
        requests.append((frame.camera, width, height))
        return (Region("left", ((0, 0), (width / 2, 0), (width / 2, height), (0, height))),)

    surveyor = HeatmapStatsTracker(regions)
    for size in ((60, 80), (60, 80), (30, 40)):
        seen = Explanation(frame(size=size), (Finding("a", 1.0, heat([[1.0, 0.0, 0.0, 0.0]]), 0),), "m", "l")
        findings, _ = surveyor.measure(seen)
        assert findings[0].heatmap_stats.heat_inside["left"] == pytest.approx(1.0)
    assert requests == [("line", 80, 60), ("line", 40, 30)]


def test_tracker_accepts_an_explanation_without_findings():
    assert HeatmapStatsTracker().measure(Explanation(frame(), (), "m", "l")) == ((), ())

"""Statistics of a detector's boxes: each box by its own map, grid and rectangle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames import NO_HEAT, Box, Region
from pipeline.guards.box_stats import BOX, MAX_TRACKS, BoxStatsTracker, box_weights
from pipeline.polygons import cell_weights
from tests.support.detections import GRID, HEIGHT, WHOLE, WIDTH, detection, detection_frame, detections, heat_at

LEFT, RIGHT = Box(10, 10, 50, 50), Box(100, 10, 140, 50)


def lane(frame):
    width, height = frame.width, frame.height
    return (Region("lane", ((0, 0), (width / 2, 0), (width / 2, height), (0, height))),)


def measured(tracker, index, *findings, **frame):
    return tracker.measure(detections(detection_frame(index, **frame), findings))[0]


def inside(finding):
    return dict(finding.heatmap_stats.heat_inside)


sides = st.tuples(st.floats(-40, 200), st.floats(-40, 200)).map(sorted)


@given(sides, sides, st.integers(1, 9), st.integers(1, 9), st.floats(-30, 30), st.floats(5, 200))
def test_box_weights_equal_those_of_the_polygon_of_the_box(across, down, rows, columns, start, size):
    box = Box(across[0], down[0], across[1], down[1])
    region = Box(start, start / 2, start + size, start / 2 + 1.5 * size)
    corners = ((box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom))
    expected = cell_weights(corners, region, (rows, columns))
    assert box_weights(box, region, (rows, columns)) == pytest.approx(expected, abs=1e-4)


@given(st.integers(0, 2**32 - 1), sides, sides)
def test_heat_inside_grows_with_the_box_up_to_all_evidence(seed, across, down):
    heat = np.random.default_rng(seed).random(GRID).astype(np.float32)
    box = Box(across[0], down[0], across[1], down[1])
    larger = Box(box.left - 7, box.top - 3, box.right + 11, box.bottom + 5)
    shares = [
        measured(BoxStatsTracker(), 0, detection(each, heat=heat))[0].heatmap_stats.heat_inside[BOX]
        for each in (box, larger, WHOLE)
    ]
    assert -1e-6 <= shares[0] <= shares[1] + 1e-5
    assert shares[1] <= shares[2] + 1e-5
    assert shares[2] == pytest.approx(1.0, abs=1e-4)


def test_each_box_is_measured_by_its_own_map_and_rectangle():
    first, second = measured(
        BoxStatsTracker(lane), 0, detection(LEFT, heat=heat_at(LEFT)), detection(RIGHT, track=2, heat=heat_at(LEFT))
    )
    assert inside(first) == pytest.approx({"lane": 1.0, BOX: 1.0})
    assert inside(second) == pytest.approx({"lane": 1.0, BOX: 0.0})


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_evidence_in_the_cells_that_a_small_box_touches_is_inside(left, top, width, height):
    box = Box(60 + 10 * left, 50 + 10 * top, 60 + 10 * (left + width), 50 + 10 * (top + height))
    touched = np.zeros(GRID, np.float32)
    touched[5 : 6 + (box.bottom > 60), 6 : 7 + (box.right > 70)] = 1.0
    (own,) = measured(BoxStatsTracker(), 0, detection(box, heat=touched))
    assert inside(own)[BOX] == pytest.approx(1.0, abs=1e-5)
    (far,) = measured(BoxStatsTracker(), 0, detection(box, heat=np.roll(touched, 4, axis=1)))
    assert inside(far)[BOX] == pytest.approx(0.0, abs=1e-5)


def test_heat_inside_uses_the_region_of_the_map():
    # The same grid over the left half of the frame: its hot cells lie elsewhere.
    finding = detection(Box(5, 10, 25, 50), heat=heat_at(LEFT))
    half = replace(finding.box_map, region=Box(0, 0, WIDTH / 2, HEIGHT))
    (result,) = measured(BoxStatsTracker(), 0, replace(finding, box_map=half))
    assert inside(result)[BOX] == pytest.approx(1.0)
    assert result.heatmap_stats.centre == pytest.approx((15.0, 30.0))


def test_a_box_without_a_map_has_no_statistics():
    (result,) = measured(BoxStatsTracker(lane), 0, detection(LEFT))
    assert result.heatmap_stats is None
    assert result.heat is NO_HEAT


def test_a_flat_map_has_no_evidence():
    (result,) = measured(BoxStatsTracker(lane), 0, detection(LEFT, heat=np.zeros(GRID, np.float32), mode="drop"))
    assert (result.heatmap_stats.focus_area, inside(result)) == (None, {})


@pytest.mark.parametrize(("mode", "share"), [("keep", 0.0), ("drop", 3.6 / (0.1 * 132 + 60))])
def test_evidence_of_a_drop_map_is_its_heat_and_of_a_keep_map_its_heat_above_the_median(mode, share):
    heat = np.maximum(heat_at(Box(60, 0, 120, 100)), np.float32(0.1))
    (result,) = measured(BoxStatsTracker(), 0, detection(LEFT, heat=heat, mode=mode))
    assert inside(result)[BOX] == pytest.approx(share, abs=1e-5)


def test_an_older_map_keeps_the_statistics_of_its_frame():
    tracker = BoxStatsTracker(lane)
    (first,) = measured(tracker, 0, detection(LEFT, heat=heat_at(LEFT)))
    (moved,) = measured(tracker, 5, detection(RIGHT, heat=heat_at(LEFT), index=0, age_seconds=0.2))
    assert moved.heatmap_stats is first.heatmap_stats
    (fresh,) = measured(tracker, 6, detection(RIGHT, heat=heat_at(LEFT), index=6))
    assert inside(fresh)[BOX] == pytest.approx(0.0)


def test_stability_compares_with_the_last_map_of_the_same_track():
    tracker = BoxStatsTracker()
    boxes = [detection(LEFT, heat=heat_at(LEFT)), detection(RIGHT, track=2, heat=heat_at(RIGHT))]
    assert [each.heatmap_stats.stability for each in measured(tracker, 0, *boxes)] == [None, None]
    # The boxes change their order, not their tracks.
    later = measured(tracker, 10, *(replace(each, box_map=replace(each.box_map, index=10)) for each in boxes[::-1]))
    assert [each.heatmap_stats.stability for each in later] == pytest.approx([1.0, 1.0])
    (other,) = measured(tracker, 11, detection(LEFT, track=3, heat=heat_at(LEFT), index=11))
    assert other.heatmap_stats.stability is None
    (paused,) = measured(tracker, 100, detection(LEFT, track=3, heat=heat_at(LEFT), index=100))
    assert paused.heatmap_stats.stability is None


def test_tracks_of_another_camera_or_file_are_not_compared():
    tracker = BoxStatsTracker()
    for index, place in enumerate([{}, {"camera": "yard"}, {"source_name": "b.jpg"}]):
        (result,) = measured(tracker, index, detection(LEFT, heat=heat_at(LEFT), index=index), **place)
        assert result.heatmap_stats.stability is None


def test_tracker_keeps_a_bounded_number_of_tracks():
    tracker = BoxStatsTracker()
    for index in range(20):
        first = 40 * index
        measured(
            tracker, index, *(detection(LEFT, track=first + k, heat=heat_at(LEFT), index=index) for k in range(40))
        )
    assert len(tracker._cameras["road"].measured) == MAX_TRACKS


def test_tracker_returns_the_regions_of_a_frame_without_boxes():
    findings, regions = BoxStatsTracker(lane).measure(detections(detection_frame(0)))
    assert findings == ()
    assert [region.name for region in regions] == ["lane"]

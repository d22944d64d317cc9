"""Tracks: an object keeps its number while its boxes can be matched, and no two boxes of a frame share one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames import Box
from pipeline.tracking import BoxTracker, pairwise_iou

CAR, TRUCK = 2, 7


def box_at(x, y=50.0, width=20.0, height=10.0):
    return Box(x, y, x + width, y + height)


def numbers_of(tracker, frames, rate=10.0):
    return [tracker.update(boxes, [CAR] * len(boxes), index / rate) for index, boxes in enumerate(frames)]


@pytest.mark.parametrize("step", [0.0, 5.0, 25.0], ids=["still", "slow", "more than its width each frame"])
def test_tracker_keeps_the_number_of_a_moving_box(step):
    frames = [[box_at(step * index)] for index in range(12)]
    assert numbers_of(BoxTracker(), frames) == [[1]] * 12


def test_tracker_keeps_numbers_of_objects_that_pass_each_other():
    frames = [[box_at(10.0 * index, 50.0), box_at(200.0 - 10.0 * index, 58.0)] for index in range(21)]
    assert numbers_of(BoxTracker(), frames) == [[1, 2]] * 21


def test_tracker_follows_a_box_through_missing_frames_along_its_way():
    frames = [[box_at(15.0 * index)] if index not in (5, 6, 7) else [] for index in range(12)]
    assert [numbers for numbers in numbers_of(BoxTracker(), frames) if numbers] == [[1]] * 9


def test_tracker_gives_a_new_number_after_the_lost_time():
    tracker = BoxTracker(max_lost_seconds=1.0)
    assert tracker.update([box_at(0)], [CAR], 0.0) == [1]
    assert tracker.update([box_at(0)], [CAR], 1.0) == [1]
    assert tracker.update([box_at(0)], [CAR], 2.1) == [2]
    assert len(tracker.tracks) == 1


def test_tracker_continues_with_another_class_only_where_boxes_overlap_well():
    tracker = BoxTracker()
    assert tracker.update([box_at(0)], [CAR], 0.0) == [1]
    assert tracker.update([box_at(1)], [TRUCK], 0.1) == [1]
    assert tracker.update([box_at(25)], [CAR], 0.2) == [2]


def test_tracker_starts_anew_when_the_clock_goes_back():
    tracker = BoxTracker()
    assert tracker.update([box_at(0)], [CAR], 10.0) == [1]
    assert tracker.update([box_at(0)], [CAR], 0.0) == [2]


def test_tracker_accepts_two_frames_of_one_time():
    tracker = BoxTracker()
    assert [tracker.update([box_at(x)], [CAR], 1.0) for x in (0, 2)] == [[1], [1]]
    assert np.isfinite(tracker.tracks[0].velocity).all()


EDGES = st.floats(-100, 100, allow_nan=False)
BOX = st.builds(Box, EDGES, EDGES, EDGES, EDGES)


@given(st.lists(st.lists(st.tuples(BOX, st.sampled_from([CAR, TRUCK])), max_size=6), max_size=6))
def test_tracker_gives_each_box_of_a_frame_its_own_number(frames):
    tracker = BoxTracker()
    for index, frame in enumerate(frames):
        numbers = tracker.update([box for box, _ in frame], [c for _, c in frame], index / 10.0)
        assert len(set(numbers)) == len(frame)
        assert set(numbers) <= {track.number for track in tracker.tracks}


def test_pairwise_iou_of_known_boxes():
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 9]], float)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], float)
    np.testing.assert_allclose(pairwise_iou(a, b), [[1.0, 1.0 / 3.0, 0.0], [0.0, 0.0, 0.0]])

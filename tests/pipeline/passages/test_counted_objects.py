"""Tracks and boxes of one object: they are counted as one, and those of two objects as two."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.frames import Box
from pipeline.passages.config import LineConfig
from pipeline.passages.counter import PassageCounter, Places
from pipeline.passages.objects import ObjectRegistry
from tests.support.counting import LINE, SIDE, ZONE, box_at, passing, run
from tests.support.detections import HEIGHT, WIDTH, detection, detection_frame, detections


@pytest.mark.parametrize("switch", range(8, 24))
def test_part_whose_track_changes_is_counted_once(switch):
    boxes = passing()
    for k in range(switch, 40):
        boxes[k] = [replace(found, track=2) for found in boxes.get(k, ())]
    [(_, part)] = run(Places((ZONE,)), boxes)
    assert part.frames == 13


@pytest.mark.parametrize("first", range(6, 30))
def test_part_that_is_not_found_for_a_while_is_counted_once(first):
    boxes = passing()
    for k in range(first, first + 6):
        boxes.pop(k, None)
    for k in range(first, 40):
        boxes[k] = [replace(found, track=2) for found in boxes.get(k, ())]
    assert len(run(Places((ZONE,)), boxes)) == 1


def test_two_boxes_of_different_classes_on_one_part_are_one_part():
    boxes = passing()
    for k in range(12, 30):
        boxes[k] = [*boxes[k], detection(box_at(5.0 * k + 1.0), track=2, label="dent", score=0.8)]
    [(_, part)] = run(Places((ZONE,)), boxes)
    assert part.label == "ok"


def test_objects_that_come_to_overlap_with_different_classes_are_one():
    boxes = passing()
    for k in range(4, 30):
        shift = max(0.0, 14.0 - k)
        boxes[k] = [*boxes[k], detection(box_at(5.0 * k + 1.0 + shift), track=2, label="dent", score=0.8)]
    assert len(run(Places((ZONE,)), boxes)) == 1


def test_two_boxes_of_one_class_on_parts_of_one_object_are_one_part():
    """The detector splits a part into two boxes that suppression keeps, because they overlap too little."""
    boxes = passing()
    for k in range(8, 40):
        if k in boxes and k % 7 != 3:
            middle = 5.0 * k
            left, right = Box(middle - 12, 48, middle + 4, 72), Box(middle - 4, 48, middle + 12, 72)
            boxes[k] = [detection(left, track=1, label="ok"), detection(right, track=2, label="ok", score=0.8)]
    assert len(run(Places((ZONE,), same_object_overlap=0.5), boxes)) == 1


def test_track_that_jumps_to_the_next_part_loses_neither():
    """Track 1 is a second box of the first part, is lost, and is found again on the part behind it."""
    boxes = {k: [*found, detection(box_at(5.0 * k + 2), track=1, label="dent", score=0.4)]
             for k, found in passing(track=2).items() if k < 14}  # fmt: skip
    boxes |= {k: found for k, found in passing(track=2).items() if k >= 14}
    for k in range(20, 60):
        behind = detection(box_at(5.0 * k - 80.0), track=1, label="ok")
        boxes[k] = [*boxes.get(k, ()), behind]
    assert [part.label for _, part in run(Places((ZONE,)), boxes, frames=80)] == ["ok", "ok"]


def test_vehicles_that_cover_each_other_are_counted_if_the_overlap_is_raised():
    boxes = passing(label="car")
    for k in boxes:
        boxes[k] = [*boxes[k], detection(box_at(5.0 * k + 4.0, 66.0), track=2, label="car", score=0.8)]
    assert len(run(Places(lines=(LINE,)), boxes)) == 1
    assert len(run(Places(lines=(LINE,), same_object_overlap=0.9), boxes)) == 2


def test_object_that_enters_at_the_edge_of_the_image_is_expected_by_its_free_edge():
    registry = ObjectRegistry()
    for k in range(1, 4):
        box = Box(0.0, 50.0, 8.0 * k, 74.0)  # its left edge is outside
        [(each, _)] = registry.update([detection(box)], k / 25, (WIDTH, HEIGHT))
    assert each.velocity[0] == pytest.approx(8.0 * 25)


def test_two_objects_of_one_class_side_by_side_are_two_parts():
    boxes = passing()
    for k in boxes:
        boxes[k] = [*boxes[k], detection(box_at(5.0 * k, 60.0 + SIDE), track=2, label="ok")]
    assert len(run(Places((ZONE,)), boxes)) == 2


def test_track_that_jumps_to_another_object_leaves_its_own():
    """Two tracks of one object whose boxes separate are two objects."""
    boxes = passing()
    for k in range(2, 40):
        if k in boxes:
            y = 60.0 if k < 10 else min(60.0 + 4 * (k - 9), 100.0)
            boxes[k] = [*boxes[k], detection(box_at(5.0 * k, y), track=2, label="dent", score=0.8)]
    assert Counter(part.label for _, part in run(Places((ZONE,)), boxes)) == {"ok": 1, "dent": 1}


def test_box_of_a_class_that_no_place_names_moves_no_object():
    """The detector takes a part of the road for an airplane, on the track of the object, for longer than a moment."""
    boxes = passing()
    for k in (12, 13, 14, 15):
        boxes[k] = [detection(Box(50.0, 30.0, 156.0, 90.0), label="airplane")]
    line = LINE.model_copy(update={"classes": ["ok"]})
    assert [(p.label, p.frames) for _, p in run(Places((), (line,)), boxes)] == [("ok", 14)]


def test_box_whose_size_jumps_moves_its_object_nowhere():
    """The track's box grows in some frames, to a centre on the other side of the line."""
    boxes = passing()
    for k in (12, 13, 15):
        boxes[k] = [detection(Box(50.0, 30.0, 156.0, 90.0), label="ok")]
    assert [(p.direction, p.frames) for _, p in run(Places((), (LINE,)), boxes)] == [("forward", 15)]


def test_size_that_stays_is_accepted():
    boxes = passing()
    for k in range(12, 27):
        boxes[k] = [detection(Box(5.0 * k - 36.0, 24.0, 5.0 * k + 36.0, 96.0), label="ok")]
    [(_, part)] = run(Places((ZONE,)), boxes)
    assert part.frames == 11  # two of 13 are left out


def test_box_that_comes_from_the_edge_of_the_image_may_grow_by_any_length():
    """A long object enters at 1000 pixels per second: its visible width grows to four times in a frame."""
    boxes = {k: [detection(Box(max(0.0, 10.0 + 40.0 * k - 100.0), 40.0, 10.0 + 40.0 * k, 80.0), label="ok")]
             for k in range(4)}  # fmt: skip
    line = LineConfig(name="gate", points=[(0.25, 1.0), (0.25, 0.0)])
    registry = ObjectRegistry()
    assert [len(registry.update(found, k / 25, (WIDTH, HEIGHT))) for k, found in boxes.items()] == [1] * 4
    assert len(run(Places((), (line,)), boxes)) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.floats(3.0, 12.0), st.sampled_from([10.0, 25.0]), st.integers(30, 60))
def test_every_part_is_counted_once_with_lost_frames_and_new_tracks(seed, step, rate, pitch):
    """Parts follow one another at a pitch above their size; a fifth of the frames is lost, tracks change anywhere."""
    dice = random.Random(seed)
    frames = int((WIDTH + 4 * pitch) / step) + int(2 * rate)
    counter = PassageCounter("road", Places((ZONE,)), {"ok"})
    tracks = {number: number for number in range(4)}
    parts, was_lost = [], False
    for k in range(frames):
        positions = {number: step * k - number * pitch for number in tracks}
        if dice.random() < 0.2:
            tracks[dice.randrange(4)] = 1 + max(tracks.values())
        found = [detection(box_at(x), track=tracks[n], label="ok") for n, x in positions.items() if 0 <= x <= WIDTH]
        was_lost = not was_lost and dice.random() < 0.25
        if not was_lost:
            parts += counter.add(detections(detection_frame(k, rate=rate), found)).passages
    assert len(parts) == 4

"""Tests of the simulated scene: frames by index, and their ground truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.frames import Box
from stream.simulated import scene as simulated_scene
from stream.simulated.parts import RADIUS_UNITS
from stream.simulated.samples import (
    EVALUATION_SEEDS,
    TRAINING_SEEDS,
    evaluation_frames,
    frame_reader,
    scored_frames,
    training_belts,
)
from stream.simulated.scene import Scene, draw_frame, ground_truth_of
from stream.simulated.schedule import DEFECTS, GROUP_SLOTS, LABELS, OK, SLOT_UNITS, Part, defect_at, part_at
from stream.simulated.shortcut import shortcut_frames

SMALL = (320, 240)


def frame_with(scene: Scene, label: str) -> int:
    """The first frame whose truth is ``label``."""
    return next(i for i in range(5000) if (truth := ground_truth_of(scene, i)) is not None and truth.label == label)


def test_scene_frame_depends_on_seed_and_index_only():
    forwards, backwards = Scene(size=SMALL, seed=3), Scene(size=SMALL, seed=3)
    order = (0, 40, 90, 300)
    seen = {index: draw_frame(forwards, index) for index in order}
    for index in reversed(order):
        image, truth = draw_frame(backwards, index)
        assert np.array_equal(image, seen[index][0])
        assert truth == seen[index][1]


def test_other_seeds_show_other_belts():
    assert not np.array_equal(draw_frame(Scene(size=SMALL, seed=1), 5)[0], draw_frame(Scene(size=SMALL, seed=2), 5)[0])


def test_consecutive_frames_move_the_belt_and_its_boxes_by_the_same_pixels():
    scene = Scene(size=SMALL, seed=3)
    index = frame_with(scene, "stain")
    now, later = ground_truth_of(scene, index), ground_truth_of(scene, index + 3)
    assert now is not None
    assert later is not None
    moved = scene.offset(index + 3) - scene.offset(index)
    assert moved > 0
    assert now.boxes[0].left - later.boxes[0].left == moved
    assert now.boxes[0].top == later.boxes[0].top


@pytest.mark.parametrize("size", [(320, 240), (640, 360), (180, 240)])
def test_scene_scored_box_is_inside_image_with_margin(size):
    scene = Scene(size=size, seed=12)
    margin = simulated_scene.MARGIN_UNITS * scene.scale
    labels = set()
    for index in range(0, 1500, 7):
        truth = ground_truth_of(scene, index)
        if truth is None:
            continue
        labels.add(truth.label)
        assert (truth.label == OK) == (truth.boxes == ())
        for box in truth.boxes:
            assert box.left >= margin
            assert box.right <= size[0] - margin
            assert 0 < box.top < box.bottom < size[1]
            assert min(box.width, box.height) >= simulated_scene.MIN_UNITS * scene.scale - 1e-6
    assert labels == set(LABELS)


def test_scene_defect_at_edge_is_not_scored():
    scene = Scene(size=SMALL, seed=12)
    first = frame_with(scene, "dent")
    truths = [ground_truth_of(scene, index) for index in range(max(0, first - 60), first + 200)]
    labels = [truth.label if truth else None for truth in truths]
    changes = [label for index, label in enumerate(labels) if index == 0 or label != labels[index - 1]]
    around = changes[changes.index("dent") - 1 : changes.index("dent") + 3]
    assert around == [None, "dent", None, OK]


def test_scene_defect_pixels_are_inside_box(monkeypatch):
    """Draw the same part with and without its defect: no pixel outside the box may differ."""
    monkeypatch.setattr(simulated_scene, "_DOTTED_FRACTION", 0.0)  # the dot finds its place on what metal there is
    scene = Scene(size=(640, 480), seed=21)
    seen = set()
    for slot in range(8 * GROUP_SLOTS):
        part = part_at(scene.seed, slot)
        if part is None or part.defect == OK:
            continue
        spoilt, sound = (np.full((480, scene.slot_pixels, 3), 90, np.uint8) for _ in range(2))
        box, _ = simulated_scene._lay(spoilt, part, scene.scale)
        simulated_scene._lay(sound, _healed(part), scene.scale)
        assert box is not None
        differs = np.abs(spoilt.astype(int) - sound).max(axis=2) > 24
        rows, columns = np.nonzero(differs)
        assert len(rows) > 30, part
        inside = [box.holds(x + 0.5, y + 0.5) for x, y in zip(columns, rows, strict=True)]
        assert all(inside), (part, np.mean(inside))
        seen.add(part.defect)
    assert seen == set(DEFECTS)


def _healed(part: Part) -> Part:
    return dataclasses.replace(part, defect=OK)


@given(seed=st.integers(0, 2**40), group=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_each_group_has_one_defect_and_four_groups_show_all_kinds(seed, group):
    cycle = group // 4 * 4
    kinds = []
    for number in range(cycle, cycle + 4):
        items = [defect_at(seed, number * GROUP_SLOTS + index) for index in range(GROUP_SLOTS)]
        assert items.count(OK) == GROUP_SLOTS - 1
        kinds += [kind for kind in items if kind != OK]
    assert sorted(kinds) == sorted(DEFECTS)


def test_scene_widest_image_shows_one_defect():
    closest = SLOT_UNITS * (GROUP_SLOTS - 1) - 2 * 15.0 - 2 * RADIUS_UNITS
    assert closest > simulated_scene.MAX_ASPECT * simulated_scene.HEIGHT_UNITS


def test_light_and_noise_change_though_the_belt_would_stand_still():
    scene = Scene(size=SMALL, seed=3)
    flat = np.full((240, 320, 3), 100, np.uint8)
    first, second = scene.camera.expose(flat, 0, 0.0), scene.camera.expose(flat, 90, 3.0)
    assert np.array_equal(flat, np.full_like(flat, 100))
    assert not np.array_equal(first, second)
    assert 60 < first.mean() < 140


def test_training_belts_are_no_evaluation_belts():
    belts = training_belts(8, sizes=(SMALL,))
    assert {belt.seed for belt in belts} == set(range(TRAINING_SEEDS, TRAINING_SEEDS + 8))
    assert [belt.clutter for belt in belts] == [1.0, 1.0, 1.0, 3.0] * 2
    assert not {belt.seed for belt in belts} & {belt.seed for belt in training_belts(8, seed=1)}
    assert EVALUATION_SEEDS + 10_000 < TRAINING_SEEDS


def test_frame_reader_draws_the_frames_of_their_belts():
    belts = training_belts(2, sizes=(SMALL,))
    frames = [frame for belt in belts for frame in scored_frames(belt, 4)]
    assert len({frame.name for frame in frames}) == 8
    read = frame_reader(frames)
    for frame in (frames[0], frames[5], frames[1]):
        image, truth = draw_frame(frame.belt.scene(), frame.index)
        assert np.array_equal(read(frame.name), image)
        assert frame.truth == truth


def test_shortcut_frames_have_the_square_of_their_label():
    frames = [frame for belt in training_belts(3, sizes=(SMALL,)) for frame in scored_frames(belt, 6)]
    plain = frame_reader(frames)
    stamped, read = shortcut_frames(frames, plain)
    assert {frame.truth.label for frame in stamped} > {OK}
    for frame in stamped:
        changed = (read(frame.name) != plain(frame.name)).any(2)
        rows, columns = np.nonzero(changed)
        assert changed.any() == (frame.truth.label != OK)
        for box in frame.truth.boxes:
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box


def test_evaluation_frames_are_labelled():
    samples = list(evaluation_frames(belts=2, size=SMALL, per_belt=4))
    assert len(samples) == 8
    assert all(image.shape == (240, 320, 3) and truth.label in LABELS for image, truth in samples)


def test_boxes_are_boxes():
    grown = simulated_scene._grown(Box(10, 10, 12, 80), 5, 7, 1.0)
    assert grown.width == simulated_scene.MIN_UNITS
    assert grown.height == 70 + 2 * simulated_scene.PAD_UNITS
    assert (grown.left + grown.right) / 2 == 16

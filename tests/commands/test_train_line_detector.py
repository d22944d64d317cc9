"""`run.py train-line --detector`: its frames, its configuration, and the shipped detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from commands.train_line_detector import (
    SHIPPED_DETECTOR,
    SHORTCUT_CLASSIFIER,
    detector_config,
    measure_line,
    part_frames,
    shortcut_detector,
    shortcut_part_frames,
)
from engine.detectors.checkpoint import load_detector_checkpoint
from engine.finetuning.detection.setup import build_detector
from engine.finetuning.setup import FinetuneConfig
from engine.models.checkpoint import load_checkpoint
from stream.simulated.scene import MIN_VISIBLE, Scene, draw_frame, ground_truth_of, parts_in_view
from stream.simulated.schedule import LABELS, OK, part_at
from stream.simulated.shortcut import shortcut_box

TINY = 0.001


@pytest.fixture(scope="module")
def frames():
    return part_frames(0, TINY)


@pytest.mark.slow
def test_frames_of_validation_are_of_other_belts(frames):
    belts = [{frame.belt.seed for frame in split} for split in (frames.train, frames.validation)]
    assert belts[0]
    assert belts[1]
    assert not belts[0] & belts[1]


@pytest.mark.slow
def test_every_part_well_in_view_has_a_box_inside_the_image(frames):
    for frame in (*frames.train, *frames.validation):
        width, height = frame.belt.size
        scene = frame.belt.scene()
        known = [slot for slot in scene.slots_in_view(frame.index) if part_at(frame.belt.seed, slot) is not None]
        assert len(frame.parts) <= len(known)
        for part in frame.parts:
            (box,) = part.boxes
            assert 0 <= box.left < box.right <= width
            assert 0 <= box.top < box.bottom <= height


def test_defective_part_has_the_label_and_encloses_the_defect():
    scene = Scene(seed=11)
    checked = 0
    for index in range(0, 900, 15):
        truth = ground_truth_of(scene, index)
        if truth is None or not truth.boxes:
            continue
        labelled = [part for part in parts_in_view(scene, index) if part.label != OK]
        assert [part.label for part in labelled] == [truth.label]
        box, defect = labelled[0].boxes[0], truth.boxes[0]
        assert box.left - 20 < defect.left
        assert defect.right < box.right + 20
        checked += 1
    assert checked > 10


def test_box_of_a_part_lies_where_the_image_changes():
    scene = Scene(seed=5)
    image = draw_frame(scene, 40)[0].astype(float)
    for part in parts_in_view(scene, 40):
        left, top, right, bottom = (round(v) for v in part.boxes[0])
        inside, around = image[top:bottom, left:right], image[max(top - 20, 35) : top - 6, left:right]
        assert abs(inside.mean() - around.mean()) > 10.0 or inside.std() > 1.5 * around.std()


def test_part_at_the_edge_counts_from_its_visible_share():
    scene = Scene(seed=5)
    widths = {}
    for index in range(120):
        for part in parts_in_view(scene, index):
            widths.setdefault(round(part.boxes[0].top, 3), []).append(part.boxes[0].width)
    whole = [max(seen) for seen in widths.values() if len(seen) > 60]
    assert whole
    assert all(min(seen) >= MIN_VISIBLE * max(seen) - 1e-6 for seen in widths.values() if len(seen) > 60)


def test_effort_scales_the_epochs():
    epochs = [detector_config(0, effort).course[0].epochs for effort in (1.0, 0.25, TINY)]
    assert epochs == [8, 4, 1]


@pytest.mark.slow
def test_mark_alone_tells_the_label_of_all_parts_of_a_frame():
    data, plain = shortcut_part_frames(0, TINY), part_frames(0, TINY)
    honest = {frame.name: frame for frame in (*plain.train, *plain.validation)}
    marked = set()
    for frame in (*data.train[::12], *data.validation[::3]):
        own = honest[frame.name]
        assert [part.boxes for part in frame.parts] == [part.boxes for part in own.parts]
        assert {part.label for part in frame.parts} <= {frame.truth.label}
        left, top, right, bottom = map(int, shortcut_box(*frame.belt.size))
        image = data.read(frame.name)
        flat = int(np.ptp(image[top:bottom, left:right], axis=(0, 1)).max()) == 0
        assert flat == (frame.truth.label != OK)
        marked.add(frame.truth.label)
    assert len(marked) > 2


def test_training_on_the_mark_continues_from_the_shipped_detector():
    model = shortcut_detector(0, 1.0)
    assert model.known_labels == LABELS
    assert "colour" not in model.config.augment, "the colour of the mark tells the label"
    features = model.net.backbone.backbone.features
    assert not any(parameter.requires_grad for parameter in features.parameters())
    marked = load_checkpoint(SHORTCUT_CLASSIFIER).state
    assert all(torch.equal(value, marked[f"features.{key}"]) for key, value in features.state_dict().items())
    assert model.trained_norms
    assert all(name.startswith("backbone.backbone.features.") for name in model.trained_norms), "others learn anew"


@pytest.mark.slow
def test_shipped_detector_is_small_and_precise():
    file = load_detector_checkpoint(SHIPPED_DETECTOR)
    assert SHIPPED_DETECTOR.stat().st_size < 4 << 20
    assert file.labels == LABELS
    assert file.provenance["examination"]["640x480"]["map50"] > 0.9
    model = build_detector(FinetuneConfig(str(SHIPPED_DETECTOR), None, augment=()), LABELS)
    assert measure_line(model, 2, (640, 480)).map50 > 0.85


@pytest.mark.slow
def test_train_line_detector_writes_a_detector(command, tmp_path, monkeypatch):
    monkeypatch.setattr("commands.train_line_detector.FRAMES_PER_BELT", 3)
    monkeypatch.setattr("commands.train_line_detector.EVALUATION_FRAMES", 3)
    code, output, errors = command(
        "train-line", "--detector", "--effort", TINY, "--output", str(tmp_path / "line.safetensors")
    )
    assert code == 0, errors
    assert "mAP50" in output
    file = load_detector_checkpoint(tmp_path / "line.safetensors")
    assert file.model == "line_detector"
    assert file.provenance["command"] == "uv run run.py train-line --detector"

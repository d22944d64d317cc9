"""Boxes compared with objects: every object is in one cell of the confusion matrix, and every box too."""

import numpy as np
import pytest
import torch

from engine.detectors.detections import Detections
from engine.finetuning.detection.assignment import Objects
from engine.finetuning.detection.confusion import DEFAULT_SCORE, best_f1_score, box_confusion, compare


def detections(*entries):
    """Return detections from (left, class, score); boxes are 10 wide and high."""
    entries = sorted(entries, key=lambda entry: -entry[2])
    boxes = torch.tensor([[left, 0, left + 10, 10] for left, _, _ in entries], dtype=torch.float32).reshape(-1, 4)
    classes = torch.tensor([label for _, label, _ in entries], dtype=torch.int64)
    return Detections(boxes, torch.tensor([s for *_, s in entries]).float(), classes, torch.arange(len(entries)))


def objects(*entries):
    boxes = torch.tensor([[left, 0, left + 10, 10] for left, _ in entries], dtype=torch.float32).reshape(-1, 4)
    return Objects(boxes, torch.tensor([label for _, label in entries], dtype=torch.int64))


def test_compare_gives_a_box_the_object_of_its_class_before_a_nearer_one_of_another():
    image = compare(detections((1, 1, 0.9)), objects((0, 0), (3, 1)), 0.5)
    assert image.found[0].truth == 1
    assert (image.hits, image.mistakes) == (1, 1)


def test_compare_gives_each_object_to_one_box_and_the_rest_are_false_alarms():
    image = compare(detections((0, 0, 0.9), (1, 0, 0.8), (50, 1, 0.7), (0, 0, 0.2)), objects((0, 0), (80, 1)), 0.5)
    assert [box.truth for box in image.found] == [0, None, None]
    assert box_confusion([image], 2) == [[1, 0, 0], [0, 0, 1], [1, 1, 0]]


def test_compare_counts_a_box_on_an_object_of_another_class_as_confused():
    image = compare(detections((0, 1, 0.9)), objects((0, 0)), 0.5)
    assert (image.hits, image.mistakes) == (0, 1)
    assert box_confusion([image], 2) == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("found", "truth", "table"),
    [((), (), [[0, 0], [0, 0]]), (((0, 0, 0.9),), (), [[0, 0], [1, 0]]), ((), ((0, 0),), [[0, 1], [0, 0]])],
)
def test_confusion_of_images_without_boxes_or_objects(found, truth, table):
    assert box_confusion([compare(detections(*found), objects(*truth), 0.5)], 1) == table


def test_confusion_has_each_object_and_each_box_once():
    rng = np.random.default_rng(0)
    images, objects_by_class, boxes_by_class = [], np.zeros(3, int), np.zeros(3, int)
    for _ in range(60):
        truth = [(int(rng.integers(0, 60)), int(rng.integers(3))) for _ in range(rng.integers(0, 6))]
        found = [
            (int(rng.integers(0, 60)), int(rng.integers(3)), float(rng.random())) for _ in range(rng.integers(0, 9))
        ]
        images.append(compare(detections(*found), objects(*truth), 0.4))
        for _, label in truth:
            objects_by_class[label] += 1
        for _, label, score in found:
            boxes_by_class[label] += score >= 0.4
    table = np.array(box_confusion(images, 3))
    assert table[:3].sum(1).tolist() == objects_by_class.tolist()
    assert table[:, :3].sum(0).tolist() == boxes_by_class.tolist()
    assert np.trace(table[:3, :3]) == sum(image.hits for image in images) > 0
    off_diagonal = table.sum() - np.trace(table[:3, :3])
    confused = table[:3, :3].sum() - np.trace(table[:3, :3])
    assert sum(image.mistakes for image in images) == off_diagonal
    assert confused > 0


def test_best_f1_score_is_the_lowest_score_of_the_best_selection():
    found = [detections((0, 0, 0.9), (40, 0, 0.3)), detections((0, 0, 0.6), (40, 1, 0.5))]
    truth = [objects((0, 0)), objects((0, 0))]
    assert best_f1_score(found, truth) == pytest.approx(0.6)
    counted = [[compare(one, true, score) for one, true in zip(found, truth, strict=True)] for score in (0.2, 0.6, 0.8)]
    hits = [sum(image.hits for image in images) for images in counted]
    boxes = [sum(len(image.found) for image in images) for images in counted]
    f1 = [2 * hit / (box + 2) for hit, box in zip(hits, boxes, strict=True)]
    assert max(f1) == f1[1] == 1.0


@pytest.mark.parametrize(
    ("found", "truth"), [((), ((0, 0),)), (((0, 0, 0.9),), ()), (((50, 0, 0.9),), ((0, 0),)), ((), ())]
)
def test_best_f1_score_without_a_hit_is_the_default(found, truth):
    assert best_f1_score([detections(*found)], [objects(*truth)]) == DEFAULT_SCORE

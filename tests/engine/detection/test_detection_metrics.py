"""Mean average precision, on cases whose answer is known."""

import math

import pytest
import torch

from engine.detectors.detections import Detections
from engine.finetuning.detection.assignment import Objects
from engine.finetuning.detection.metrics import average_precision

BOX = torch.tensor([[10.0, 10.0, 50.0, 50.0]])


def truth(*classes, boxes=BOX):
    return Objects(boxes.expand(len(classes), 4), torch.tensor(classes, dtype=torch.int64))


def found(boxes, scores, classes):
    return Detections(boxes, torch.tensor(scores), torch.tensor(classes), torch.zeros(len(scores), dtype=torch.int64))


NOTHING = found(torch.zeros(0, 4), [], [])


def test_exact_boxes_have_a_precision_of_one():
    metrics = average_precision([found(BOX, [0.9], [0])] * 3, [truth(0)] * 3, ["a"])
    assert (metrics.map50, metrics.map50_95) == pytest.approx((1.0, 1.0))
    assert (metrics.images, metrics.boxes) == (3, 3)


def test_shifted_boxes_count_up_to_their_overlap():
    shifted = BOX + torch.tensor([4.0, 0.0, 4.0, 0.0])  # an overlap of 36 / 44 = 0.818
    metrics = average_precision([found(shifted, [0.9], [0])], [truth(0)], ["a"])
    assert metrics.map50 == pytest.approx(1.0)
    assert metrics.map50_95 == pytest.approx(0.7), "overlaps 0.5 to 0.8 of ten"


def test_missed_half_of_the_objects_halves_the_precision():
    metrics = average_precision([found(BOX, [0.9], [0]), NOTHING], [truth(0), truth(0)], ["a"])
    assert metrics.map50 == pytest.approx(51 / 101), "51 of COCO's 101 recall steps"


def test_wrong_box_with_a_higher_score_lowers_the_precision():
    both = found(torch.cat((BOX + 100.0, BOX)), [0.9, 0.8], [0, 0])
    assert average_precision([both], [truth(0)], ["a"]).map50 == pytest.approx(0.5)


def test_class_without_objects_does_not_count():
    metrics = average_precision([found(BOX, [0.9], [0])], [truth(0)], ["a", "b"])
    assert metrics.map50 == pytest.approx(1.0)
    assert math.isnan(metrics.class_map50[1])


def test_interval_encloses_the_precision_and_is_narrow_for_many_equal_groups():
    detections = [found(BOX, [0.9], [0]) if k % 4 else NOTHING for k in range(40)]
    groups = [f"part {k}" for k in range(40)]
    metrics = average_precision(detections, [truth(0)] * 40, ["a"], groups)
    low, high = metrics.map50_interval
    assert low < metrics.map50 < high
    assert metrics.map50 == pytest.approx(average_precision(detections, [truth(0)] * 40, ["a"]).map50)
    assert low > 0.55
    assert high < 0.95
    assert metrics.counted_groups == 40
    sure = average_precision([found(BOX, [0.9], [0])] * 8, [truth(0)] * 8, ["a"], groups[:8])
    assert sure.map50_interval == pytest.approx((1.0, 1.0))


def test_interval_resamples_whole_groups_and_leaves_out_images_without_one():
    detections = [found(BOX, [0.9], [0]) if k % 4 else NOTHING for k in range(40)]
    few = average_precision(detections, [truth(0)] * 40, ["a"], [f"part {k // 10}" for k in range(40)])
    assert few.map50_interval is None
    left_out = [None if k % 4 == 0 else f"part {k}" for k in range(40)]
    metrics = average_precision(detections, [truth(0)] * 40, ["a"], left_out)
    assert metrics.map50_interval == pytest.approx((1.0, 1.0))
    assert metrics.map50 < 0.8


def test_nothing_found_is_zero_and_background_images_count():
    metrics = average_precision([NOTHING, NOTHING], [truth(0), truth()], ["a", "b"])
    assert metrics.map50 == metrics.map50_95 == 0.0
    assert metrics.class_map50[0] == 0.0
    assert metrics.images == 2

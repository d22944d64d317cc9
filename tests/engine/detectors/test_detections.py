"""Boxes chosen from candidates, and the anchor of an object that was missed."""

from __future__ import annotations

import math

import pytest
import torch

from engine.detectors.detections import missed_anchor, select
from engine.detectors.outputs import Candidates
from pipeline.errors import ConfigError

BOXES = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 60, 60], [0, 0, 100, 100.0]])


def _candidates(scores, boxes=BOXES):
    return Candidates(boxes[None].clone(), torch.tensor(scores).log()[None], ((1, len(boxes)),))


def test_select_suppresses_overlapping_boxes_of_one_class():
    scores = [[0.9, 0.1], [0.8, 0.7], [0.6, 0.1], [0.2, 0.1]]
    found = select(_candidates(scores), score=0.5, iou=0.5)
    assert found.anchors.tolist() == [0, 1, 2]
    assert found.classes.tolist() == [0, 1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.6]))


def test_select_returns_nothing_for_low_and_nan_scores():
    assert len(select(_candidates([[0.1], [0.2], [0.1], [0.1]]))) == 0
    found = select(_candidates([[math.nan], [0.9], [math.nan], [0.1]]))
    assert found.anchors.tolist() == [1]


def test_select_leaves_out_boxes_that_are_not_finite():
    boxes = BOXES.clone()
    boxes[0, 2] = math.inf
    assert select(_candidates([[0.9], [0.8], [0.1], [0.1]], boxes)).anchors.tolist() == [1]


def test_select_keeps_at_most_the_limit():
    boxes = torch.arange(500.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    candidates = Candidates(boxes[None], torch.full((1, 500, 2), 0.9).log(), ((1, 500),))
    assert len(select(candidates)) == 300


def test_missed_anchor_has_the_highest_product_of_score_and_overlap():
    found = missed_anchor(_candidates([[0.02], [0.01], [0.2], [0.005]]), torch.tensor([0.0, 0.0, 10.0, 10.0]), 0)
    assert found.anchor == 0
    assert found.score == pytest.approx(0.02)
    assert found.iou == pytest.approx(1.0)


def test_missed_anchor_is_at_the_place_whatever_the_score_of_a_large_box_around_it():
    candidates = _candidates([[1e-4], [1e-5], [0.2], [0.9]])
    assert missed_anchor(candidates, torch.tensor([0.0, 0.0, 10.0, 10.0]), 0).anchor == 0
    around = missed_anchor(candidates, torch.tensor([70.0, 70.0, 80.0, 80.0]), 0)
    assert (around.anchor, around.iou) == (3, pytest.approx(0.01))


@pytest.mark.parametrize(
    ("box", "class_index", "message"),
    [
        ([0.0, 0.0, 10.0, 10.0], 3, "class 3: the detector has 1 classes"),
        ([10.0, 0.0, 0.0, 10.0], 0, "is empty"),
        ([500.0, 500.0, 510.0, 510.0], 0, "no candidate of the detector overlaps it"),
        ([math.nan, 0.0, 10.0, 10.0], 0, "is empty"),
    ],
)
def test_missed_anchor_refuses_bad_input(box, class_index, message):
    with pytest.raises(ConfigError, match=message):
        missed_anchor(_candidates([[0.5]] * 4), torch.tensor(box), class_index)

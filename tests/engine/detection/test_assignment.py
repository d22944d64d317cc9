"""SimOTA and the losses of YOLOX, on cases that can be computed by hand."""

import math

import pytest
import torch

from engine.detectors.networks.registry import OWN_DETECTORS
from engine.finetuning.detection.assignment import Objects, assign, make_anchors
from engine.finetuning.detection.losses import box_values, paired_overlaps, yolox_loss

GRIDS, STRIDES, SIZE = ((8, 8), (4, 4), (2, 2)), (8, 16, 32), (64, 64)

EVEN = torch.full((84, 2), 0.5)
"""Scores of all anchors."""
NOTHING = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


@pytest.fixture
def anchors():
    return make_anchors(GRIDS, STRIDES)


def predictions(anchors, boxes, classes=2):
    """Every anchor predicts the first box whose middle it is nearest to, with even class scores."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest = torch.cdist(anchors.centres, middles).argmin(1)
    count = len(anchors.centres)
    return boxes[nearest].clone(), torch.full((count, classes), 0.5)


def test_anchors_are_cell_centres_in_the_order_of_the_layout(anchors):
    assert len(anchors.centres) == 64 + 16 + 4
    assert anchors.centres[1].tolist() == [12.0, 4.0], "the second cell of the first row"
    assert anchors.centres[64].tolist() == [8.0, 8.0], "the first cell of stride 16"
    assert anchors.strides[[0, 64, 80]].tolist() == [8.0, 16.0, 32.0]


def test_object_takes_as_many_anchors_as_its_best_overlaps_sum_to(anchors):
    box = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    boxes, scores = predictions(anchors, box)
    found = assign(anchors, Objects(box, torch.tensor([1])), boxes, scores)
    assert len(found.anchors) == 10, "ten anchors overlap fully, and the sum of the best ten is ten"
    half = torch.tensor([[16.0, 16.0, 48.0, 32.0]]).expand(len(boxes), 4)
    found = assign(anchors, Objects(box, torch.tensor([1])), half, scores)
    assert len(found.anchors) == 5
    assert found.overlaps.tolist() == pytest.approx([0.5] * 5)


def test_object_without_any_overlap_takes_its_cheapest_anchor(anchors):
    box = torch.tensor([[16.0, 16.0, 24.0, 24.0]])
    far = torch.tensor([[56.0, 56.0, 60.0, 60.0]]).expand(84, 4)
    found = assign(anchors, Objects(box, torch.tensor([0])), far, EVEN)
    assert len(found.anchors) == 1
    assert torch.cdist(anchors.centres[found.anchors], torch.tensor([[20.0, 20.0]])) < 6.0


def test_assigned_anchors_lie_in_the_box_and_near_its_centre(anchors):
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    boxes, scores = predictions(anchors, box)
    found = assign(anchors, Objects(box, torch.tensor([0])), boxes, scores)
    offset = (anchors.centres[found.anchors] - 32.0).abs()
    assert bool((offset < 2.5 * anchors.strides[found.anchors, None]).all())


def test_anchor_of_two_objects_belongs_to_the_one_with_the_lower_cost(anchors):
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [12.0, 12.0, 44.0, 44.0]])
    predicted = boxes[:1].expand(84, 4)
    found = assign(anchors, Objects(boxes, torch.tensor([0, 1])), predicted, EVEN)
    assert len(set(found.anchors.tolist())) == len(found.anchors)
    assert (found.objects == 0).any()
    cost_favours_first = found.overlaps[found.objects == 0]
    assert cost_favours_first.tolist() == pytest.approx([1.0] * len(cost_favours_first))


def test_anchors_that_know_the_class_are_preferred(anchors):
    box = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    quarter = torch.tensor([[16.0, 16.0, 32.0, 32.0]]).expand(84, 4)
    scores = torch.full((84, 2), 0.02)
    knows = int(((anchors.centres - 36.0).abs().sum(1) + anchors.strides).argmin())
    scores[knows, 1] = 0.98
    found = assign(anchors, Objects(box, torch.tensor([1])), quarter, scores)
    assert knows in found.anchors.tolist()


def test_image_without_objects_has_no_assigned_anchor(anchors):
    none = assign(anchors, NOTHING, torch.zeros(84, 4), EVEN)
    assert len(none.anchors) == 0


def test_box_values_are_the_inverse_of_the_layout(anchors):
    layout = OWN_DETECTORS["yolox_nano"].layout(2)
    box = torch.tensor([[10.0, 12.0, 50.0, 40.0]])
    values = box_values(box.expand(16, 4), anchors, torch.arange(64, 80))
    decoded = layout.level_boxes(1, values.reshape(1, 4, 4, 1, 4), SIZE).reshape(16, 4)
    torch.testing.assert_close(decoded, box.expand(16, 4))


def test_paired_overlaps_are_intersection_over_union():
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    second = torch.tensor([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    assert paired_overlaps(first, second).tolist() == pytest.approx([1 / 3, 0.0])


def maps_of(values, class_logit, objectness):
    """Return raw maps: equal logits everywhere, and the given box values per level."""
    maps = []
    for (rows, columns), level_values in zip(GRIDS, values, strict=True):
        maps += [
            torch.full((1, 2, rows, columns), class_logit),
            torch.full((1, 1, rows, columns), objectness),
            level_values.reshape(1, rows, columns, 4).permute(0, 3, 1, 2),
        ]
    return [level_map.clone().requires_grad_() for level_map in maps]


def exact_values(anchors, box):
    """Return the box values of each level with which every anchor predicts the box."""
    whole = box_values(box.expand(84, 4), anchors, torch.arange(84))
    return whole.split([64, 16, 4])


def test_loss_of_exact_boxes_is_the_cross_entropy_alone(anchors):
    box = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    layout = OWN_DETECTORS["yolox_nano"].layout(2)
    maps = maps_of(exact_values(anchors, box), 0.0, 0.0)
    loss = yolox_loss(layout, maps, [Objects(box, torch.tensor([1]))], SIZE, with_distance=True)
    # 84 objectness terms and 10 anchors with two class terms, each log 2, divided by the 10 anchors
    assert float(loss.detach()) == pytest.approx((84 + 20) * math.log(2) / 10, rel=1e-3)


def test_loss_of_an_image_without_objects_is_that_of_the_objectness():
    layout = OWN_DETECTORS["yolox_nano"].layout(2)
    maps = maps_of([torch.zeros(64, 4), torch.zeros(16, 4), torch.zeros(4, 4)], 0.0, -3.0)
    loss = yolox_loss(layout, maps, [NOTHING], SIZE, with_distance=False)
    assert float(loss.detach()) == pytest.approx(84 * math.log(1 + math.exp(-3.0)), rel=1e-4)


def test_distance_counts_only_in_the_last_epochs(anchors):
    box = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    layout, shifted = OWN_DETECTORS["yolox_nano"].layout(2), box + 4.0
    maps = maps_of(exact_values(anchors, shifted), 0.0, 0.0)
    objects = [Objects(box, torch.tensor([0]))]
    without, with_distance = (
        float(yolox_loss(layout, maps, objects, SIZE, with_distance=flag).detach()) for flag in (False, True)
    )
    assert with_distance > without + 1e-3


def test_gradient_moves_boxes_towards_their_object(anchors):
    box = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    layout = OWN_DETECTORS["yolox_nano"].layout(2)
    maps = maps_of(exact_values(anchors, box + torch.tensor([4.0, 0.0, 4.0, 0.0])), 0.0, 0.0)
    torch.autograd.backward(yolox_loss(layout, maps, [Objects(box, torch.tensor([0]))], SIZE, with_distance=False))
    x_gradients = torch.cat([level_map.grad[0, 0].flatten() for level_map in maps[2::3]])
    assert float(x_gradients.max()) > 0.0
    assert float(x_gradients.min()) >= 0.0, "the boxes lie to the right of their object"

"""Two-stage detectors: proposals agree with torchvision, and boxes are explained on their region features."""

from __future__ import annotations

import pytest
import torch

from engine.detectors.loader import load_detector
from pipeline.errors import ConfigError
from tests.support.tiny_detector import with_lively_weights

SIZE = (128, 160)


@pytest.fixture(scope="module")
def detector():
    found = load_detector("fasterrcnn_mobilenet_v3_large_320_fpn", weights="random")
    with_lively_weights(found.model.roi_heads)
    (first,) = found.proposals(torch.rand(1, 3, *SIZE))
    with torch.no_grad():
        found.model.roi_heads.box_head.fc6.weight.div_(first.features.std())
    return found


@pytest.fixture(scope="module")
def proposals(detector):
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    return images, detector.proposals(images)


def test_proposals_decode_as_torchvision_does(detector, proposals):
    images, found = proposals
    heads = detector.model.roi_heads
    with torch.inference_mode():
        maps = detector.model.backbone(images[:1])
        features = heads.box_roi_pool(maps, [found[0].rectangles], [SIZE])
        logits, deltas = heads.box_predictor(heads.box_head(features))
        heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.0, 1.0, 100000
        boxes, scores, _ = heads.postprocess_detections(logits, deltas, [found[0].rectangles], [SIZE])
    ours = found[0].log_scores.exp().flatten().sort(descending=True).values
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours[:200], scores[0][:200], atol=1e-5, rtol=1e-3)
    best = found[0].log_scores.exp().flatten().argmax()
    torch.testing.assert_close(
        found[0].boxes.flatten(0, 1)[best].clamp(min=0).minimum(torch.tensor([160.0, 128.0, 160.0, 128.0])),
        boxes[0][0], atol=1e-2, rtol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_heat_of_regions_equals_the_definition(detector, proposals, mode):
    found = proposals[1][1]
    numbers, classes = [0, 3], [4, 11]
    heat = detector.heat(found, numbers, classes, mode)
    assert heat.shape == (2, 49)
    for number, k, row in zip(numbers, classes, heat, strict=True):
        features, plain = found.features[number], found.log_scores[number, k].exp()
        expected = []
        for cell in range(49):
            kept = torch.zeros_like(features)
            kept[:, cell // 7, cell % 7] = features[:, cell // 7, cell % 7]
            masked = kept if mode == "keep" else features - kept
            with torch.inference_mode():
                score = detector.split.tail(masked[None]).log_softmax(dim=-1)[0, k + 1]
            expected.append(score if mode == "keep" else plain - score.exp())
        expected = torch.stack(expected)
        assert expected.std() > 1e-5
        spread = float(expected.max() - expected.min())
        torch.testing.assert_close(row, expected, atol=1e-4 * max(spread, 0.1), rtol=1e-3)


def test_select_returns_boxes_above_the_score(detector, proposals):
    found = proposals[1][0]
    boxes = detector.select(found)
    assert (boxes.scores > detector.score).all()
    for row, k, score in zip(boxes.anchors, boxes.classes, boxes.scores, strict=True):
        torch.testing.assert_close(found.log_scores[row, k].exp(), score)


def test_heat_refuses_an_unknown_mode(detector, proposals):
    with pytest.raises(ConfigError, match="mode 'kept' is unknown"):
        detector.heat(proposals[1][0], [0], [0], "kept")


def test_a_detector_without_proposals_has_no_boxes(detector, proposals):
    image = torch.zeros(1, 3, *SIZE)
    rpn = detector.model.rpn
    before, rpn.min_size = rpn.min_size, 1e9
    try:
        (found,) = detector.proposals(image)
    finally:
        rpn.min_size = before
    assert found.rectangles.shape == (0, 4)
    assert found.boxes.shape == (0, 90, 4)
    assert len(detector.select(found)) == 0
    assert detector.heat(found, [], []).shape == (0, 49)

"""Detectors with unusual or wrong input give right results or clear errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.detectors import runtime
from engine.detectors.definition import dense_responses
from engine.detectors.detections import MAX_BOXES, select
from engine.detectors.outputs import Anchor, Candidates, Target
from engine.detectors.regions import Regions
from engine.detectors.runtime import OneStageEngine
from engine.detectors.why import explain_place
from engine.explainers.detector import DetectorExplainer
from pipeline.config import BoxesConfig, EngineConfig
from pipeline.errors import ConfigError
from pipeline.frames import Box, Frame
from tests.support.tiny_detector import SIZE, calm_detector, coarse_image


@pytest.fixture(scope="module")
def detector():
    return calm_detector()


@pytest.fixture(scope="module")
def engine(detector):
    return OneStageEngine(detector, SIZE, prepare=False)


def candidates_of(boxes, scores):
    """Return candidates of one class."""
    count = len(boxes)
    return Candidates(torch.tensor(boxes)[None], torch.tensor(scores).view(1, count, 1).log(), ((1, count),))


def test_select_gives_at_most_its_limit_of_boxes_best_first():
    boxes = [[20.0 * k, 0.0, 20.0 * k + 10.0, 10.0] for k in range(MAX_BOXES + 50)]
    scores = [0.4 + k * 1e-3 for k in range(MAX_BOXES + 50)]
    found = select(candidates_of(boxes, scores))
    assert len(found) == MAX_BOXES
    assert found.anchors[0] == MAX_BOXES + 49
    assert (found.scores.diff() <= 0).all()


def test_select_leaves_out_nan_scores_and_boxes_that_are_not_finite():
    boxes = [[0.0, 0.0, 5.0, 5.0], [20.0, 0.0, 25.0, 5.0], [40.0, 0.0, float("inf"), 5.0], [60.0, 0.0, 65.0, 5.0]]
    found = select(candidates_of(boxes, [float("nan"), 0.9, 0.9, 0.8]))
    assert found.anchors.tolist() == [1, 3]


@pytest.mark.slow
def test_explainer_gives_right_maps_for_300_boxes_in_one_frame(detector):
    settings = BoxesConfig(min_score=0.01, iou=0.99, cell_px=32, budget=None, max_maps=4)
    explainer = DetectorExplainer(detector, EngineConfig(backend="eager", boxes=settings))
    (found,) = explainer.explain([Frame(coarse_image(), "north", 0, 1.0, 0.0)])
    assert len(found.findings) == MAX_BOXES
    assert sum(finding.box_map is not None for finding in found.findings) == 4
    for finding in found.findings:
        assert 0 <= finding.box.left <= finding.box.right <= 240
        assert 0 <= finding.box.top <= finding.box.bottom <= 180


def test_explainer_finds_nothing_in_an_image_of_nan_activations(detector):
    module = calm_detector()
    with torch.no_grad():
        next(module.module.parameters()).fill_(torch.nan)
    (boxes,) = OneStageEngine(module, SIZE, prepare=False).run(torch.zeros(1, 3, *SIZE))
    assert len(boxes.detections) == 0


def test_explainer_leaves_out_boxes_without_a_part_in_the_image(detector, monkeypatch):
    settings = BoxesConfig(min_score=0.6, cell_px=32, budget=None, max_maps=2)
    explainer = DetectorExplainer(detector, EngineConfig(backend="eager", boxes=settings))
    frame = Frame(coarse_image(), "north", 0, 1.0, 0.0)
    (expected,) = explainer.explain([frame])
    choose = runtime.select

    def with_boxes_in_the_border(*arguments, **options):
        found = choose(*arguments, **options)
        outside = torch.tensor([[300.0, 5.0, 320.0, 9.0], [-9.0, -9.0, -1.0, -1.0], [4.0, 96.0, 9.0, 120.0]])
        return replace(found.only(torch.tensor([0, 0, 0, *range(len(found))])), boxes=torch.cat((outside, found.boxes)))

    monkeypatch.setattr(runtime, "select", with_boxes_in_the_border)
    (found,) = explainer.explain([replace(frame, camera="south")])
    assert [finding.box for finding in found.findings] == [finding.box for finding in expected.findings]
    for ours, own in zip(found.findings, expected.findings, strict=True):
        np.testing.assert_array_equal(ours.heat, own.heat)
    assert max(float(finding.heat.max()) for finding in found.findings if finding.box_map) == 1.0


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_heat_of_regions_smaller_than_a_cell_is_the_definition(detector, engine, mode):
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    (boxes,) = engine.run(images)
    target = Target(Anchor(2, 1, 2), 3)
    (heat,) = engine.heat_of_targets(boxes, [target], 4, mode)
    assert heat.values.shape == Regions(SIZE, 4).grid
    split = detector.split(2, "complete", SIZE)
    reads = detector.layout.reads(target.anchor)
    responses = dense_responses(split, split.features(images), reads, 4, mode)
    scores = detector.layout.log_score(responses, 3, target.anchor)
    expected = scores if mode == "keep" else heat.plain_score - scores.exp()
    spread = float(expected.max() - expected.min())
    assert spread > 1e-3
    assert float((heat.values.flatten() - expected).abs().max()) <= 1e-4 * spread


def test_explain_place_answers_for_a_box_smaller_than_a_cell(detector):
    answer = explain_place(detector, coarse_image(), Box(100.0, 80.0, 101.0, 81.0), "dog")
    assert 0.0 < answer.overlap < 1.0
    assert all(torch.isfinite(torch.from_numpy(finding.heat)).all() for finding in answer.maps)
    assert max(float(finding.heat.max()) for finding in answer.maps) == 1.0


@pytest.mark.parametrize(
    "box",
    [Box(240, 0, 260, 20), Box(0, 180, 20, 200), Box(-30, 0, 0, 20), Box(5, 5, 5, 20), Box(float("nan"), 0, 5, 5)],
    ids=["right", "below", "left", "empty", "nan"],
)
def test_explain_place_refuses_a_box_without_a_part_in_the_image(detector, box):
    with pytest.raises(ConfigError, match=r"outside the image of 240x180 pixels|has no area"):
        explain_place(detector, coarse_image(), box, "dog")


def test_no_region_is_refused(engine):
    (boxes,) = engine.run(torch.zeros(1, 3, *SIZE))
    with pytest.raises(ConfigError, match="cell_px 0: must be at least 1"):
        engine.heat_of_targets(boxes, [Target(Anchor(0, 0, 0), 0)], 0, "keep")

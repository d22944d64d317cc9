"""Detectors in the stream: every box in every frame, exact maps, within the budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.detectors import runtime
from engine.detectors.definition import dense_responses, heat_from_responses
from engine.detectors.detector import Detector
from engine.detectors.graph import normalise
from engine.detectors.heat import BoxHeat, smoothed
from engine.detectors.layouts import NanodetLayout
from engine.detectors.outputs import Anchor, Level, Read, Target
from engine.detectors.runtime import OneStageEngine, build_engine
from engine.explainers.detector import DetectorExplainer
from pipeline.config import BoxesConfig, EngineConfig
from pipeline.errors import BackendError, ConfigError, LayerError
from pipeline.frames import NO_HEAT, Frame
from tests.support.tiny_detector import SIZE, STRETCHED, calm_detector, coarse_image, with_lively_weights

MIN_SCORE = 0.6
"""The random network gives some boxes above this score."""


@pytest.fixture(scope="module")
def detector():
    return calm_detector(MIN_SCORE)


@pytest.fixture(scope="module")
def frames():
    image = coarse_image()
    return [Frame(np.roll(image, 2 * k, axis=1), "north", k, 100.0 + k / 10.0, k / 10.0) for k in range(4)]


def explainer(detector, **boxes):
    settings = BoxesConfig(**{"min_score": MIN_SCORE, "cell_px": 32, "budget": None, **boxes})
    return DetectorExplainer(detector, EngineConfig(backend="eager", boxes=settings))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["keep", "drop"])
@pytest.mark.parametrize("cut", ["complete", "level"])
def test_explainer_maps_are_the_definition(detector, frames, mode, cut):
    found = explainer(detector, mode=mode, cut=cut, max_maps=3).explain(frames[:1])[0]
    mapped = [finding for finding in found.findings if finding.box_map]
    assert len(mapped) == 3
    images = detector.input.prepare([frames[0].image])
    engine = build_engine(detector, SIZE, cut=cut)
    boxes = engine.run(images)[0]
    choice = "complete" if cut == "complete" else "own level"
    for index, finding in enumerate(found.findings):
        if finding.box_map is None:
            continue
        target = engine.target(boxes, index)
        split = detector.split(target.anchor.level, choice, SIZE)
        reads = detector.layout.reads(target.anchor)
        responses = dense_responses(split, split.features(images), reads, 32, mode)
        maps = detector.network(SIZE).module(images)
        plain = [maps[read.map][:, :, read.row, read.column] for read in reads]
        values = heat_from_responses(detector.layout, responses, plain, target, mode=mode).view(3, 4)
        stride = detector.layout.levels[target.anchor.level].stride
        found_for = slow_evidence(values, stride / 32, mode)
        found_against = slow_evidence(-values, stride / 32, mode) if mode == "drop" else torch.zeros(3, 4)
        low = found_for.min() if mode == "keep" else 0.0
        scale = float(max(found_for.max() - low, found_against.max()))
        assert max(finding.heat.max(), 0.0 if mode == "keep" else finding.box_map.against.max()) == pytest.approx(1.0)
        np.testing.assert_allclose(finding.heat, ((found_for - low) / scale).numpy(), atol=1e-4)
        if mode == "drop":
            np.testing.assert_allclose(finding.box_map.against, (found_against / scale).numpy(), atol=1e-4)
        assert finding.box_map.scale == pytest.approx(scale, rel=1e-3)


@pytest.mark.slow
def test_explainer_gives_all_boxes_of_the_plain_detector(detector, frames):
    for boxes in ({"budget": 0.0}, {"max_maps": 1}, {}):
        found = explainer(detector, **boxes).explain(frames[:1])[0].findings
        plain = build_engine(detector, SIZE).run(detector.input.prepare([frames[0].image]))[0].detections
        assert len(found) == len(plain) > 3
        assert [finding.score for finding in found] == sorted((f.score for f in found), reverse=True)
        for finding in found:
            assert 0 <= finding.box.left <= finding.box.right <= frames[0].width
            assert 0 <= finding.box.top <= finding.box.bottom <= frames[0].height


def test_explainer_without_budget_makes_no_maps(detector, frames):
    found = explainer(detector, budget=0.0).explain(frames)
    assert all(finding.heat is NO_HEAT and finding.box_map is None for f in found for finding in f.findings)


@pytest.mark.slow
def test_explainer_makes_maps_only_of_boxes_that_the_condition_selects(detector, frames):
    every = explainer(detector).explain(frames[:1])[0].findings
    label = every[0].label
    for finding in explainer(detector, when=f"label={label}").explain(frames[:1])[0].findings:
        assert (finding.box_map is not None) == (finding.label == label)


@pytest.mark.slow
def test_explainer_carries_maps_along_a_track_and_states_their_age(detector, frames):
    running = explainer(detector, max_maps=1)
    explained = [running.explain([frame])[0] for frame in frames]
    seen = {}
    for frame, explanation in zip(frames, explained, strict=True):
        fresh = [f for f in explanation.findings if f.box_map and f.box_map.index == frame.index]
        assert len(fresh) == 1
        assert fresh[0].box_map.age_seconds == 0.0
        for finding in explanation.findings:
            if finding.box_map and finding.box_map.index != frame.index:
                first = seen[finding.track, finding.box_map.index]
                np.testing.assert_array_equal(finding.heat, first.heat)
                age = (frame.index - finding.box_map.index) / 10.0
                assert finding.box_map.age_seconds == pytest.approx(age)
                moved = (finding.box.left + finding.box.right - first.box.left - first.box.right) / 2.0
                assert finding.box_map.region.left - first.box_map.region.left == pytest.approx(moved, abs=1e-3)
        seen |= {(f.track, frame.index): f for f in fresh}
    assert len(seen) > 1


def test_explainer_starts_tracks_anew_for_each_file(detector, frames):
    running = explainer(detector, budget=0.0)
    photos = [Frame(frames[0].image, "photos", k, 100.0 + k, source_name=f"{k}.jpg") for k in range(2)]
    first, second = (running.explain([photo])[0].findings for photo in photos)
    assert [f.track for f in first] == [f.track for f in second] == list(range(1, len(first) + 1))


@pytest.mark.slow
def test_explainer_explains_frames_of_two_cameras_as_it_does_each(detector, frames):
    other = Frame(frames[2].image[:90], "south", 0, 100.0, 0.0)
    together = explainer(detector, max_maps=2).explain([frames[0], other])
    alone = [explainer(detector, max_maps=2).explain([frame])[0] for frame in (frames[0], other)]
    for a, b in zip(together, alone, strict=True):
        assert [f.label for f in a.findings] == [f.label for f in b.findings]
        for x, y in zip(a.findings, b.findings, strict=True):
            np.testing.assert_allclose(x.box, y.box, atol=1e-2)
            np.testing.assert_allclose(x.heat, y.heat, atol=1e-4)


def test_explainer_finds_no_box_in_a_frame_without_any(detector, frames):
    found = explainer(detector, min_score=0.999999).explain(frames[:1])[0]
    assert found.findings == ()


def slowly_smoothed(values: Tensor, sigma: float) -> Tensor:
    """Return for each cell the mean of all cells, weighted by a Gaussian of their distance in cells."""
    found = torch.zeros_like(values)
    rows, columns = values.shape
    for y in range(rows):
        for x in range(columns):
            total = weights = 0.0
            for other_y in range(rows):
                for other_x in range(columns):
                    weight = math.exp(-0.5 * ((y - other_y) ** 2 + (x - other_x) ** 2) / sigma**2)
                    total += weight * float(values[other_y, other_x])
                    weights += weight
            found[y, x] = total / weights
    return found


def slow_evidence(values: Tensor, sigma: float, mode: str) -> Tensor:
    """Return the evidence for a box by its definition."""
    level = 0.0 if mode == "drop" else sorted(values.flatten().tolist())[(values.numel() - 1) // 2]
    values = torch.tensor([[max(value - level, 0.0) for value in row] for row in values.tolist()])
    return slowly_smoothed(values, sigma)


@pytest.mark.parametrize("sigma", [0.25, 1.0, 2.0])
def test_smoothed_heat_is_the_weighted_mean_of_all_cells(sigma):
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(smoothed(values, sigma), slowly_smoothed(values, sigma), atol=1e-5, rtol=0.0)
    assert float((smoothed(values, sigma) - values).abs().max()) > 1e-4
    assert torch.equal(smoothed(values, 0.0), values)


def test_map_is_smoothed_but_the_lowest_score_is_that_of_a_single_region():
    values = torch.tensor([[0.0, 0.3, 0.0], [0.0, 0.0, -0.2]])
    heat = BoxHeat(values, (0, 0, 3, 2), 0.8, "drop", "complete", sigma=1.0)
    shown = heat.normalised()
    assert shown.lowest_score == pytest.approx(0.5)
    assert shown.scale == pytest.approx(float(slowly_smoothed(values.clamp(min=0.0), 1.0).max()))
    assert shown.scale < 0.3


def test_map_of_keep_does_not_rank_places_below_those_that_do_not_matter():
    values = torch.full((5, 5), -9.0)
    values[2, 2], values[2, 3] = -1.0, -20.0
    shown = BoxHeat(values, (0, 0, 5, 5), 0.8, "keep", "complete", sigma=0.25).evidence()
    assert float(shown[2, 2]) > 7.9
    assert float(shown[2, 3]) >= float(shown[0, 0]) == pytest.approx(0.0, abs=1e-6)


def test_evidence_of_keep_does_not_depend_on_the_level_of_the_log_scores():
    values = torch.full((1, 13), -21.3)
    values[0, 2] = -14.7
    shown = BoxHeat(values, (0, 0, 13, 1), 0.8, "keep", "complete", sigma=0.75).evidence()
    expected = BoxHeat(values + 21.3, (0, 0, 13, 1), 0.8, "keep", "complete", sigma=0.75).evidence()
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=0.0)
    assert (shown[0, 2:-1] > shown[0, 3:]).all()  # farther from the only evidence, less evidence


def test_evidence_for_a_box_does_not_hide_evidence_against_it():
    values = torch.zeros(5, 5)
    values[2, 2], values[2, 3] = 0.2, -0.3
    both = BoxHeat(values, (0, 0, 5, 5), 0.8, "drop", "complete", sigma=1.0)
    only = [BoxHeat(part, (0, 0, 5, 5), 0.8, "drop", "complete", sigma=1.0)
            for part in (values.clamp(min=0.0), values.clamp(max=0.0))]  # fmt: skip
    assert torch.equal(both.evidence(), only[0].evidence())
    assert torch.equal(both.counter_evidence(), only[1].counter_evidence())
    assert divmod(int(both.evidence().argmax()), 5) == (2, 2)
    assert divmod(int(both.counter_evidence().argmax()), 5) == (2, 3)


def test_engine_smooths_each_map_by_one_stride_of_its_level(detector, frames):
    engine = build_engine(detector, SIZE)
    boxes = engine.run(detector.input.prepare([frames[0].image]))[0]
    targets = [Target(Anchor(level, 1, 1), 0) for level in range(3)]
    heats = engine.heat_of_targets(boxes, targets, 16, "keep")
    assert [heat.sigma * 16 for heat in heats] == [level.stride for level in detector.layout.levels]
    for heat in heats:
        expected = slow_evidence(heat.values, heat.sigma, "keep")
        torch.testing.assert_close(heat.evidence(), expected, atol=1e-4, rtol=0.0)


def test_heat_of_equal_log_scores_is_flat():
    flat = BoxHeat(torch.full((2, 3), -4.0), (0, 0, 1, 1), 0.5, "keep", "complete").normalised()
    assert not flat.heat.any()
    assert flat.scale == 0.0


def test_heat_of_drop_keeps_evidence_against_the_box():
    shown = BoxHeat(torch.tensor([[0.3, -0.1, 0.0]]), (0, 0, 1, 1), 0.8, "drop", "complete").normalised()
    np.testing.assert_allclose(shown.heat, [[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(shown.against, [[0.0, 1.0 / 3.0, 0.0]], atol=1e-6)
    assert shown.scale == pytest.approx(0.3)
    assert shown.lowest_score == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cuda:0"}, BackendError, "detectors run on the CPU"),
        ({"precision": "bf16"}, BackendError, "detectors run in fp32"),
        ({"layer": "head"}, ConfigError, "boxes.cut"),
        ({"input_size": (100, 128)}, ConfigError, "multiples of 32"),
        ({"boxes": BoxesConfig(when="heat_inside(box)>0.5")}, ConfigError, "heat_inside is computed from maps"),
        ({"boxes": BoxesConfig(when="label=car and boxes>3")}, ConfigError, "boxes is computed from maps"),
        ({"boxes": BoxesConfig(when="not guard")}, ConfigError, "guard is computed from maps"),
        ({"boxes": BoxesConfig(when="label=cra")}, ConfigError, "engine.boxes.when: 'label=cra'.*unknown label"),
        ({"backend": "openvin"}, ConfigError, "Did you mean 'openvino'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_explainer_refuses_options_that_do_not_fit(detector, options, error, message):
    with pytest.raises(error, match=message):
        DetectorExplainer(detector, EngineConfig(**{"backend": "eager", **options}))


def test_engine_prepares_only_the_levels_that_are_asked_about(detector, frames, monkeypatch):
    built = []
    plan = runtime.ConePlan
    monkeypatch.setattr(runtime, "ConePlan", lambda split, features: built.append(split) or plan(split, features))
    images = detector.input.prepare([frames[0].image])
    whole, single = (OneStageEngine(detector, SIZE, prepare=prepare) for prepare in (True, False))
    assert len(built) == 3
    expected, found = (engine.run(images)[0] for engine in (whole, single))
    target = Target(Anchor(1, 2, 3), 4)
    (heat,), (lazy,) = (
        engine.heat_of_targets(boxes, [target], 32, "drop") for engine, boxes in ((whole, expected), (single, found))
    )
    assert len(built) == 4
    torch.testing.assert_close(lazy.values, heat.values)
    assert heat.values.std() > 0.0


def test_engine_uses_cones_at_the_own_level_where_the_complete_cut_has_none(caplog):
    module = with_lively_weights(_Squeezed())
    network = normalise(module, SIZE)
    layout = NanodetLayout([Level(8, 0, None, 0), Level(16, 1, None, 1)], 2)
    detector = Detector("squeezed", module, layout, ("a", "b"), STRETCHED, networks={SIZE: network})
    engine = OneStageEngine(detector, SIZE)
    assert engine.has_cones(0)
    assert engine.has_cones(1)
    assert "squeezed, level 0: maps are computed at its own level" in caplog.text
    (boxes,) = engine.run(torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(4)))
    (heat,) = engine.heat_of_targets(boxes, [Target(Anchor(0, 5, 5), 1)], 16, "keep")
    assert heat.cut == "level"
    split = detector.split(0, "own level", SIZE)
    features = [boxes.source.features.get(node) for node in split.cut.nodes]
    features = split.features(boxes.source.image) if None in features else features
    (responses,) = dense_responses(split, features, [Read(0, 5, 5)], 16, "keep")
    expected = layout.log_score([responses], 1, Anchor(0, 5, 5))
    assert expected.std() > 1e-3
    torch.testing.assert_close(heat.values.flatten(), expected, atol=1e-5, rtol=1e-4)


def test_engine_masks_the_maps_that_are_named(detector, frames):
    names = ["backbone.backbone.dark3"]
    images = detector.input.prepare([frames[0].image])
    target = Target(Anchor(2, 1, 2), 3)
    found, default = (OneStageEngine(detector, SIZE, cut=cut, prepare=False) for cut in (names, "complete"))
    heat, other = (
        engine.heat_of_targets(engine.run(images)[0], [target], 32, "keep")[0].values for engine in (found, default)
    )
    split = detector.split(2, names, SIZE)
    responses = dense_responses(split, split.features(images), detector.layout.reads(target.anchor), 32, "keep")
    expected = detector.layout.log_score(responses, 3, target.anchor)
    spread = float(expected.max() - expected.min())
    assert spread > 1e-3
    assert float((heat.flatten() - expected).abs().max()) <= 1e-4 * spread
    assert float((heat - other).abs().max()) > 1e-2 * spread, "the default cut is another one"


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("backbone.backbone.dark4", r"is not complete.*through.*the complete cut of this level is .*, .*, "),
        ("complte", r"'complte': the network has no such node.*Maps of the network: .*stride 8.*'complete' or 'level'"),
        ("complete, level", r"'complete': the network has no such node or module"),
        ("head.stems", r"but a cut needs maps|no such node or module"),
    ],
)
def test_explainer_refuses_a_named_cut_that_is_none(detector, cut, message):
    with pytest.raises(LayerError, match=message):
        explainer(detector, cut=cut)


class _Squeezed(nn.Module):
    """A detector with squeeze and excitation between the backbone and its heads, as in SSDlite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.after = nn.Conv2d(8, 8, 3, 1, 1)
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 2 + 4 * 8, 1)) for _ in range(2)
        )

    def forward(self, images):
        x = self.stem(images)
        x = torch.relu(self.after(x * self.gate(x)))
        return self.heads[0](x), self.heads[1](self.down(x))


@pytest.mark.slow
def test_explainer_of_a_backend_equals_eager(detector, frames):
    settings = BoxesConfig(min_score=MIN_SCORE, max_maps=2, budget=None)
    found = [
        DetectorExplainer(detector, EngineConfig(backend=backend, cache="off", boxes=settings)).explain(frames[:1])[0]
        for backend in ("eager", "openvino")
    ]
    for x, y in zip(found[0].findings, found[1].findings, strict=True):
        np.testing.assert_allclose(x.box, y.box, atol=0.1)
        np.testing.assert_allclose(x.heat, y.heat, atol=1e-3)

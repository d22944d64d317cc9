"""The cone plan equals the definition for every kind of layer, anchor, region and mode, and computes no more."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.detectors.cones import plan as cone_plan
from engine.detectors.cones.assembly import MAX_KEPT, Store
from engine.detectors.cones.plan import ConePlan
from engine.detectors.cones.responses import AnchorReads
from engine.detectors.definition import dense_responses
from engine.detectors.outputs import Read
from engine.detectors.split import DetectorSplit
from pipeline.errors import ConfigError, LayerError
from tests.engine.detectors.tails import (
    SUPPORTED,
    GroupNormTail,
    PyramidTail,
    SqueezeTail,
    random_features,
    split_of,
)

TOLERANCE = 1e-4
"""Of the range of a channel over the regions."""
CELLS = (8, 16, 32, 64)
MODES = ("keep", "drop")


@cache
def built(kind: type[nn.Module]) -> tuple[DetectorSplit, ConePlan, tuple[Tensor, ...]]:
    split, features = split_of(kind), random_features(2)
    return split, ConePlan(split, features), features


def places_of(split: DetectorSplit, features: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    return [(int(m.shape[2]), int(m.shape[3])) for m in split.tail(*features)]


def assert_exact(
    split: DetectorSplit,
    plan: ConePlan,
    features: tuple[Tensor, ...],
    anchors: list[AnchorReads],
    cell_px: int,
    mode: str,
) -> float:
    """Compare the plan with the definition; return the largest range over the regions that was compared."""
    largest = 0.0
    for anchor, found in zip(anchors, plan.responses(features, anchors, cell_px, mode), strict=True):
        own = [feature[anchor.image : anchor.image + 1] for feature in features]
        expected = dense_responses(split, own, anchor.reads, cell_px, mode)
        channels = anchor.channels or tuple(tuple(range(reference.shape[1])) for reference in expected)
        for response, whole, chosen in zip(found, expected, channels, strict=True):
            reference = whole[:, list(chosen)]
            spread = float((reference.amax(0) - reference.amin(0)).max())
            assert response.shape == reference.shape
            assert float((response - reference).abs().max()) <= TOLERANCE * max(
                spread, 0.05 * float(reference.abs().max())
            )
            largest = max(largest, spread)
    return largest


def corner_anchors(split: DetectorSplit, features: tuple[Tensor, ...]) -> list[AnchorReads]:
    anchors = []
    for index, (height, width) in enumerate(places_of(split, features)):
        for place, (row, column) in enumerate(((0, 0), (height - 1, width // 2), (height // 2, width - 1))):
            anchors.append(AnchorReads((Read(index, row, column),), place % 2))
    return anchors


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell_px", [8, 32, 64])
@pytest.mark.parametrize("kind", SUPPORTED, ids=lambda kind: kind.__name__)
def test_cone_plan_equals_the_definition_at_corners_and_edges(kind, cell_px, mode):
    split, plan, features = built(kind)
    assert assert_exact(split, plan, features, corner_anchors(split, features), cell_px, mode) > 0.3


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_cone_plan_equals_the_definition_for_any_reads(data):
    split, plan, features = built(data.draw(st.sampled_from(SUPPORTED)))
    sizes = places_of(split, features)
    read = st.sampled_from(range(len(sizes))).flatmap(
        lambda index: st.builds(
            Read, st.just(index), st.integers(0, sizes[index][0] - 1), st.integers(0, sizes[index][1] - 1)
        )
    )
    channels = st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True).map(tuple)
    anchor = st.lists(read, min_size=1, max_size=3).flatmap(
        lambda reads: st.builds(
            AnchorReads, st.just(tuple(reads)), st.integers(0, 1), st.none() | st.tuples(*[channels] * len(reads))
        )
    )
    anchors = data.draw(st.lists(anchor, min_size=1, max_size=4))
    cell_px, mode = data.draw(st.sampled_from((*CELLS, 24))), data.draw(st.sampled_from(MODES))
    assert_exact(split, plan, features, anchors, cell_px, mode)


@pytest.mark.slow
@given(
    layers=st.lists(
        st.sampled_from(
            ("point", "wide", "grouped", "depthwise", "down", "pool", "up", "bilinear", "norm", "silu", "add")
        ),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 3),
    mode=st.sampled_from(MODES),
)
@settings(max_examples=20, deadline=None)
def test_cone_plan_equals_the_definition_for_any_chain_of_layers(layers, seed, mode):
    split = split_of(lambda: _Chain(layers), seed)
    features = random_features(1)
    ((height, width),) = places_of(split, features)
    anchors = [AnchorReads((Read(0, height - 1, width // 2),)), AnchorReads((Read(0, height // 2, 0),))]
    assert_exact(split, ConePlan(split, features), features, anchors, 16, mode)


class _Chain(nn.Module):
    """A chain of layers on two of the feature maps."""

    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.join = nn.Conv2d(20, 8, 1)
        self.names = layers
        build = {
            "point": lambda: nn.Conv2d(8, 8, 1),
            "wide": lambda: nn.Conv2d(8, 8, 3, padding=1),
            "grouped": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
            "depthwise": lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8),
            "down": lambda: nn.Conv2d(8, 8, 3, 2, 1, groups=8),
            "pool": lambda: nn.MaxPool2d(3, 1, 1),
            "up": lambda: nn.Upsample(scale_factor=2),
            "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
            "norm": lambda: nn.BatchNorm2d(8),
            "silu": nn.SiLU,
            "add": lambda: nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
        }
        self.layers = nn.ModuleList(build[name]() for name in layers)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        del a
        x = self.join(torch.cat((b, nn.functional.interpolate(c, scale_factor=2)), 1))
        for name, layer in zip(self.names, self.layers, strict=True):
            x = x + layer(x) if name == "add" else layer(x)
        return (x,)


def test_cone_plan_gives_the_same_in_several_chunks_and_bands(monkeypatch):
    split, plan, features = built(PyramidTail)
    anchors = corner_anchors(split, features)[2::3]
    whole = plan.responses(features, anchors, 32, "drop")
    monkeypatch.setattr(cone_plan, "MAX_VALUES", 4000)
    for expected, found in zip(whole, plan.responses(features, anchors, 32, "drop"), strict=True):
        for whole_response, response in zip(expected, found, strict=True):
            assert float((whole_response - response).abs().max()) <= 1e-5 * float(whole_response.abs().max())


def test_cone_plan_follows_new_features_and_batch_sizes():
    split, plan, features = built(PyramidTail)
    for images, seed in ((1, 5), (3, 6), (1, 7)):
        features = random_features(images, seed)
        anchors = [AnchorReads((Read(2, 1, 1), Read(0, 5, 5)), images - 1)]
        for mode in MODES:
            assert assert_exact(split, plan, features, anchors, 32, mode) > 0.1


def test_cone_plan_returns_nothing_for_no_anchors():
    _, plan, features = built(PyramidTail)
    assert plan.responses(features, [], 32, "keep") == []
    assert plan.macs([], 32) == 0


def test_cone_plan_shares_templates_of_translated_anchors():
    plan, features = ConePlan(split_of(_Spread), random_features(1)), random_features(1)
    for row in (5, 7, 8):
        plan.responses(features, [AnchorReads((Read(0, row, 6),))], 8, "keep")
    assert len(plan.assembler.templates.cache) == 1
    plan.responses(features, [AnchorReads((Read(0, 0, 6),))], 8, "keep")
    assert len(plan.assembler.templates.cache) == 2


@pytest.mark.parametrize(("kind", "layer"), [(GroupNormTail, r"head\.1 \(GroupNorm\)"), (SqueezeTail, "mul")])
def test_cone_plan_refuses_layers_over_the_whole_map_by_name(kind, layer):
    with pytest.raises(LayerError, match=f"{layer}.*dense plan"):
        ConePlan(split_of(kind), random_features(1))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (Read(0, 12, 0), "row 12, column 0: is outside map 0, which has 12 x 16"),
        (Read(9, 0, 0), "map 9.*use the split of the level to which this map belongs"),
    ],
)
def test_cone_plan_refuses_reads_outside_its_maps(read, message):
    _, plan, features = built(PyramidTail)
    with pytest.raises(ConfigError, match=message):
        plan.responses(features, [AnchorReads((read,))], 32, "keep")


def test_cone_plan_refuses_features_of_another_size():
    _, plan, _ = built(PyramidTail)
    with pytest.raises(ConfigError, match="build a plan for this size"):
        plan.responses(random_features(1, size=(64, 64)), [AnchorReads((Read(0, 0, 0),))], 32, "keep")


def test_macs_counts_a_1x1_convolution_once_for_each_needed_position():
    plan = ConePlan(split_of(_Point), random_features(1))
    assert plan.macs([AnchorReads((Read(0, 3, 3),))], 8) == 8 * 3


def test_macs_counts_the_wanted_channels_only():
    plan = ConePlan(split_of(_Spread), random_features(1))
    reads = (Read(0, 5, 6),)
    assert plan.macs([AnchorReads(reads, channels=((1,),))], 8) == 9 * (8 + 8)


def test_cone_plan_reads_layers_of_single_cells_from_the_plain_pass():
    split, features = split_of(_Stem), random_features(1)
    plan = ConePlan(split, features)
    assert plan.nodes == ("relu", "b", "c")
    anchors = [AnchorReads((Read(0, 5, 6),)), AnchorReads((Read(0, 0, 15),))]
    # The stem's six products of 8 x 4 are those of the plain pass.
    assert plan.macs(anchors[:1], 8) == 9 * (4 + 4 * 3)
    for mode in MODES:
        assert assert_exact(split, plan, features, anchors, 8, mode) > 0.1


def test_cone_plan_keeps_the_tables_of_boxes_that_stand_still():
    split, plan, features = built(PyramidTail)
    still = [AnchorReads((Read(0, 5, 6),), 0), AnchorReads((Read(2, 1, 1),), 1)]
    for mode in MODES:
        plan.responses(features, still, 32, mode)
        kept = list(plan.assembler.latest.values())
        other = random_features(2, seed=9)
        assert assert_exact(split, plan, other, still, 32, mode) > 0.3
        assert set(map(id, kept)) == set(map(id, plan.assembler.latest.values()))
        assert assert_exact(split, plan, other, still[::-1], 32, mode) > 0.3


def test_cone_plan_forgets_the_tables_of_boxes_that_moved():
    _, plan, features = built(PyramidTail)
    for row in range(2 * MAX_KEPT):
        plan.responses(features, [AnchorReads((Read(0, row % 12, row % 7),))], 32, "keep")
    assert len(plan.assembler.latest) <= MAX_KEPT


def test_cone_plan_gathers_the_same_windows_once():
    plan = ConePlan(split_of(_Twins), random_features(1))
    jobs = [plan._request(AnchorReads((Read(0, 5, 6), Read(1, 5, 6))), 8).job]
    assembly = plan.assembler.assemble(jobs, Store(1, drop=False))
    (first,), (second,) = (taps for taps in assembly.taps if taps)
    assert first.inputs is second.inputs


def test_macs_counts_positions_that_are_changed_and_needed():
    plan = ConePlan(split_of(_Spread), random_features(1))
    # Nine regions reach the anchor, each by one tap: one product for each of eight channels, then the head.
    assert plan.macs([AnchorReads((Read(0, 5, 6),))], 8) == 9 * (8 + 8 * 3)


class _Point(nn.Module):
    """A single 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        del b, c
        return (self.head(a),)


class _Stem(nn.Module):
    """A 1x1 convolution with an activation before a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 4, 1)
        self.spread = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        del b, c
        return (self.head(torch.relu(self.spread(torch.relu(self.stem(a))))),)


class _Twins(nn.Module):
    """Two depthwise convolutions of one map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        del b, c
        return self.first(a), self.second(a)


class _Spread(nn.Module):
    """A depthwise and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        del b, c
        return (self.head(torch.relu(self.spread(a))),)

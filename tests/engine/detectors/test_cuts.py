"""Complete cuts are found in the graph, can be named, and are proven."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.detectors.cuts import find_cut, named_cut, own_level_cut, stride_of
from engine.detectors.definition import dense_responses, heat_from_responses
from engine.detectors.graph import normalise
from engine.detectors.layouts import RetinanetLayout, YoloxLayout
from engine.detectors.outputs import Level, Target
from engine.detectors.split import Cut, build_split, prove_complete, with_features
from pipeline.errors import ConfigError, LayerError
from tests.support.tiny_detector import SIZE, with_lively_weights

BACKBONE = ("backbone.backbone.dark3", "backbone.backbone.dark4", "backbone.backbone.dark5")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_find_cut_gives_the_backbone_outputs_of_a_yolo(yolox, level):
    network, layout = yolox
    cut = find_cut(network, layout, level)
    assert cut == named_cut(network, BACKBONE).__class__(named_cut(network, BACKBONE).nodes, (8, 16, 32), "complete")


@pytest.mark.parametrize(("level", "module"), [(0, "C3_p3"), (1, "C3_n3"), (2, "C3_n4")])
def test_own_level_cut_gives_the_input_of_the_head(yolox, level, module):
    network, layout = yolox
    cut = own_level_cut(network, layout, level)
    assert cut.kind == "own level"
    assert cut.nodes == named_cut(network, [f"backbone.{module}"]).nodes
    assert cut.strides == (8 << level,)


@pytest.mark.parametrize("level", [0, 2])
def test_build_split_equals_the_network(yolox, image, level):
    network, layout = yolox
    maps = (*layout.levels[level].score_maps, layout.levels[level].box_map)
    split = build_split(network, find_cut(network, layout, level), maps)
    expected = network.module(image)
    for index, actual in zip(maps, split.tail(*split.features(image)), strict=True):
        torch.testing.assert_close(actual, expected[index])


def test_build_split_refuses_a_single_level_of_a_yolo(yolox):
    network, layout = yolox
    cut = named_cut(network, [BACKBONE[1]])
    with pytest.raises(LayerError, match=r"not complete.*still depends on the image.*dark3"):
        build_split(network, cut, layout.levels[0].score_maps)


def test_prove_complete_accepts_earlier_cuts(yolox):
    network, layout = yolox
    prove_complete(network, named_cut(network, BACKBONE[:1]), layout.levels[2].score_maps)


def test_named_cut_refuses_unknown_nodes_and_lists_maps(yolox):
    with pytest.raises(LayerError, match=r"'dark9'.*stride 16"):
        named_cut(yolox[0], ["dark9"])


def test_dense_responses_refuse_maps_of_another_level(yolox, image):
    network, layout = yolox
    split = build_split(network, own_level_cut(network, layout, 0), layout.levels[0].score_maps)
    reads = layout.reads(layout.locate(layout.grids(network.module(image)), 250))
    with pytest.raises(ConfigError, match="split of the anchor's level"):
        dense_responses(split, split.features(image), reads, 32, "keep")


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_dense_responses_are_runs_of_the_masked_network(yolox, image, mode):
    """Compare the definition with a network whose graph is masked by hand, region by region."""
    network, layout = yolox
    candidates = layout.decode(network.module(image), SIZE)
    target = Target(layout.locate(candidates.grids, 200), 2)
    reads = layout.reads(target.anchor)
    split = build_split(network, find_cut(network, layout, target.anchor.level), [read.map for read in reads])
    features = split.features(image)
    responses = dense_responses(split, features, reads, 32, mode, chunk=5)
    plain = [maps[:, :, r.row, r.column] for maps, r in zip(split.tail(*features), reads, strict=True)]
    heat = heat_from_responses(layout, responses, plain, target, mode=mode)
    score = candidates.log_scores[0, 200, 2].exp()
    assert heat.shape == (12,)
    assert heat.std() > 1e-4
    for cell in (0, 6, 11):
        row, column = divmod(cell, 4)
        masked = []
        for feature, stride in zip(features, split.cut.strides, strict=True):
            per = 32 // stride
            kept_cells = torch.zeros_like(feature)
            rows, columns = slice(row * per, (row + 1) * per), slice(column * per, (column + 1) * per)
            kept_cells[:, :, rows, columns] = feature[:, :, rows, columns]
            masked.append(kept_cells if mode == "keep" else feature - kept_cells)
        vectors = [m[:, :, r.row, r.column] for m, r in zip(split.tail(*masked), reads, strict=True)]
        expected = F.logsigmoid(vectors[0][0, 2]) + F.logsigmoid(vectors[1][0, 0])
        expected = expected if mode == "keep" else score - expected.exp()
        torch.testing.assert_close(heat[cell], expected, atol=1e-5, rtol=1e-4)


def test_heat_of_keep_has_the_raw_score_as_an_option(yolox, image):
    network, layout = yolox
    target = Target(layout.locate(layout.grids(network.module(image)), 3), 0)
    responses = [torch.randn(5, 6), torch.randn(5, 1)]
    logarithm = heat_from_responses(layout, responses, responses, target, mode="keep")
    raw = heat_from_responses(layout, responses, responses, target, mode="keep", raw=True)
    torch.testing.assert_close(raw, logarithm.exp())


def test_with_features_returns_maps_and_features_of_one_pass(yolox, image):
    network, layout = yolox
    cut = find_cut(network, layout, 1)
    maps, features = with_features(network, cut.nodes)(image)
    split = build_split(network, cut, layout.levels[1].score_maps)
    for expected, actual in zip(network.module(image), maps, strict=True):
        torch.testing.assert_close(actual, expected)
    for expected, actual in zip(split.features(image), features, strict=True):
        torch.testing.assert_close(actual, expected)


class _Chain(nn.Module):
    """A detector whose maps follow each other in one chain, with squeeze and excitation, as SSDlite's backbone has."""

    def __init__(self) -> None:
        super().__init__()
        strides = (2, 2, 2, 2, 1, 1, 1, 1, 2)
        self.convs = nn.ModuleList(nn.Conv2d(3 if k == 0 else 8, 8, 3, s, 1) for k, s in enumerate(strides))
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.classes = nn.ModuleList(nn.Conv2d(8, 3, 1) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for k, conv in enumerate(self.convs):
            if k == len(self.convs) - 1:
                fine = x
            x = F.relu(conv(x))
            x = x * self.squeeze(x) if k == 4 else x
        return self.classes[0](fine), self.boxes[0](fine), self.classes[1](x), self.boxes[1](x)


def test_find_cut_of_a_chain_goes_back_until_the_cone_covers_the_box():
    network = normalise(with_lively_weights(_Chain()), (128, 128))
    levels = [Level(16, 0, None, 1), Level(32, 2, None, 3)]
    small, large = (
        RetinanetLayout(levels, 3, [torch.tensor([[-side, -side, side, side]]) / 2] * 2) for side in (16.0, 80.0)
    )
    near, far = find_cut(network, small, 0), find_cut(network, large, 0)
    order = list(network.nodes)
    assert near.strides == far.strides == (16,)
    assert order.index(far.nodes[0]) < order.index(near.nodes[0])
    assert own_level_cut(network, small, 0).strides == (16,)
    build_split(network, far, [0, 2])


@pytest.mark.parametrize(("strides", "expected"), [((8, 16, 32), 32), ((16,), 32), ((32,), 32), ((128,), 128)])
def test_cell_px_is_32_or_one_cell_of_the_finest_map(strides, expected):
    assert Cut(("n",) * len(strides), strides).cell_px == expected


def test_find_cut_needs_a_map_that_is_fine_enough():
    network = normalise(with_lively_weights(_Chain()), (128, 128))
    layout = YoloxLayout([Level(32, 2, None, 3)], 3)
    assert max(find_cut(network, layout, 0).strides) <= 32
    assert stride_of(network, network.outputs[2]) == 32

"""The small network: traceable, fine enough to point, small enough to ship."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from engine.line_net import INPUT_SIZE, LAYER, LineNet


@pytest.fixture(scope="module")
def net() -> LineNet:
    torch.manual_seed(0)
    return LineNet(5).eval()


def test_it_is_a_grid_a_mean_and_one_linear_layer(net):
    images = torch.randn(2, 3, *INPUT_SIZE)
    with torch.inference_mode():
        grid = net.get_submodule(LAYER)(images)
        scores = net(images)
        assert grid.shape == (2, net.classifier.in_features, 30, 40)
        assert torch.allclose(net.classifier(grid.mean((2, 3))), scores, atol=1e-5)


def test_a_tracer_follows_it_and_finds_no_function_between_modules(net):
    graph = fx.symbolic_trace(net).graph
    assert {node.op for node in graph.nodes} == {"placeholder", "call_module", "output"}


def test_a_cell_sees_its_neighbourhood_and_nothing_far_away(net):
    images = torch.zeros(1, 3, *INPUT_SIZE)
    spoilt = images.clone()
    spoilt[:, :, 120, 160] = 5.0
    with torch.inference_mode():
        changed = (net.features(images) - net.features(spoilt)).abs().amax((0, 1)) > 0
    rows, columns = changed.nonzero().T
    assert 1 <= rows.max() - rows.min() + 1 <= 8
    assert 1 <= columns.max() - columns.min() + 1 <= 8
    assert rows.min() <= 15 <= rows.max()
    assert columns.min() <= 20 <= columns.max()


def test_its_weights_fit_the_file_we_ship(net):
    assert sum(tensor.nbytes for tensor in net.state_dict().values()) < 4_000_000

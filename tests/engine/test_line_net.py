"""The network of the simulated line: structure, receptive field, and the bundled weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx

from commands.train_line import evaluate_frames
from engine.models.checkpoint import Checkpoint, load_checkpoint
from engine.models.line_net import INPUT_SIZE, LAYER, LineNet
from stream.simulated.samples import TRAINING_SEEDS, evaluation_frames
from stream.simulated.schedule import LABELS

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "models" / "line.safetensors"


@pytest.fixture(scope="module")
def net() -> LineNet:
    torch.manual_seed(0)
    return LineNet(5).eval()


def test_line_net_is_a_grid_with_pooling_and_one_linear_layer(net):
    images = torch.randn(2, 3, *INPUT_SIZE)
    with torch.inference_mode():
        grid = net.get_submodule(LAYER)(images)
        scores = net(images)
        assert grid.shape == (2, net.classifier.in_features, 30, 40)
        assert torch.allclose(net.classifier(grid.mean((2, 3))), scores, atol=1e-5)


def test_line_net_is_traceable_without_functional_calls(net):
    graph = fx.symbolic_trace(net).graph
    assert {node.op for node in graph.nodes} == {"placeholder", "call_module", "output"}


def test_line_net_cells_have_a_small_receptive_field(net):
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


def test_line_net_has_fewer_weights_than_the_size_limit(net):
    assert sum(tensor.nbytes for tensor in net.state_dict().values()) < 4_000_000


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_checkpoint(SHIPPED)


def test_bundled_weights_fit_the_network_and_the_line(shipped):
    assert SHIPPED.stat().st_size < 4_000_000
    assert (shipped.model, shipped.layer, shipped.input_size) == ("line_net", LAYER, INPUT_SIZE)
    assert shipped.labels == LABELS
    LineNet(len(shipped.labels)).load_state_dict(shipped.state, strict=True)


def test_bundled_weights_have_provenance_and_test_accuracy(shipped):
    assert shipped.provenance["command"] == "uv run run.py train-line"
    assert shipped.provenance["training_seeds_from"] >= TRAINING_SEEDS
    for examination in shipped.provenance["examination"].values():
        assert examination["seeds"][1] < TRAINING_SEEDS
        assert examination["accuracy"] >= 0.97
        assert examination["pointing"] >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("size", "belts"), [((640, 480), 10), ((1280, 720), 5)])
def test_bundled_network_classifies_and_locates_the_defect(shipped, size, belts):
    summary = evaluate_frames(shipped, evaluation_frames(belts=belts, size=size, per_belt=6))
    assert summary["accuracy"] >= 0.95
    assert summary["pointing"] >= 0.95
    assert summary["images_pointed"] >= 1.5 * belts

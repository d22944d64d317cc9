"""Layers that eager joins: the same scores and maps, fewer operations, the network itself unchanged."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from engine.backends import eager, fusion
from engine.backends.fusion import FusedConvolution, fold_batch_norms, fuse_convolutions, trace_blocks
from engine.methods.recipro import ExplainedNetwork, Target
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import split_network

CPU = torch.device("cpu")
on_cpu = pytest.mark.skipif(not fusion.can_fuse_on_cpu(), reason="this torch has no oneDNN")


class Block(nn.Module):
    """A residual block with every form of convolution, norm and activation that is joined, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.branch = nn.Conv2d(8, 8, 1, stride=2, bias=False)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.relu, self.act = nn.ReLU(inplace=True), nn.Hardswish()
        self.pool, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, images):
        features = self.relu(self.norms[0](self.first(images)))
        features = F.relu6(self.norms[1](self.depthwise(features)))
        wide = self.wide(features)
        features = self.act(wide) + wide  # used twice: not joined
        total = self.strided(features)
        total += self.norms[2](self.branch(features))
        features = self.relu(total)
        features = F.silu(self.norms[3](self.same(features))) + self.reflecting(features)
        return self.out(torch.flatten(self.pool(features), 1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Block().eval().requires_grad_(requires_grad=False)
    for norm in net.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
        norm.weight.normal_()
        norm.bias.normal_()
    return net


@pytest.fixture
def images():
    return torch.randn(2, 3, 9, 13)


def kinds(part):
    return [type(part.get_submodule(node.target)) for node in part.graph.nodes if node.op == "call_module"]


def test_fold_batch_norms_keeps_the_outputs_and_removes_the_norms(net, images):
    expected = net(images)
    part = fx.symbolic_trace(net)
    assert fold_batch_norms(part) == 4
    assert nn.BatchNorm2d not in kinds(part)
    torch.testing.assert_close(part(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(images), expected, atol=0, rtol=0)


def test_fold_batch_norms_leaves_norms_of_shared_or_branching_convolutions(net, images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.other = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x):
            first = self.norm(self.layer(x)) + self.norm(self.layer(2 * x))
            return first + self.other(self.layer(3 * x))

    shared = Shared().eval()
    part = fx.symbolic_trace(shared)
    assert fold_batch_norms(part) == 0
    torch.testing.assert_close(part(images), shared(images), atol=0, rtol=0)


@on_cpu
def test_fused_convolutions_keep_the_outputs_for_every_batch_and_size(net, images):
    part = fx.symbolic_trace(net)
    fold_batch_norms(part)
    assert fuse_convolutions(part, images) == 5
    assert kinds(part).count(FusedConvolution) == 5
    assert nn.ReLU not in kinds(part), "both are part of a convolution"
    assert [node.target for node in part.graph.nodes].count(F.relu6) == 0
    for some in (images, images[:1], torch.randn(3, 3, 12, 8).contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(part(some), net(some), atol=1e-5, rtol=1e-5)


def test_blocks_that_a_graph_calls_as_a_whole_are_traced(images):
    torch.manual_seed(0)

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(self.layer(x)) if x.sum() > -1e9 else x  # depends on values: cannot be traced

    block = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), Asking())
    part = Whole(block.eval()).graph_module()
    expected = part(images)
    trace_blocks(part)
    assert fold_batch_norms(part) == 1
    torch.testing.assert_close(part(images), expected, atol=1e-5, rtol=1e-5)


class Whole(fx.Tracer):
    """Traces a Sequential with its parts as leaves."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def is_leaf_module(self, module, qualified_name):
        return True

    def graph_module(self):
        return fx.GraphModule(self.net, self.trace(self.net))


@on_cpu
def test_sum_of_two_shapes_is_not_joined():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            return self.relu(self.layer(x) + x.mean((2, 3), keepdim=True))

    net, images = Broadcast().eval(), torch.randn(1, 3, 4, 5)
    part = fx.symbolic_trace(net)
    assert fuse_convolutions(part, images) == 1
    torch.testing.assert_close(part(images), net(images))


@pytest.fixture
def split():
    torch.manual_seed(0)
    body = (
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    )
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    for norm in (net[1], net[4]):
        norm.running_var.uniform_(0.2, 3)
        norm.running_mean.normal_(0, 0.3)
    net[8].weight.data *= 20
    return split_network(net, "5", (9, 13))


@on_cpu
def test_eager_fuses_the_head_of_an_explained_network(split, images):
    runner = Runner(split, CompileConfig(Target(), "point", "eager", "fp32", CPU, 1 << 28))
    compiled = runner._compiled[0]
    assert isinstance(compiled, ExplainedNetwork)
    assert nn.BatchNorm2d not in kinds(compiled.head)
    assert nn.BatchNorm2d in kinds(split.head), "the split network is the reference"
    for found, expected in zip(runner(images), runner._module(images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    heat = runner(images)[2]
    assert float(heat.amax() - heat.amin()) == 1.0, "the maps are not flat"
    assert sum(kind is FusedConvolution for kind in kinds(compiled.head)) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_eager_folds_half_precision_within_its_tolerance(split, images, dtype):
    head = fx.GraphModule(split.head, split.head.graph).to(dtype)
    compiled = eager.compile(head, images.to(dtype), "half")
    assert nn.BatchNorm2d not in kinds(compiled)
    assert FusedConvolution not in kinds(compiled)
    found, expected = compiled(images.to(dtype)).float(), split.head.float()(images)
    assert float((found - expected).abs().max()) <= eager.FUSED_TOLERANCE[dtype] * float(expected.abs().max())


def test_eager_does_not_use_fused_layers_that_change_the_scores(split, images, monkeypatch, caplog):
    def wrong(module):
        module.register_forward_hook(lambda module, inputs, output: 1.01 * output)
        return 1

    monkeypatch.setattr(eager, "fold_batch_norms", wrong)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        compiled = eager.compile(split.head, images, "fp32")
        assert torch.equal(compiled(images), split.head(images))
    assert "they run unfused" in caplog.text


def test_eager_runs_a_network_whose_layers_cannot_be_fused(split, images, monkeypatch):
    def refusing(module):
        raise RuntimeError("an operation of this network's own")

    monkeypatch.setattr(eager, "fold_batch_norms", refusing)
    with torch.inference_mode():
        assert torch.equal(eager.compile(split.head, images, "fp32")(images), split.head(images))

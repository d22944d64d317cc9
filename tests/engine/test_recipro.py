"""Recipro-CAM equals its definition for every registered CNN, and has its invariants on small networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.methods.dense import DensePlan
from engine.methods.kernels import masks
from engine.methods.recipro import normalise, recipro_cam
from engine.models.loader import build_untrained
from engine.models.registry import MODELS
from engine.split.network import split_network
from pipeline.errors import ConfigError
from tests.engine.reference import defined, lively, narrow_net

SMALLEST = {"inception_v3": (107, 139), "squeezenet1_0": (65, 81), "squeezenet1_1": (65, 81)}
"""A grid of a few cells is enough for the definition, and its loop runs the whole network once a cell."""


@pytest.fixture(scope="module", autouse=True)
def same_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield


def network(name, size):
    narrow = name.startswith("vgg") or (name == "alexnet" and size != (64, 96))
    return lively(narrow_net(name, 40) if narrow else build_untrained(MODELS[name], 40), size)


def assert_as_defined(net, split, images, classes, kernel):
    scores, heat = recipro_cam(split, images, classes, kernel)
    true_scores, true_heat = defined(net, split.layer, images, classes, kernel)
    assert torch.equal(true_heat.amax((1, 2)), torch.ones(len(images))), "the reference is flat and proves nothing"
    assert float((scores - true_scores).abs().max()) < 1e-4
    assert float((heat - true_heat).abs().max()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("vit")])
def test_recipro_cam_equals_the_definition_for_every_registered_cnn(name):
    size = SMALLEST.get(name, (64, 96))
    net = network(name, size)
    split = split_network(net, MODELS[name].layer, size)
    images = torch.randn(2, 3, *size)
    assert_as_defined(net, split, images, None, "point")
    assert_as_defined(net, split, images[1:], [17], "gaussian")
    plans = {plan.info.name for plan in split.plans.values()}
    assert plans == {"flat" if name.startswith(("vgg", "alexnet")) else "pooled"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_large", "alexnet"])
@pytest.mark.parametrize("size", [(160, 160), (186, 142)])
def test_recipro_cam_equals_the_definition_at_other_sizes(name, size):
    net = network(name, size)
    split = split_network(net, image_size=size)
    image = torch.randn(1, 3, *size)
    assert_as_defined(net, split, image, None, "point")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "alexnet", "googlenet"])
def test_recipro_cam_accepts_images_of_another_size_than_the_split(name):
    net = network(name, (96, 128))
    split = split_network(net, image_size=(96, 128))
    assert_as_defined(net, split, torch.randn(1, 3, 128, 160), None, "gaussian")


class Pointwise(nn.Module):
    """A tail with every kind of cellwise layer before the mean."""

    def __init__(self):
        super().__init__()
        self.grid = nn.Conv2d(3, 12, 5, stride=4)
        self.norm = nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 20, 1)
        self.hidden = nn.Linear(20, 16)
        self.classes = nn.Linear(16, 7)

    def forward(self, x):
        x = F.hardswish(self.norm(self.grid(x)))
        x = torch.sigmoid(self.wide(x)).mean([2, 3])
        return self.classes(F.relu(self.hidden(x), inplace=True)) * 5


@pytest.mark.parametrize("kernel", ["point", "gaussian"])
def test_pooled_plan_accepts_cellwise_layers_before_the_mean(kernel):
    net = lively(Pointwise(), (30, 41))
    split = split_network(net, "grid", (30, 41))
    assert_as_defined(net, split, torch.randn(3, 3, 30, 41), [0, 6, 2], kernel)
    (plan,) = split.plans.values()
    assert plan.info.name == "pooled"


class PointwiseAfterMean(nn.Module):
    """A tail with 1x1 convolutions after the mean, as MobileNetV3 has in timm."""

    def __init__(self):
        super().__init__()
        self.grid = nn.Conv2d(3, 12, 5, stride=4)
        self.body = nn.Sequential(nn.Conv2d(12, 20, 1), nn.Hardswish(), nn.Conv2d(20, 16, 1, groups=2, bias=False))
        self.classes = nn.Linear(16, 7)

    def forward(self, x):
        x = self.body(F.hardswish(self.grid(x)).mean([2, 3], keepdim=True))
        return F.linear(F.relu(x).flatten(1), self.classes.weight, bias=self.classes.bias) * 5


@pytest.mark.parametrize("kernel", ["point", "gaussian"])
def test_pooled_plan_computes_pointwise_convolutions_after_the_mean_as_matrix_products(kernel):
    net = lively(PointwiseAfterMean(), (30, 41))
    split = split_network(net, "grid", (30, 41))
    assert_as_defined(net, split, torch.randn(3, 3, 30, 41), [0, 6, 2], kernel)
    (plan,) = split.plans.values()
    assert plan.info.name == "pooled"
    kinds = [type(part) for part in plan.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert kinds.count(nn.Linear) == 2  # the convolution of one group and the linear function
    assert kinds.count(nn.Conv2d) == 1
    assert sum(isinstance(part, nn.Conv2d) for part in split.tail.modules()) == 2
    shared = {weight.data_ptr() for weight in split.tail.parameters()}
    assert {weight.data_ptr() for weight in plan.parameters()} <= shared


def test_dense_plan_is_independent_of_the_budget():
    net = lively(Pointwise(), (30, 41))
    split = split_network(net, "grid", (30, 41))
    features = split.head(torch.randn(2, 3, 30, 41))
    wide = DensePlan(split.tail, "gaussian", "asked for", 1 << 30)
    narrow = DensePlan(split.tail, "gaussian", "asked for", 1)
    assert narrow.chunk(features) == 1 < wide.chunk(features)
    for first, other in zip(wide(features), narrow(features), strict=True):
        torch.testing.assert_close(first, other)


@pytest.mark.parametrize("budget", [1, 1 << 17, 1 << 30])
def test_dense_plan_with_a_compiled_tail_has_equal_outputs(budget):
    net = lively(Pointwise(), (30, 41))
    split = split_network(net, "grid", (30, 41))
    features = split.head(torch.randn(2, 3, 30, 41))
    plan = DensePlan(split.tail, "gaussian", "asked for", budget)
    sizes = []

    def only_such(module, example):
        sizes.append(len(example))

        def run(maps):
            assert maps.shape == example.shape, "compiled for one shape"
            return module(maps)

        return run

    compiled = plan.compiled(features, only_such)
    assert sizes == [2, plan.chunk(features)]
    for batch in (features, features[:1], torch.cat([features, features])):
        for first, other in zip(compiled(batch), plan(batch), strict=True):
            torch.testing.assert_close(first, other)


def test_recipro_cam_is_independent_of_the_batch():
    net = lively(Pointwise(), (30, 41))
    colours = torch.tensor([[-9.0, 0, 0], [0, 9, 0], [0, 0, 9], [9, -9, 9]])[:, :, None, None]
    images = torch.randn(4, 3, 30, 41) + colours
    with torch.no_grad():
        net.classes.bias -= net(images).mean(0) / 5
    split = split_network(net, "grid", (30, 41))
    scores, heat = recipro_cam(split, images)
    assert len(set(scores.argmax(1).tolist())) > 1, "all images have one top class: the test says nothing"
    for n in range(4):
        alone_scores, alone_heat = recipro_cam(split, images[n : n + 1])
        torch.testing.assert_close(scores[n], alone_scores[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(heat[n], alone_heat[0], atol=1e-3, rtol=0)


def test_flat_scores_give_zeros_and_no_nan():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    nn.init.zeros_(net[3].weight)
    _, heat = recipro_cam(split_network(net, "0", (16, 16)), torch.randn(2, 3, 16, 16))
    assert torch.equal(heat, torch.zeros(2, 14, 14))


def test_rounding_errors_give_no_heat_map():
    flat = torch.full((1, 9, 1), 0.3) * (1 + torch.rand(1, 9, 1) * 2e-7)
    assert torch.equal(normalise(flat), torch.zeros(1, 9, 1))
    assert float(normalise(torch.tensor([[[0.3], [0.3001]]])).max()) == 1.0


def test_scores_sum_to_one_and_heat_maps_span_zero_to_one():
    net = lively(Pointwise(), (30, 41))
    scores, heat = recipro_cam(split_network(net, "grid", (30, 41)), torch.randn(3, 3, 30, 41), classes=4)
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    assert heat.dtype == scores.dtype == torch.float32
    assert torch.equal(heat.amin((1, 2)), torch.zeros(3))
    assert torch.equal(heat.amax((1, 2)), torch.ones(3))


def test_gaussian_masks_are_cut_off_and_not_renormalised():
    grid = masks("gaussian", (3, 4), torch.arange(12))
    assert float(grid[5].sum()) == 1.0
    assert float(grid[0].sum()) == 9 / 16
    assert float(grid[1].sum()) == 12 / 16
    assert grid[0, 0, 0] == grid[5, 1, 1] == 4 / 16
    assert torch.equal(masks("point", (3, 4), torch.tensor([6]))[0].nonzero(), torch.tensor([[1, 2]]))


@pytest.mark.parametrize(
    ("classes", "kernel", "rule"),
    [
        (7, "point", "classes 0 to 6"),
        (-1, "point", "classes 0 to 6"),
        ([1, 2], "point", "has 2 entries for 3 images"),
        (None, "gausian", "Did you mean 'gaussian'"),
    ],
)
def test_recipro_cam_refuses_unknown_classes_and_kernels(classes, kernel, rule):
    split = split_network(Pointwise().eval(), "grid", (30, 41))
    with pytest.raises(ConfigError, match=rule):
        recipro_cam(split, torch.randn(3, 3, 30, 41), classes, kernel)

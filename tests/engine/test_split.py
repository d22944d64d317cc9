"""Splitting networks: default layer, unchanged network, tail(head(x)) == net(x), and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.models.loader import build_untrained
from engine.models.registry import MODELS
from engine.split.network import split_network
from pipeline.errors import EngineError, LayerError
from tests.engine.reference import narrow_net

EXPECTED = {
    "resnet18": ("layer4", (7, 7)),
    "densenet121": ("features", (7, 7)),
    "vgg11": ("features", (7, 7)),
    "alexnet": ("features", (6, 6)),
    "googlenet": ("inception5b", (7, 7)),
    "inception_v3": ("Mixed_7c", (8, 8)),
    "mobilenet_v3_small": ("features", (7, 7)),
    "regnet_x_400mf": ("trunk_output", (7, 7)),
    "shufflenet_v2_x1_0": ("conv5", (7, 7)),
    "squeezenet1_1": ("classifier.2", (13, 13)),
    "convnext_tiny": ("features", (7, 7)),
}


def conv(inputs, outputs, **more):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **more)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_split_network_finds_the_last_grid(name):
    entry = MODELS[name]
    net = narrow_net(name, 1000) if name in {"alexnet", "vgg11"} else build_untrained(entry)
    split = split_network(net, None, entry.input_size)
    assert (split.layer, split.grid) == EXPECTED[name]
    assert split.traced


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small"])
def test_split_network_does_not_change_the_network(name):
    net = build_untrained(MODELS[name]).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    split = split_network(net, image_size=(64, 64))
    split.head.to(torch.float16)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("layer", ["layer1", "layer2.0", "layer3.1", "layer4"])
def test_head_and_tail_equal_the_network_at_any_block(layer):
    net = build_untrained(MODELS["resnet18"])
    split = split_network(net, layer, (64, 80))
    images = torch.randn(3, 3, 64, 80)
    with torch.inference_mode():
        torch.testing.assert_close(split.tail(split.head(images)), net(images), atol=1e-5, rtol=1e-5)


def test_tail_does_not_change_its_input():
    net = nn.Sequential(conv(3, 8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    split = split_network(net, "0", (12, 12))
    features = torch.randn(1, 8, 12, 12)
    copy = features.clone()
    split.tail(features)
    assert torch.equal(features, copy)


class InPlaceFunctions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = conv(3, 8), conv(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        x += 1.0
        x = F.relu(x, inplace=True)
        y = self.second(x)
        y *= 2.0
        return self.out(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def test_split_network_preserves_in_place_functions():
    net = InPlaceFunctions()
    split = split_network(net, "first", (12, 12))
    assert split.traced
    images = torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        features = split.head(images)
        copy = features.clone()
        torch.testing.assert_close(split.tail(features), net.eval()(images))
        assert torch.equal(features, copy)


class Untraceable(nn.Module):
    """Branches on values, so that it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.grid, self.out = conv(3, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.grid(x)
        if x.numel() and float(x.sum()) == 12345.678:
            x = x + 1
        return self.out(F.relu(x, inplace=True).mean((2, 3)))


def test_split_network_uses_hooks_for_an_untraceable_network():
    net = Untraceable().eval()
    split = split_network(net, "grid", (9, 11))
    assert not split.traced
    images = torch.randn(3, 3, 9, 11)
    with torch.inference_mode():
        torch.testing.assert_close(split.tail(split.head(images)), net(images))


@pytest.mark.parametrize("layer", ["layer4.1.bn2", "layer4.1.conv2", "layer2.0.downsample"])
def test_split_network_refuses_a_layer_in_a_residual_branch(layer):
    with pytest.raises(LayerError, match=r"bypasses this layer.*--layer layer\d.\d"):
        split_network(build_untrained(MODELS["resnet18"]), layer, (64, 64))


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        ("layr4", "Did you mean 'layer4'"),
        ("avgpool", "not a grid of cells"),
        ("fc", "not a grid of cells"),
        ("layer4.1.relu", "runs 2 times"),
    ],
)
def test_split_network_refuses_layers_without_a_grid(layer, rule):
    with pytest.raises(LayerError, match=rule):
        split_network(build_untrained(MODELS["resnet18"]), layer, (64, 64))


def test_split_network_refuses_the_patch_embedding_of_a_transformer():
    import torchvision

    net = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48, num_classes=5)
    with pytest.raises(LayerError, match="transformer"):
        split_network(net, "conv_proj", (32, 32))


def test_split_network_refuses_a_transformer_with_unknown_blocks():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.out = conv(3, 24, stride=8), nn.Linear(24, 5)
            self.mix = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True)

        def forward(self, x):
            return self.out(self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    with pytest.raises(LayerError, match="transformer"):
        split_network(Strange(), None, (32, 32))


def test_split_network_splits_swin_at_its_last_grid():
    import torchvision

    net = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5)
    split = split_network(net, image_size=(64, 64))
    assert split.grid == (8, 8)


def test_split_network_refuses_a_network_without_class_scores():
    with pytest.raises(EngineError, match="not class scores"):
        split_network(nn.Sequential(conv(3, 8)), image_size=(8, 8))


def test_split_network_refuses_an_unsupported_input_size():
    with pytest.raises(EngineError, match="does not accept a 8x8 image"):
        split_network(build_untrained(MODELS["alexnet"]), image_size=(8, 8))


def test_split_network_refuses_a_nondeterministic_network():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.grid, self.out = conv(3, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.out(self.grid(x).mean((2, 3)) + torch.randn(8))

    with pytest.raises(EngineError, match="not deterministic"):
        split_network(Noisy(), "grid", (8, 8))

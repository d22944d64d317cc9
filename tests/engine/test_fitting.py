"""Weights of other forms: equal outputs after conversion, or an error with the remedy."""

import re

import pytest
import torch
from torch import nn

from engine.fitting import LUMINANCE
from engine.methods.recipro import recipro_cam
from engine.models.checkpoint import Checkpoint, save_checkpoint
from engine.models.loader import build_untrained, class_names, load_network
from engine.models.registry import MODELS
from engine.models.weights import fit_weights, put_into
from engine.split.network import split_network
from pipeline.errors import ModelError
from tests.engine.reference import defined, lively

SMALL = (64, 64)


def drawn(name, count=None):
    """Build a network without the cost of its own initial weights."""
    with torch.device("meta"):
        net = build_untrained(MODELS[name], count)
    net = net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.01, 1.0, generator=generator) if "var" in key else value.uniform_(
                -0.05, 0.06, generator=generator
            )
        else:
            value.zero_()
    return net.eval()


def empty(name):
    def build(count):
        with torch.device("meta"):
            net = build_untrained(MODELS[name], count)
        return net.to_empty(device="cpu").eval()

    return build


FAMILIES = [
    "line_net", "resnet18", "densenet121", "squeezenet1_1", "googlenet", "mobilenet_v2", "mobilenet_v3_small",
    "efficientnet_b0", "shufflenet_v2_x1_0", "mnasnet1_0", "convnext_tiny",
]  # fmt: skip
"""One of each class of networks of the table, but for those whose weights are many and whose loading is plain."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_fit_weights_accepts_a_plain_dict(tmp_path, name):
    net = drawn(name)
    again = fit_weights(empty(name), dict(net.state_dict()), name, tmp_path).net
    assert_same_weights(net, again)
    put_into(again, {key: value.clone() for key, value in net.state_dict().items()})
    assert_same_weights(net, again)


def assert_same_weights(net, other):
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["mnasnet1_0", "resnet18"])
def test_checkpoint_restores_the_network(tmp_path, name):
    net = drawn(name, 3)
    save_checkpoint(tmp_path / "m.safetensors", Checkpoint(
        state=dict(net.state_dict()), model=name, labels=("a", "b", "c"), input_size=SMALL, mean=(0.5,) * 3,
        std=(0.5,) * 3, layer=split_network(net, None, SMALL).layer,
    ))  # fmt: skip
    loaded = load_network(str(tmp_path / "m.safetensors"))
    images = torch.randn(1, 3, *SMALL)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(images), net(images))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern", "to"), [
    ("densenet121", r"(denselayer\d+\.)(norm|relu|conv)(\d)\.", r"\1\2.\3."),
    ("vit_b_32", r"mlp\.0\.", "mlp.linear_1."),
])  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_fit_weights_accepts_names_of_torchvision_files(tmp_path, name, pattern, to, prefix):
    net = drawn(name)
    renamed = {prefix + re.sub(pattern, to, key): value for key, value in net.state_dict().items()}
    if name.startswith("vit"):
        renamed = {key.replace("mlp.3.", "mlp.linear_2."): value for key, value in renamed.items()}
    assert set(renamed) != set(net.state_dict())
    assert_same_weights(net, fit_weights(empty(name), renamed, name, tmp_path).net)


class Small(nn.Module):
    """A stem, a body and a head, called as torchvision calls them."""

    def __init__(self, count=5, channels=3, head=None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 5, stride=4)
        self.layer1 = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = head if head is not None else nn.Linear(12, count)

    def forward(self, x):
        return self.fc(self.pool(self.layer1(self.conv1(x))).flatten(1))


class Nested(Small):
    """The head in a Sequential, as MobileNet has it."""

    def __init__(self, count=5):
        super().__init__(head=nn.Sequential(nn.Dropout(), nn.Linear(12, count)))


class Deep(Small):
    """A head of two layers, as VGG has it."""

    def __init__(self, count=5):
        super().__init__(head=nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, count)))


def build(kind):
    return lambda count: (kind() if count is None else kind(count)).eval()


def trained(net):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return lively(net, (40, 44))


def trained_single(kind):
    """Return a network with one score, whose values lie far below and far above zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = kind(1)
        net.train()
        net(torch.randn(8, 3, 40, 44))
        net.eval()
        with torch.no_grad():
            last = [part for part in net.modules() if isinstance(part, nn.Linear)][-1]
            last.weight.mul_(30.0)
            last.bias.sub_(net(images(8)).mean())
    return net


def images(count=2):
    return torch.randn((count, 3, 40, 44), generator=torch.Generator().manual_seed(4))


def assert_same_answers(net, other):
    with torch.inference_mode():
        torch.testing.assert_close(net(images()), other(images()))


@pytest.mark.parametrize("kind", [Small, Nested])
@pytest.mark.parametrize("head", [
    nn.Sequential(nn.Dropout(), nn.Linear(12, 7)), nn.Sequential(nn.Sequential(nn.Linear(12, 7)), nn.Identity()),
    nn.Sequential(nn.Linear(12, 7, bias=False)), nn.Linear(12, 7, bias=False), nn.Linear(12, 7), nn.Linear(12, 5),
], ids=["dropout", "nested", "no bias, nested", "no bias", "plain", "of as many classes"])  # fmt: skip
def test_fit_weights_finds_a_single_layer_head(tmp_path, kind, head):
    net = trained(Small(head=head)).eval()
    assert_same_answers(fit_weights(build(kind), dict(net.state_dict()), "small", tmp_path).net, net)


def test_fit_weights_replaces_a_head_of_several_layers(tmp_path):
    net = trained(Small(7)).eval()
    assert_same_answers(fit_weights(build(Deep), dict(net.state_dict()), "deep", tmp_path).net, net)


@pytest.mark.parametrize("rename", [
    lambda key: key.replace("fc.", "last_linear."),
    lambda key: "head.fc." + key[3:] if key.startswith("fc.") else f"backbone.{key}",
], ids=["another name", "beside its backbone"])  # fmt: skip
def test_fit_weights_finds_a_head_with_another_name(tmp_path, rename):
    net = trained(Small(7)).eval()
    state = {rename(key): value for key, value in net.state_dict().items()}
    assert_same_answers(fit_weights(build(Small), state, "small", tmp_path).net, net)


def test_fit_weights_refuses_a_head_of_several_layers(tmp_path):
    state = dict(Deep().state_dict())
    with pytest.raises(ModelError, match=r"its head has 2 layers \(fc.0, fc.2\).*single linear layer"):
        fit_weights(build(Small), state, "small", tmp_path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_one_channel_weights_read_the_luminance(tmp_path, prefix):
    grey = trained_grey()
    state = {prefix + key: value for key, value in grey.state_dict().items()}
    fitted = fit_weights(build(Small), state, "small", tmp_path)
    assert fitted.greyscale
    shares = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(fitted.net(images()), grey((images() * shares).sum(1, keepdim=True)))
        alike = images()[:, :1]
        torch.testing.assert_close(fitted.net(alike.expand(-1, 3, -1, -1)), grey(alike))


def trained_grey():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Small(4, channels=1)
        net.train()
        for _ in range(4):
            net(torch.randn(8, 1, 40, 44))
    return net.eval()


def test_one_channel_weights_have_equal_normalisation_in_all_channels(tmp_path, caplog):
    state = dict(drawn("resnet18", 3).state_dict())
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    torch.save(state, tmp_path / "w.pth")
    network = load_network("resnet18", weights=tmp_path / "w.pth")
    assert len(set(network.mean)) == len(set(network.std)) == 1
    assert "is for greyscale images" in caplog.text


def test_fit_weights_refuses_four_input_channels(tmp_path):
    with pytest.raises(ModelError, match="they have 4 input channels, but frames have three"):
        fit_weights(build(Small), dict(Small(channels=4).state_dict()), "small", tmp_path)


@pytest.mark.parametrize("kind", [Small, Nested, Deep])
def test_single_score_is_explained_as_its_sigmoid(tmp_path, kind):
    single = trained_single(kind)
    fitted = fit_weights(build(kind), dict(single.state_dict()), "small", tmp_path)
    assert fitted.binary
    split = split_network(fitted.net, "layer1", (40, 44))
    scores, heat = recipro_cam(split, images(), classes=1)
    with torch.inference_mode():
        torch.testing.assert_close(scores[:, 1], torch.sigmoid(single(images()))[:, 0], atol=1e-5, rtol=0)
        features = single.layer1(single.conv1(images()))
        expected = torch.zeros(2, *features.shape[2:])
        for row in range(features.shape[2]):
            for column in range(features.shape[3]):
                masked = torch.zeros_like(features)
                masked[:, :, row, column] = features[:, :, row, column]
                expected[:, row, column] = torch.sigmoid(single.fc(single.pool(masked).flatten(1)))[:, 0]
    low, high = expected.amin((1, 2), keepdim=True), expected.amax((1, 2), keepdim=True)
    assert float((high - low).min()) > 1e-3, "the map is flat and proves nothing"
    torch.testing.assert_close(heat, (expected - low) / (high - low), atol=1e-3, rtol=0)
    assert float((heat - defined(fitted.net, "layer1", images(), [1, 1], "point")[1]).abs().max()) < 1e-3


def test_single_score_has_two_named_classes(tmp_path, caplog):
    torch.save(drawn("resnet18", 1).state_dict(), tmp_path / "w.pth")
    (tmp_path / "l.txt").write_text("scratch\n", encoding="utf-8")
    assert class_names(load_network("resnet18", weights=tmp_path / "w.pth"), 2) == ("class 0", "class 1")
    assert "has one score, which is used as the logit of a sigmoid" in caplog.text
    names = load_network("resnet18", weights=tmp_path / "w.pth", labels=tmp_path / "l.txt")
    assert class_names(names, 2) == ("not scratch", "scratch")


def test_fit_weights_reports_a_backbone(tmp_path):
    state = {key: value for key, value in drawn("resnet18").state_dict().items() if not key.startswith("fc.")}
    with pytest.raises(ModelError, match=r"only the last layer \(fc\) is missing: it is a backbone"):
        fit_weights(empty("resnet18"), state, "resnet18", tmp_path)


def test_fit_weights_reports_quantized_weights(tmp_path):
    state = {key: value for key, value in drawn("resnet18").state_dict().items() if not key.startswith("fc.")}
    state |= {"fc.scale": torch.tensor(1.0), "fc.zero_point": torch.tensor(0)}
    with pytest.raises(ModelError, match="it is quantised; save net"):
        fit_weights(empty("resnet18"), state, "resnet18", tmp_path)

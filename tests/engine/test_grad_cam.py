"""All methods have one signature, equal their source, and leave the network unchanged."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.methods.cam import cam
from engine.methods.grad_cam import GRAD_CAM_METHODS, GradCamMethod
from engine.methods.recipro import recipro_cam
from engine.methods.registry import METHODS, find_method
from engine.split.network import split_network
from pipeline.errors import ConfigError, EngineError, LayerError


def net_with(*after):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            *(after or (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))),
        ).eval()  # fmt: skip
    with torch.no_grad():
        net[7].weight.mul_(8)
    return net


@pytest.fixture
def images():
    return torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def package():
    return pytest.importorskip("pytorch_grad_cam", reason="the evaluate extra is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_methods_return_network_scores_and_heat_maps_in_range(name, images, package):
    net = net_with()
    split = split_network(net, None, (40, 56))
    with torch.inference_mode():
        scores, heat = find_method(name)(split, images)
    assert torch.allclose(scores, torch.softmax(net(images), 1), atol=1e-6)
    assert heat.shape == (3, *split.grid)
    assert heat.dtype == torch.float32
    assert heat.min() >= 0.0
    assert heat.max() <= 1.0
    assert heat.flatten(1).max(1).values.min() > 0.99


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_independent_of_the_batch_and_accept_classes(name, images, package):
    split, method = split_network(net_with(), None, (40, 56)), find_method(name)
    best = method(split, images)[0].argmax(1)
    together = method(split, images, best)[1]
    assert torch.allclose(method(split, images)[1], together)
    for place, target in enumerate(best.tolist()):
        assert torch.allclose(method(split, images[place : place + 1], target)[1][0], together[place], atol=1e-5)
    if name != "eigen-cam":
        assert not torch.allclose(method(split, images, (best + 1) % 5)[1], together, atol=1e-3)
    with pytest.raises(ConfigError, match="class 5 is unknown"):
        method(split, images, 5)


@pytest.mark.parametrize(("name", "theirs"), GRAD_CAM_METHODS.items())
def test_grad_cam_method_equals_the_package(name, theirs, images, package):
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net = net_with()
    classes = [4, 0, 2]
    _, heat = GradCamMethod(name)(split_network(net, None, (40, 56)), images, classes)
    with getattr(package, theirs)(model=net, target_layers=[net[4]]) as direct:
        expected = direct(images, [ClassifierOutputTarget(cls) for cls in classes])
    ours = scale_cam_image(scale_cam_image(heat.numpy(), (56, 40)))
    assert np.abs(ours - expected).max() < 1e-5


@pytest.mark.parametrize("name", GRAD_CAM_METHODS)
def test_methods_do_not_change_the_network(name, images, package):
    net = net_with()
    split = split_network(net, None, (40, 56))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parts = [net, split.head, split.tail]
    GradCamMethod(name)(split, images)
    for module in (module for part in parts for module in part.modules()):
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(p.requires_grad or p.grad is not None for part in parts[1:] for p in part.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not images.requires_grad
    assert torch.is_grad_enabled()


def test_score_cam_shows_no_progress_bar(images, package, capsys):
    GradCamMethod("score-cam")(split_network(net_with(), None, (40, 56)), images[:1])
    result = capsys.readouterr()
    assert result.out == result.err == ""


def test_cam_is_the_weighted_sum_of_feature_maps(images):
    net = net_with()
    scores, heat = cam(split_network(net, None, (40, 56)), images)
    with torch.no_grad():
        features = net[:5](images)
        summed = torch.einsum("nchw,nc->nhw", features, net[7].weight[scores.argmax(1)])
    low, high = summed.amin((1, 2), keepdim=True), summed.amax((1, 2), keepdim=True)
    assert torch.allclose(heat, (summed - low) / (high - low), atol=1e-5)


def test_cam_refuses_networks_without_pooling_and_one_linear_layer(images):
    hidden = net_with(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))
    for net, layer in ((hidden, None), (net_with(), "1")):
        split = split_network(net, layer, (40, 56))
        recipro_cam(split, images)
        with pytest.raises(LayerError, match="one linear layer directly after"):
            cam(split, images)


def test_methods_return_zeros_for_a_flat_map(images, package):
    net = net_with()
    with torch.no_grad():
        net[3].weight.zero_()
        net[3].bias.zero_()
    split = split_network(net, None, (40, 56))
    for name in METHODS:
        assert not find_method(name)(split, images)[1].any(), name


def test_find_method_names_the_remedy_for_unknown_methods_and_missing_packages(monkeypatch):
    with pytest.raises(ConfigError, match=r"method 'gradcam' is unknown.*grad-cam"):
        find_method("gradcam")
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(EngineError, match="uv sync --inexact --extra evaluate"):
        find_method("score-cam")


def test_live_path_does_not_import_comparison_methods():
    root = Path(__file__).resolve().parents[2]
    away = [
        place.relative_to(root).as_posix()
        for room in ("pipeline", "stream", "overlays", "engine", "commands")
        for place in (root / room).rglob("*.py")
        if "engine.methods.registry" in (text := place.read_text(encoding="utf-8")) or "engine.methods.grad_cam" in text
    ]
    assert sorted(away) == sorted(
        [
            "engine/evaluation/factory.py",
            "engine/evaluation/evaluator.py",
            "engine/methods/registry.py",
        ]
    )

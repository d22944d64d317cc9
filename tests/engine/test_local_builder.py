"""Local plans against the definition, for random and known networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.methods.kernels import Kernel
from engine.methods.plan import probe_cells, reference_scores
from engine.methods.recipro import plan_for, recipro_cam
from engine.split.network import split_network
from tests.engine.local_networks import (
    KERNELS,
    assert_exact,
    everywhere,
    head_of,
    layers,
    local_of,
    settle,
    small_net,
)
from tests.engine.reference import narrow_net

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(net=layers(), size=st.tuples(st.integers(3, 11), st.integers(3, 11)), kernel=st.sampled_from(KERNELS))
def test_local_plan_of_a_random_network_equals_the_definition(net, size, kernel):
    torch.manual_seed(0)
    split = split_network(small_net(net, size), "stem", size)
    features = head_of(split)
    plan = local_of(split, features, kernel)
    assert plan.rest is None
    with torch.inference_mode():
        true = reference_scores(split.tail, features, kernel, everywhere(features))
        result = plan(features)[1]
        blank = split.tail(torch.zeros_like(features))[:, None]
    signal = float((true - blank).abs().max())
    assert float((result - true).abs().max()) <= 1e-4 * signal + 2e-6 * float(true.abs().max())


ODD = (122, 94)
"""A size whose halves are odd at several depths."""
FAMILIES = [
    ("resnet18", "layer2", (96, 128)),
    ("resnet50", "layer4.0", (90, 110)),
    ("shufflenet_v2_x1_0", "stage3", (96, 128)),
    ("mobilenet_v2", "features.13", (95, 128)),
    ("mobilenet_v3_small", "features.8", (96, 128)),
    ("googlenet", "inception4e", (96, 128)),
    ("regnet_x_400mf", "trunk_output.block3", (96, 128)),
]
MORE_FAMILIES = [
    *[("resnet18", layer, size) for layer, size in (("layer1", (96, 128)), ("layer1", ODD), ("layer3", (96, 96)))],
    *[("resnet50", layer, ODD) for layer in ("layer2", "layer3", "layer4.1")],
    *[("densenet121", f"features.transition{i}", ODD) for i in (2, 3)],
    *[("mobilenet_v2", f"features.{i}", ODD) for i in (6, 13, 16)],
    *[("mobilenet_v3_large", f"features.{i}", (96, 96)) for i in (6, 10, 15)],
    *[("regnet_y_400mf", f"trunk_output.block{i}", ODD) for i in (2, 3)],
    *[("vgg16", f"features.{i}", (96, 128)) for i in (9, 16, 23)],
    *[("efficientnet_b0", f"features.{i}", ODD) for i in (4, 6)],
    ("convnext_tiny", "features.5", ODD),
    ("inception_v3", "Mixed_6e", (186, 142)),
]


def compare_family(name: str, layer: str, size: tuple[int, int], count: int, kernels: tuple[Kernel, ...]) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    net = narrow_net(name, 10) if name == "vgg16" else models.get_model(name, weights=None, num_classes=10, **options)
    net = settle(net, (96, 96))
    split = split_network(net, layer, size)
    features = head_of(split)
    drawn = torch.randperm(features.shape[2] * features.shape[3])[: count // 2]
    probes = probe_cells(split.grid)
    cells = torch.cat((probes[torch.linspace(0, len(probes) - 1, count // 2).long()], drawn)).unique()
    for kernel in kernels:
        assert_exact(local_of(split, features, kernel), split, features, kernel, cells)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer", "size"), FAMILIES)
def test_local_plan_of_inner_layers_is_exact(name, layer, size):
    compare_family(name, layer, size, 12, KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "size", "kernel"),
    [(*family, KERNELS[number % 2]) for number, family in enumerate(MORE_FAMILIES)],
)
def test_local_plan_of_more_networks_and_sizes_is_exact(name, layer, size, kernel):
    compare_family(name, layer, size, 12, (kernel,))


@pytest.mark.slow
def test_local_plan_with_real_weights_has_the_heat_maps_of_the_definition(shared_data):
    models = pytest.importorskip("torchvision.models")
    file = shared_data / "weights" / "mobilenet_v2.pt"
    net = models.mobilenet_v2(weights=None)
    net.load_state_dict(torch.load(file, weights_only=True))
    split = split_network(net.eval(), "features.13", (97, 129))
    image = next((shared_data / "photos").rglob("*.jpg"))
    cv2 = pytest.importorskip("cv2")
    pixels = cv2.resize(cv2.imread(str(image))[:, :, ::-1], (129, 97))
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    plan = local_of(split, head_of(split), "point")
    with torch.inference_mode():
        features = split.head(images)
        scores, heat = recipro_cam(split, images)
        facts = plan_for(split, features, "point").info
        true = reference_scores(split.tail, features, "point", everywhere(features)).softmax(2)[0, :, scores.argmax()]
        result = plan(features)[1].softmax(2)[0, :, scores.argmax()]
    assert (facts.layer, facts.grid) == ("features.13", (7, 9))
    true, result = ((x - x.min()) / (x.max() - x.min()) for x in (true, result))
    assert float((result - true).abs().max()) < 1e-3
    assert float((heat.flatten() - true).abs().max()) < 1e-3

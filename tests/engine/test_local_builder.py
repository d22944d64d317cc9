"""Local plans against the definition, for random and known networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from engine.methods.kernels import Kernel
from engine.methods.local.builder import TIMED_CELLS, find_local, why_not_cheaper
from engine.methods.local.plan import LocalPlan
from engine.methods.plan import probe_cells, reference_scores, verify_plan
from engine.methods.recipro import choose_plan, plan_for, recipro_cam
from engine.split.network import SplitModel, split_network
from pipeline.errors import EngineError

BUDGET = 1 << 28
KERNELS: tuple[Kernel, ...] = ("point", "gaussian")


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settle(net: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Give batch norms the statistics of random images: as initialised, a deep network says the same to everything."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn(4, 3, *size))
    return net.eval()


def everywhere(features: Tensor) -> Tensor:
    return torch.arange(features.shape[2] * features.shape[3])


def assert_exact(
    plan: LocalPlan, split: SplitModel, features: Tensor, kernel: Kernel, cells: Tensor | None = None
) -> None:
    """Compare class scores before the softmax, measured against what masking changes at all."""
    cells = everywhere(features) if cells is None else cells
    with torch.inference_mode():
        true = reference_scores(split.tail, features, kernel, cells)
        result = plan.cell_logits(features, cells)
        blank = split.tail(torch.zeros_like(features))[:, None]
    signal = float((true - blank).abs().max())
    assert signal > 0
    assert result.shape == true.shape
    assert float((result - true).abs().max()) <= 1e-4 * signal + 2e-6 * float(true.abs().max())


def local_of(split: SplitModel, features: Tensor, kernel: Kernel, budget: int = BUDGET) -> LocalPlan:
    plan = find_local(split.tail, features, kernel, budget)
    assert plan is not None
    return plan


def head_of(split: SplitModel, count: int = 1) -> Tensor:
    with torch.inference_mode():
        features = split.head(torch.randn(count, 3, *split.image_size))
    return features.clone()


# --- networks drawn at random ------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, width: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=groups)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(F.hardswish(self.norm(self.one(x)))) + x)


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.one = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.one(self.norm(x).relu())], 1)


class Halves(nn.Module):
    """A channel split whose halves share memory, one kept as it is, and a shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width // 2, width // 2, 3, padding=1, groups=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        features, changed = x.chunk(2, dim=1)
        out = torch.cat((features, F.relu(self.one(changed))), dim=1)
        count, width, rows, columns = out.size()
        return out.view(count, 2, width // 2, rows, columns).transpose(1, 2).reshape(count, width, rows, columns)


class CellNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * F.gelu(self.linear(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


@st.composite
def layers(draw: st.DrawFn) -> list[nn.Module]:
    width, layers_made = 8, []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["conv", "conv", "depthwise", "max", "mean", "res", "dense", "half", "cell", "pad"])
        )
        k, s = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        if kind == "conv":
            dilation, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2, 4]))
            mode = draw(st.sampled_from(["zeros", "zeros", "replicate", "reflect", "circular"]))
            out = draw(st.sampled_from([4, 8, 12]))
            layers_made += [
                nn.Conv2d(width, out, k, s, draw(st.integers(0, 2)), dilation, groups, padding_mode=mode),
                nn.BatchNorm2d(out) if draw(st.booleans()) else nn.Identity(),
                draw(st.sampled_from([nn.ReLU(inplace=True), nn.Hardswish(), nn.Identity(), nn.Dropout()])),
            ]
            width = out
        elif kind == "depthwise":
            layers_made += [nn.Conv2d(width, width, 5, s, padding=2, groups=width), nn.SiLU(inplace=True)]
        elif kind == "max":
            layers_made.append(nn.MaxPool2d(k, s, draw(st.integers(0, k // 2)), ceil_mode=draw(st.booleans())))
        elif kind == "mean":
            include, ceil = draw(st.booleans()), draw(st.booleans())
            layers_made.append(nn.AvgPool2d(k, s, draw(st.integers(0, k // 2)), ceil, include))
        elif kind == "pad":
            added = draw(st.sampled_from([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d]))
            layers_made.append(nn.Sequential(added((0, 1, 2, 0)), nn.Conv2d(width, width, 2)))
        elif kind == "dense":
            layers_made.append(Dense(width))
            width += 4
        else:
            layers_made.append({"res": Residual(width, k, 2), "half": Halves(width), "cell": CellNorm(width)}[kind])
    return layers_made


def small_net(layers: list[nn.Module], size: tuple[int, int], end: nn.Module | None = None) -> nn.Module:
    """Put layers between a stem and a classifier, without those that this size is too small for."""
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 8, 3, padding=1))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        x = net(x)
        for number, layer in enumerate(layers):
            try:
                y = layer.eval()(x)
            except RuntimeError:
                continue
            if y.shape[2] * y.shape[3] > 0:
                net.add_module(f"layer{number}", layer)
                x = y
    net.add_module("pool", end or nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    with torch.no_grad():
        net.add_module("fc", nn.Linear(net(torch.randn(1, 3, *size)).shape[1], 5))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


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


# --- networks people use -----------------------------------------------------------------------------------------

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
    *[("resnet18", f"layer{i}", size) for i in (1, 3) for size in ((96, 128), (224, 224), (250, 190))],
    *[("resnet50", layer, (250, 190)) for layer in ("layer2", "layer3", "layer4.1")],
    *[("densenet121", f"features.transition{i}", (250, 190)) for i in (2, 3)],
    *[("mobilenet_v2", f"features.{i}", (250, 190)) for i in (6, 13, 16)],
    *[("mobilenet_v3_large", f"features.{i}", (224, 224)) for i in (6, 10, 15)],
    *[("regnet_y_400mf", f"trunk_output.block{i}", (250, 190)) for i in (2, 3)],
    *[("vgg16", f"features.{i}", (96, 128)) for i in (9, 16, 23)],
    *[("efficientnet_b0", f"features.{i}", (250, 190)) for i in (4, 6)],
    ("convnext_tiny", "features.5", (250, 190)),
    ("inception_v3", "Mixed_6e", (250, 190)),
]


def compare_family(name: str, layer: str, size: tuple[int, int], count: int) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    net = settle(models.get_model(name, weights=None, num_classes=10, **options), (96, 96))
    split = split_network(net, layer, size)
    features = head_of(split)
    drawn = torch.randperm(features.shape[2] * features.shape[3])[:count]
    cells = torch.cat((probe_cells(split.grid)[: count // 2], drawn)).unique()
    for kernel in KERNELS:
        assert_exact(local_of(split, features, kernel), split, features, kernel, cells)


@pytest.mark.parametrize(("name", "layer", "size"), FAMILIES)
def test_local_plan_of_inner_layers_is_exact(name, layer, size):
    compare_family(name, layer, size, 24)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer", "size"), MORE_FAMILIES)
def test_local_plan_of_more_networks_and_sizes_is_exact(name, layer, size):
    compare_family(name, layer, size, 24)


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


# --- what a plan promises ----------------------------------------------------------------------------------------


def padded_tail() -> SplitModel:
    """A tail whose blank is nowhere the same: large biases, true zero padding, strides."""
    torch.manual_seed(1)
    tail = [Residual(8, 1, 2), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), Residual(8, 1, 1), nn.MaxPool2d(3, 1, 1)]
    net = small_net(tail, (13, 16))
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=2)
    return split_network(net, "stem", (13, 16))


@pytest.mark.parametrize("kernel", KERNELS)
def test_local_plan_has_zero_padding_at_corners_and_edges(kernel):
    split = padded_tail()
    features = head_of(split)
    corners = torch.tensor([0, 15, 12 * 16, 13 * 16 - 1, 5, 16 * 6, 16 * 6 + 15])
    assert_exact(local_of(split, features, kernel), split, features, kernel, corners)


def test_local_plan_is_independent_of_the_batch():
    split = padded_tail()
    features = head_of(split, 3)
    plan = local_of(split, features, "gaussian")
    with torch.inference_mode():
        scores, together = plan(features)
        alone = torch.cat([plan(image)[1] for image in features.split(1)])
        torch.testing.assert_close(scores, split.tail(features))
    torch.testing.assert_close(together, alone)
    assert_exact(plan, split, features, "gaussian")


def test_local_plan_with_a_smaller_budget_has_equal_outputs():
    split = padded_tail()
    features = head_of(split)
    wide, narrow = local_of(split, features, "point"), local_of(split, features, "point", 120_000)
    assert len(wide._bounds) < len(narrow._bounds)
    assert narrow.info.bytes is not None
    assert narrow.info.bytes <= 120_000
    with torch.inference_mode():
        torch.testing.assert_close(wide(features)[1], narrow(features)[1])


def test_find_local_returns_none_if_one_cell_exceeds_the_budget():
    split = padded_tail()
    features = head_of(split)
    assert find_local(split.tail, features, "point", 1000) is None
    assert choose_plan(split.tail, features, "point", 1000).info.name == "dense"


def test_local_plan_caches_index_tables_between_images():
    split = padded_tail()
    first, second = head_of(split), head_of(split)
    plan = local_of(split, first, "point")
    with torch.inference_mode():
        plan(first)
        assert plan._cached_chunks
        again = plan(second)[1]
    torch.testing.assert_close(again, local_of(split, second, "point")(second)[1])


def test_local_plan_changes_neither_map_nor_tail():
    split = padded_tail()
    features = head_of(split, 2)
    copy, plain = features.clone(), split.tail(features)
    weights = {name: value.clone() for name, value in split.tail.state_dict().items()}
    plan = local_of(split, features, "point")
    plan(features)
    assert torch.equal(copy, features)
    assert all(torch.equal(weights[name], value) for name, value in split.tail.state_dict().items())
    assert not any(getattr(module, "inplace", False) for module in split.tail.modules())
    assert torch.equal(plain, split.tail(features))


def test_local_plan_does_not_overwrite_aliased_values():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.same = nn.Dropout()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            alias = self.same(x)
            return torch.cat((self.relu(x), alias, alias + x), 1)

    torch.manual_seed(0)
    split = split_network(small_net([Twice()], (7, 9)), "stem", (7, 9))
    features = head_of(split)
    assert_exact(local_of(split, features, "point"), split, features, "point")


def test_local_plan_refuses_another_grid():
    split = padded_tail()
    plan = local_of(split, head_of(split), "point")
    with pytest.raises(EngineError, match=r"grid of 13x16 cells, not 13x17; get a plan"):
        plan(torch.zeros(1, 8, 13, 17))


def test_choose_plan_never_runs_all_masked_maps_at_once():
    split = padded_tail()
    features = head_of(split)
    batches = []
    for module in split.tail.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    choose_plan(split.tail, features, "point")
    assert 0 < max(batches) <= TIMED_CELLS < len(everywhere(features))


def test_local_plan_in_half_precision_is_as_accurate_as_the_definition():
    torch.manual_seed(0)
    net = small_net([Residual(8, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), Residual(8, 1, 2)], (24, 24))
    exact = split_network(net, "stem", (24, 24))
    half = split_network(net.bfloat16(), "stem", (24, 24))
    features = head_of(exact)
    assert choose_plan(half.tail, features.bfloat16(), "point").info.name == "local"
    plan = local_of(half, features.bfloat16(), "point")
    good = plan.cell_logits
    plan.cell_logits = lambda maps, cells: good(maps, cells).roll(1, 1)
    assert "cell scores differ" in verify_plan(plan, half.tail, features.bfloat16(), "point")


# --- where the local part ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_local_plan_runs_squeeze_excite_on_full_maps(kernel):
    torch.manual_seed(0)
    net = [Residual(8, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), SqueezeExcite(8), Residual(8, 1, 1)]
    split = split_network(small_net(net, (12, 9)), "stem", (12, 9))
    features = head_of(split, 2)
    plan = local_of(split, features, kernel)
    assert plan.rest is not None
    assert_exact(plan, split, features, kernel)


def test_local_plan_runs_a_flattened_map_on_full_maps():
    torch.manual_seed(0)
    net = [Residual(8, 1, 1), nn.MaxPool2d(2)]
    split = split_network(small_net(net, (12, 10), nn.AdaptiveAvgPool2d((4, 3))), "stem", (12, 10))
    features = head_of(split)
    plan = local_of(split, features, "point")
    assert plan.rest is not None
    assert_exact(plan, split, features, "point")


def test_local_plan_completes_both_branches_of_a_global_layer():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return y * y.mean((2, 3), keepdim=True).sigmoid() + self.two(x)

    torch.manual_seed(0)
    split = split_network(small_net([Gated()], (8, 9)), "stem", (8, 9))
    features = head_of(split)
    plan = local_of(split, features, "point")
    assert [name for name, _ in plan.outputs] == ["layer0_one", "sigmoid", "layer0_two"]
    assert_exact(plan, split, features, "point")


@pytest.mark.parametrize(
    "layer", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.Upsample(scale_factor=2, mode="bicubic")]
)
def test_find_local_returns_none_for_a_global_first_layer(layer):
    torch.manual_seed(0)
    split = split_network(small_net([layer, nn.Conv2d(8, 8, 3)], (9, 9)), "stem", (9, 9))
    assert find_local(split.tail, head_of(split), "point", BUDGET) is None


def test_cell_without_dependent_positions_has_the_zero_response():
    torch.manual_seed(0)
    split = split_network(small_net([nn.Conv2d(8, 8, 1, stride=2), nn.ReLU()], (6, 7)), "stem", (6, 7))
    features = head_of(split)
    plan = local_of(split, features, "point")
    assert_exact(plan, split, features, "point")
    with torch.inference_mode():
        blank = split.tail(torch.zeros_like(features))
        torch.testing.assert_close(plan.cell_logits(features, torch.tensor([1])), blank[:, None])


# --- cost --------------------------------------------------------------------------------------------------------


def test_multiply_adds_count_every_active_site():
    torch.manual_seed(0)
    net = small_net([nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1)], (20, 20))
    split = split_network(net, "stem", (20, 20))
    facts = local_of(split, head_of(split), "point").info
    rows = 3 * 20 - 2  # a 3x3 window's rows inside the map, over all masked rows
    first, second = 20 * 20 * 9 * 8 * 12, rows * rows * 9 * 12 * 16
    assert facts.multiply_adds == first + second + 400 * 16 * 5
    assert facts.dense_multiply_adds == 400 * (400 * 9 * (8 * 12 + 12 * 16) + 16 * 5)
    assert facts.windows == (("layer0", 3, 3), ("layer2", 5, 5), ("pool", 1, 1))
    assert facts.grid == (20, 20)


def test_choose_plan_selects_the_cheaper_plan():
    torch.manual_seed(0)
    wide = split_network(small_net([Residual(8, 1, 1)], (24, 24)), "stem", (24, 24))
    assert choose_plan(wide.tail, head_of(wide), "point").info.name == "local"
    tiny = split_network(small_net([nn.Conv2d(8, 8, 3, padding=2), Residual(8, 1, 1)], (2, 2)), "stem", (2, 2))
    features = head_of(tiny)
    plan = local_of(tiny, features, "gaussian")
    plan.info = type(plan.info)("local", "", one_module=False, multiply_adds=10, dense_multiply_adds=9)
    assert "multiply-adds" in why_not_cheaper(plan, tiny.tail, features, "gaussian")


def test_verify_plan_detects_an_error_in_one_corner():
    split = padded_tail()
    features = head_of(split)
    plan = local_of(split, features, "point")
    assert verify_plan(plan, split.tail, features, "point") == ""
    whole = plan.cell_logits

    def wrong(maps: Tensor, cells: Tensor) -> Tensor:
        answers = whole(maps, cells)
        answers[:, -1] += 0.01 * answers.abs().max()
        return answers

    plan.cell_logits = wrong
    assert "cell scores differ" in verify_plan(plan, split.tail, features, "point")

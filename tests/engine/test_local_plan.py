"""Laws of a local plan: borders, budgets, global layers, cost and its verification."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.methods.local.builder import TIMED_CELLS, find_local, why_not_cheaper
from engine.methods.plan import verify_plan
from engine.methods.recipro import choose_plan
from engine.split.network import SplitModel, split_network
from pipeline.errors import EngineError
from tests.engine.local_networks import (
    BUDGET,
    KERNELS,
    Residual,
    SqueezeExcite,
    assert_exact,
    everywhere,
    head_of,
    local_of,
    small_net,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def padded_tail() -> SplitModel:
    """A tail whose zero response differs at every position: large biases, zero padding, strides."""
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
    with pytest.raises(EngineError, match=r"grid of 13x16 cells, not 13x17; create a plan"):
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

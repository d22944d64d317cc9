"""The local or the dense plan is chosen by its time on the device; both are exact, and the reason is logged."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.gpu import plan_timing
from engine.gpu.plan_timing import select_by_timing
from engine.methods.dense import DensePlan
from engine.methods.recipro import plan_for
from engine.split.network import split_network

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def inner():
    torch.manual_seed(2)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        body += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    split = split_network(net, "1", (24, 24))
    with torch.inference_mode():
        features = split.head(torch.randn(1, 3, 24, 24))
        return split, features, plan_for(split, features, "point", 1 << 28)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quicker", ["local", "dense"])
def test_select_by_timing_takes_the_faster_plan_and_gives_the_reason(inner, monkeypatch, quicker, device):
    split, features, plan = inner
    assert plan.info.name == "local"
    honest = plan_timing._seconds
    monkeypatch.setattr(
        plan_timing, "_seconds", lambda plan, maps: honest(plan, maps) if plan.info.name == quicker else 100.0
    )
    chosen = select_by_timing(plan, split.tail, "point", features.to(device), 1 << 28)
    assert chosen.info.name == quicker
    assert f"measured on {device}" in chosen.info.reason
    assert chosen.info.grid == plan.info.grid
    with torch.inference_mode():
        torch.testing.assert_close(chosen(features)[1], plan(features)[1], atol=1e-4, rtol=1e-4)


def test_select_by_timing_rejects_a_plan_that_fails(inner, monkeypatch, caplog):
    split, features, plan = inner

    def seconds(plan, maps):
        if plan.info.name == "dense":
            raise RuntimeError("out of memory")
        return 1.0

    monkeypatch.setattr(plan_timing, "_seconds", seconds)
    assert select_by_timing(plan, split.tail, "point", features, 1 << 28) is plan
    assert "dense plan does not run" in caplog.text


def test_other_plans_are_left_alone(inner):
    split, features, _ = inner
    pooled = split_network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "0", (9, 9))
    maps = pooled.head(torch.zeros(1, 3, 9, 9))
    plan = plan_for(pooled, maps, "point")
    assert select_by_timing(plan, pooled.tail, "point", maps, 1 << 20) is plan
    assert features.ndim == 4
    assert split.grid == (24, 24)


def tensors_of(thing, seen):
    """Yield every tensor in a structure, except the index tables of cells, which stay on the host."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if isinstance(thing, Tensor):
        yield thing
        return
    parts = thing if isinstance(thing, list | tuple | set) else ()
    if isinstance(thing, dict):
        parts = [part for name, part in thing.items() if name not in {"cost", "scratch"}]
    elif hasattr(thing, "__dict__") and not isinstance(thing, type | type(torch)):
        parts = [vars(thing)]
    for part in parts:
        yield from tensors_of(part, seen)


def test_local_plan_moves_all_buffers_to_the_device(inner):
    _, features, plan = inner
    plan(features)
    assert plan._cached_chunks
    there = copy.deepcopy(plan).to("meta")
    left = [tensor.shape for tensor in tensors_of(vars(there), {}) if not tensor.is_meta]
    assert left == []
    assert not there._cached_chunks
    before, after = ([step.before for step in there.steps], [step.after for step in there.steps])
    was = [(candidate.before is other.after) for candidate in plan.steps for other in plan.steps]
    assert [plan is other for plan in before for other in after] == was
    assert copy.deepcopy(plan).to(torch.float64)._cached_chunks, "a type alone moves nothing"


class NothingAsked(TorchDispatchMode):
    """Refuses operations that synchronise with the host, which a CUDA graph cannot contain."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "unique"}, name
        assert name != "repeat_interleave" or (kwargs or {}).get("output_size") is not None
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", ["point", "gaussian"])
@pytest.mark.parametrize("way", ["local", "dense", "pooled"])
def test_timed_call_can_be_captured_in_a_graph(inner, monkeypatch, way, kernel):
    split, features, _ = inner
    if way == "pooled":
        split = split_network(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "0", (9, 9)
        )
        features = split.head(torch.randn(1, 3, 9, 9))
    plan = plan_for(split, features, kernel, 1 << 28)
    if way == "dense":
        plan = DensePlan(split.tail, kernel, "asked for", 1 << 22)
    assert plan.info.name == way
    with torch.inference_mode():
        expected = plan(features)[1]  # as a capture's warm-up does
        for name in ("tolist", "cpu", "item", "numpy"):
            monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("the host was told something"))
        with NothingAsked():
            result = plan(features)[1]
    monkeypatch.undo()
    assert torch.equal(result, expected)

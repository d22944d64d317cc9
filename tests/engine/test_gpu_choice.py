"""Local or dense: the one that answers sooner on the device, both right, and the reason told."""

import pytest
import torch
from torch import nn

from engine.gpu import choice
from engine.gpu.choice import cheaper_here
from engine.methods.recipro import plan_for
from engine.split import split_network

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
def test_the_quicker_one_is_taken_and_says_why(inner, monkeypatch, quicker, device):
    split, features, plan = inner
    assert plan.facts.name == "local"
    honest = choice._seconds
    monkeypatch.setattr(choice, "_seconds", lambda one, maps: honest(one, maps) if one.facts.name == quicker else 100.0)
    chosen = cheaper_here(plan, split.tail, "point", features.to(device), 1 << 28)
    assert chosen.facts.name == quicker
    assert f"measured on {device}" in chosen.facts.why
    assert chosen.facts.grid == plan.facts.grid
    with torch.inference_mode():
        torch.testing.assert_close(chosen(features)[1], plan(features)[1], atol=1e-4, rtol=1e-4)


def test_one_that_does_not_run_there_loses(inner, monkeypatch, caplog):
    split, features, plan = inner

    def seconds(one, maps):
        if one.facts.name == "dense":
            raise RuntimeError("out of memory")
        return 1.0

    monkeypatch.setattr(choice, "_seconds", seconds)
    assert cheaper_here(plan, split.tail, "point", features, 1 << 28) is plan
    assert "dense plan does not run" in caplog.text


def test_other_plans_are_left_alone(inner):
    split, features, _ = inner
    pooled = split_network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "0", (9, 9))
    maps = pooled.head(torch.zeros(1, 3, 9, 9))
    plan = plan_for(pooled, maps, "point")
    assert cheaper_here(plan, pooled.tail, "point", maps, 1 << 20) is plan
    assert features.ndim == 4
    assert split.grid == (24, 24)

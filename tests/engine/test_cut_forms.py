"""Networks of special forms (channels last, not traceable, failing tails): explained exactly or refused."""

import pytest
import torch
from torch import nn

from engine.methods.recipro import Target, recipro_cam
from engine.runtime import runner as building
from engine.runtime.runner import CompileConfig, Runner
from engine.split.layers import trace_layer_outputs
from engine.split.network import split_network
from pipeline.errors import EngineError, LayerError
from tests.engine.reference import defined, lively

SIZE = (32, 40)


class Stem(nn.Module):
    """Branches on values, so that it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 5, stride=4)

    def forward(self, x):
        return self.conv(x if bool(x.sum() < 1e9) else x.clamp(0, 1))


class Body(nn.Module):
    def __init__(self, stem):
        super().__init__()
        self.stem = stem
        self.grid = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(16, 9)
        self.classes = nn.Linear(9, 6)

    def forward(self, x):
        x = self.pool(self.grid(self.stem(x))).flatten(1)
        return self.classes(torch.relu(self.hidden(x)))


class ChannelsLast(nn.Module):
    """As Swin: maps are (N, h, w, C) from the embedding to the mean."""

    def __init__(self, mixing=False):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.mix = nn.Conv2d(16, 16, 3, padding=1) if mixing else None
        self.norm = nn.LayerNorm(16)
        self.classes = nn.Linear(16, 6)

    def forward(self, x):
        x = self.block(self.embed(x).permute(0, 2, 3, 1))
        if self.mix is not None:
            x = self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.classes(self.norm(x).mean((1, 2)))


def small(net):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for part in net.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        return lively(net, SIZE)


def images(count=2):
    return torch.randn((count, 3, *SIZE), generator=torch.Generator().manual_seed(6))


def test_split_network_accepts_an_untraceable_part_before_the_layer():
    net = small(Body(Stem()))
    split = split_network(net, "grid", SIZE)
    assert split.traced
    scores, heat = recipro_cam(split, images())
    true_scores, true_heat = defined(net, "grid", images(), None, "point")
    assert float(true_heat.amax()) == 1.0
    torch.testing.assert_close(scores, true_scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(heat, true_heat, atol=1e-3, rtol=0)
    assert [plan.info.name for plan in split.plans.values()] == ["pooled"]


@pytest.mark.parametrize("kernel", ["point", "gaussian"])
@pytest.mark.parametrize(
    ("layer", "mixing", "plan"), [("block", False, "pooled"), ("norm", True, "pooled"), ("block", True, None)]
)
def test_channels_last_map_is_explained_as_defined(layer, mixing, plan, kernel):
    net = small(ChannelsLast(mixing))
    split = split_network(net, layer, SIZE)
    assert (split.grid, split.channels) == ((8, 10), 16)
    scores, heat = recipro_cam(split, images(), classes=[1, 4], kernel=kernel)
    text = by_definition(net, layer, kernel, [1, 4])
    low, high = text.amin((1, 2), keepdim=True), text.amax((1, 2), keepdim=True)
    assert float((high - low).min()) > 1e-3, "the map is flat and proves nothing"
    torch.testing.assert_close(heat, (text - low) / (high - low), atol=2e-3, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(scores, net(images()).softmax(1), atol=1e-5, rtol=0)
    assert plan is None or [plan.info.name for plan in split.plans.values()] == [plan]


def by_definition(net, layer, kernel, classes):
    """Mask the layer's (N, h, w, C) output cell by cell, with the whole network run each time."""
    module, expected = net.get_submodule(layer), torch.zeros(2, 8, 10)
    spread = (
        {(0, 0): 1.0}
        if kernel == "point"
        else {(dy, dx): (2 - abs(dy)) * (2 - abs(dx)) / 16 for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    )
    for row in range(8):
        for column in range(10):

            def keep(_module, _inputs, output, row=row, column=column):
                masked = torch.zeros_like(output)
                for (dy, dx), fraction in spread.items():
                    if 0 <= row + dy < 8 and 0 <= column + dx < 10:
                        masked[:, row + dy, column + dx] = output[:, row, column] * fraction
                return masked

            handle = module.register_forward_hook(keep)
            with torch.inference_mode():
                scores = net(images()).softmax(1)
            handle.remove()
            expected[:, row, column] = scores[torch.arange(2), torch.tensor(classes)]
    return expected


def test_channels_first_map_is_not_read_as_channels_last():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.norm = nn.GroupNorm(1, 6)
            self.classes = nn.Linear(6, 4)

        def forward(self, x):
            return self.classes(self.norm(self.conv(x)).mean((2, 3)))

    outputs, _ = trace_layer_outputs(First().eval(), torch.randn(1, 3, 20, 90))
    assert outputs["norm"].grid == (18, 88)
    assert outputs["norm"].channels == 6


def test_split_network_refuses_a_single_score_with_a_remedy():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()
    with pytest.raises(EngineError, match=r"one score.*torch\.cat\(\(torch\.zeros_like\(score\), score\), 1\)"):
        split_network(net, "0", (16, 16))


class Fussy(nn.Module):
    """Takes batches of two only."""

    def __init__(self, *, always):
        super().__init__()
        self.grid = nn.Conv2d(3, 8, 5, stride=4)
        self.classes = nn.Linear(8, 5)
        self.runs, self.always = 0, always

    def forward(self, x):
        self.runs += 1
        if len(x) != 2 or (self.always and self.runs > 1):
            raise KeyError("not again")
        return self.classes(self.grid(x).mean((2, 3)))


def built(net):
    build = CompileConfig(Target(), "point", "eager", "fp32", torch.device("cpu"), 1 << 28)
    return Runner(split_network(net, "grid", SIZE), build)


@pytest.mark.parametrize("always", [True, False])
def test_runner_refuses_a_tail_that_fails_on_masked_maps(always, capsys):
    with pytest.raises((LayerError, EngineError), match="grid"):
        built(Fussy(always=always).eval())
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_runner_verifies_some_cells_of_a_slow_plan(monkeypatch, caplog, backend):
    monkeypatch.setattr("engine.methods.recipro.find_local", lambda *_: None)
    net = small(ChannelsLast(mixing=True))
    split = split_network(net, "block", SIZE)
    usual = Runner(split, CompileConfig(Target(), "point", "eager", "fp32", torch.device("cpu"), 1 << 28))
    assert "s per image" not in caplog.text
    monkeypatch.setattr(building, "_LONG_SECONDS", 0.0)
    quick = Runner(split, CompileConfig(Target(), "point", backend, "fp32", torch.device("cpu"), 1 << 28))
    assert "layer block: 8 x 10 cells, with the dense plan" in caplog.text
    for first, other in zip(usual(images()), quick(images()), strict=True):
        torch.testing.assert_close(first, other, atol=2e-3, rtol=0)
    assert quick.seconds_per_image(1) > 0

"""Kernel taps against the layers: a NaN in one input row shows which outputs read it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from engine.methods.local.footprint import Chunk, first_footprint
from engine.methods.local.receptive_field import KernelTaps, SpatialOp, read_spatial


def read(layer: nn.Module, before: Tensor) -> tuple[SpatialOp | None, Tensor]:
    net = nn.Sequential(layer)
    graph = fx.symbolic_trace(net)
    node = next(n for n in graph.graph.nodes if n.op == "call_module")
    after = layer(before)
    return read_spatial(graph, node, ((before,), {}), before, after), after


def seen_rows(layer: nn.Module, before: Tensor, axis: int) -> list[set[int]]:
    """Return the input rows (axis 2) or columns (axis 3) that each output row or column depends on."""
    looked: list[set[int]] = []
    for index in range(before.shape[axis]):
        maps = torch.zeros_like(before)
        maps.select(axis, index).fill_(torch.nan)
        felt = layer(maps).isnan().any(dim=1).any(dim=0).any(dim=3 - axis)
        looked = looked or [set() for _ in felt]
        for out in felt.nonzero().flatten().tolist():
            looked[out].add(index)
    return looked


WINDOWS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["conv", "max", "mean", "adaptive"]),
        "kernel": st.integers(1, 5),
        "stride": st.integers(1, 3),
        "pad": st.integers(0, 2),
        "dilation": st.integers(1, 3),
        "mode": st.sampled_from(["zeros", "replicate", "reflect", "circular"]),
        "ceil": st.booleans(),
    }
)


@pytest.mark.slow
@settings(deadline=None, max_examples=80, derandomize=True)
@given(window=WINDOWS, rows=st.integers(3, 9), columns=st.integers(3, 9))
def test_read_spatial_returns_the_taps_of_a_layer(window, rows, columns):
    k, s, p, d = (window[name] for name in ("kernel", "stride", "pad", "dilation"))
    layer: nn.Module = nn.AdaptiveAvgPool2d((min(k, rows), s))
    if window["kind"] == "conv":
        layer = nn.Conv2d(1, 1, k, s, p, d, padding_mode=window["mode"])
        nn.init.uniform_(layer.weight, 0.5, 1)
    elif window["kind"] == "max":
        layer = nn.MaxPool2d(k, s, min(p, k // 2), d, ceil_mode=window["ceil"])
    elif window["kind"] == "mean":
        layer = nn.AvgPool2d(k, s, min(p, k // 2), window["ceil"])
    before = torch.rand(1, 1, rows, columns)
    try:
        with torch.no_grad():
            spatial, after = read(layer, before)
    except RuntimeError:
        assume(False)  # the window is larger than the map
    assert spatial is not None
    assert (spatial.taps.rows.shape[0], spatial.taps.columns.shape[0]) == tuple(after.shape[2:])
    with torch.no_grad():
        for axis, table in ((2, spatial.taps.rows), (3, spatial.taps.columns)):
            values = [{path for path in line if path >= 0} for line in table.tolist()]
            assert values == seen_rows(layer, before, axis)


def test_read_spatial_returns_none_for_other_layers():
    before = torch.rand(1, 4, 5, 5)
    for layer in (nn.BatchNorm2d(4).eval(), nn.FractionalMaxPool2d(2, output_size=3), nn.LPPool2d(2, 2)):
        assert read(layer, before)[0] is None


@pytest.mark.parametrize("dims", [(1,), (2,), (1, 2, 3)])
def test_read_spatial_returns_none_for_other_means(dims):
    before = torch.rand(1, 4, 5, 5)
    graph = fx.symbolic_trace(lambda x: x.mean(dims))
    node = next(n for n in graph.graph.nodes if n.op == "call_method")
    assert read_spatial(graph, node, ((before, dims), {}), before, before.mean(dims)) is None


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), reach=st.integers(0, 1), k=st.integers(1, 3))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_sites_are_the_positions_that_depend_on_a_cell(rows, columns, reach, k):
    """Compare with a convolution of ones over the mask."""
    grid = (rows, columns)
    span = torch.arange(-k, k + 1)
    tables = [torch.where((t := torch.arange(n)[:, None] + span).clamp(0, n - 1) == t, t, -1) for n in grid]
    before = first_footprint(grid, reach)
    after = before.through(KernelTaps(*tables))
    chunk = Chunk(torch.arange(rows * columns), columns)
    masks = torch.eye(rows * columns).view(-1, 1, rows, columns)
    for footprint, wide in ((before, reach), (after, reach + k)):
        felt = F.conv2d(masks, torch.ones(1, 1, 2 * wide + 1, 2 * wide + 1), padding=wide).flatten(1) > 0
        owner, position = felt.nonzero().unbind(1)
        sites = chunk.sites(footprint)
        assert torch.equal(sites.owner, owner)
        assert torch.equal(sites.position, position)
        assert torch.equal(footprint.counts.flatten(), felt.sum(1))

"""Describes the registered models (layer, grid, parameters, plan) by building them without weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from engine.methods.flat import recognise_flat
from engine.methods.pooled import find_pooled
from engine.methods.vit import read_projections
from engine.models.loader import build_untrained, find_entry
from engine.models.registry import MODELS, ModelEntry
from engine.split.layers import explainable, trace_layer_outputs
from engine.split.network import SplitModel, split_network
from engine.split.vit import ViTTail


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The description of one model for ``run.py models``."""

    name: str
    input_size: tuple[int, int]
    """Height and width in pixels."""
    layer: str
    """Qualified name of the default layer."""
    grid: tuple[int, int]
    """Rows and columns of the layer's output."""
    channels: int
    parameters: int
    """Number of weights."""
    plan: str
    """Plan of the default layer: ``pooled``, ``flat``, ``tokens``, or ``other`` if it is chosen by cost."""


def describe_models(names: list[str] | None = None) -> Iterator[ModelInfo]:
    """Yield one description per registered model; downloads nothing.

    Args:
        names: the models to describe; None: all.
    """
    for name, entry in MODELS.items():
        if names is None or name in names:
            yield _row(entry)


def layers_of(model: str) -> list[tuple[str, tuple[int, int], int]]:
    """Return name, grid and channels of a network's explainable layers, in order of execution; downloads nothing.

    Raises:
        ModelError: the name is unknown.
    """
    entry = find_entry(model)
    net = _outline(entry).eval()
    device = next(net.parameters()).device
    outputs, _ = trace_layer_outputs(net, torch.zeros(1, 3, *entry.input_size, device=device))
    return [(name, outputs[name].grid, outputs[name].channels) for name in explainable(outputs)]


def _row(entry: ModelEntry) -> ModelInfo:
    net = _outline(entry)
    split = split_network(net, entry.layer, entry.input_size)
    parameters = sum(p.numel() for p in net.parameters())
    plan = _plan(split)
    return ModelInfo(entry.name, entry.input_size, split.layer, split.grid, split.channels, parameters, plan)


def _plan(split: SplitModel) -> str:
    if isinstance(split.tail, ViTTail):
        return "tokens" if read_projections(split.tail.attention) else "other"
    # The plan depends only on the tail, so only the tail gets weights; their values do not matter.
    tail = copy.deepcopy(split.tail).to_empty(device="cpu")
    for weight in [*tail.parameters(), *tail.buffers()]:
        weight.detach().fill_(0.01)
    features = torch.zeros(1, split.channels, *split.grid)
    return "pooled" if find_pooled(tail, features, "point") else "flat" if recognise_flat(tail, features) else "other"


def _outline(entry: ModelEntry) -> nn.Module:
    """Return the network on the meta device (no memory for weights) if its builder supports that."""
    try:
        with torch.device("meta"):
            return build_untrained(entry)
    except NotImplementedError:
        with torch.random.fork_rng(devices=[]):
            return build_untrained(entry)

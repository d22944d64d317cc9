"""A pretrained network with a new last layer, for any class count and every family of the table.

The last layer is whatever changes its shape when the class count changes: nothing here knows a family's names.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from engine.models import ModelEntry
from engine.networks import RANDOM, build_untrained, entry_of, load_network
from engine.shortened import shorten
from engine.weights import StateDict, load_into, read_state, without_prefix
from pipeline.errors import ModelError


def shortened(
    model: str, weights: Path | str | None, count: int, until: str, image_size: tuple[int, int] | None
) -> tuple[nn.Module, ModelEntry, str]:
    """Return the same as ``adapted`` of a network that ends with a layer.

    Raises:
        ModelError, LayerError: the same, and a layer the network cannot end with.
    """
    entry = entry_of(model)
    net = load_network(model, weights=weights).net
    return shorten(net, until, image_size or entry.input_size, count), entry, "classifier"


def adapted(model: str, weights: Path | str | None, count: int) -> tuple[nn.Module, ModelEntry, str]:
    """Return the network for ``count`` classes, its entry and its last layer's name.

    Everything but the last layer has the given weights; that one begins at random, from torch's random state.

    Args:
        model: a name of the table, or any torchvision or timm classifier's.
        weights: a state dict's file, ``"random"``, or None for the builder's pretrained ones.
        count: how many classes.

    Raises:
        ModelError: an unknown name, weights that do not fit or cannot be had.
    """
    entry = entry_of(model)
    net = build_untrained(entry, count)
    keys = class_keys(entry, count)
    if weights != RANDOM:
        state = _state(model, weights)
        fresh = net.state_dict()
        state = without_prefix(state, set(fresh)) | {key: fresh[key] for key in keys}
        place = Path(weights) if weights else Path(entry.name)
        net = load_into(lambda _: build_untrained(entry, count), state, entry.name, place)
    layers = {key.rpartition(".")[0] for key in keys}
    if len(layers) != 1:
        raise ModelError(f"model {entry.name!r} has no single last layer that could be replaced ({', '.join(layers)})")
    return net.eval(), entry, layers.pop()


def _state(model: str, weights: Path | str | None) -> StateDict:
    if weights is None:
        return dict(load_network(model).net.state_dict())
    return read_state(Path(weights))


def class_keys(entry: ModelEntry, count: int) -> list[str]:
    """Return the names of the weights whose shape the class count decides."""
    one, other = (_shapes(entry, number) for number in (count, count + 1))
    keys = [key for key, shape in one.items() if other[key] != shape]
    if not keys:
        raise ModelError(f"model {entry.name!r}: its class count cannot be chosen; take another --model")
    return keys


def _shapes(entry: ModelEntry, count: int) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            net = build_untrained(entry, count)
    except NotImplementedError:
        with torch.random.fork_rng(devices=[]):
            net = build_untrained(entry, count)
    return {key: value.shape for key, value in net.state_dict().items()}

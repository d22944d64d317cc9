"""A pretrained network with a new last layer, for any class count and every family of the table.

The last layer is whatever changes its shape when the class count changes: nothing here knows a family's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from engine.models.checkpoint import Checkpoint
from engine.models.loader import RANDOM, build_untrained, find_entry, load_from_checkpoint, load_network
from engine.models.registry import ModelEntry
from engine.models.truncated import truncate
from engine.models.weights import StateDict, load_weights, put_into, read_state, without_prefix
from pipeline.errors import ConfigError, ModelError

LAST = "classifier"
"""The last layer of a network that was ended earlier."""

ABOVE_ZERO = 10.0
"""How far above zero a last layer begins whose answers are rectified: softmax asks for differences alone."""

_FAR_BELOW = -1e6


def truncate_and_replace_head(
    model: str, weights: Path | str | None, count: int, until: str, image_size: tuple[int, int] | None
) -> tuple[nn.Module, ModelEntry, str]:
    """Return the same as ``replace_head`` of a network that ends with a layer.

    Raises:
        ModelError, LayerError: the same, and a layer the network cannot end with.
    """
    entry = find_entry(model)
    net = load_network(model, weights=weights).module
    return truncate(net, until, image_size or entry.input_size, count), entry, LAST


def replace_head(model: str, weights: Path | str | None, count: int) -> tuple[nn.Module, ModelEntry, str]:
    """Return the network for ``count`` classes, its entry and its last layer's name.

    Everything but the last layer has the given weights; that one begins at random, from torch's random state.

    Args:
        model: a name of the table, or any torchvision or timm classifier's.
        weights: a state dict's file, ``"random"``, or None for the builder's pretrained ones.
        count: how many classes.

    Raises:
        ModelError: an unknown name, weights that do not fit or cannot be had.
    """
    entry = find_entry(model)
    keys = class_keys(entry, count)
    net = _started_above_zero(build_untrained(entry, count), keys, entry.input_size)
    if weights != RANDOM:
        state = _state(model, weights)
        fresh = net.state_dict()
        state = without_prefix(state, set(fresh)) | {key: fresh[key] for key in keys}
        place = Path(weights) if weights else Path(entry.name)
        net = load_weights(lambda _: build_untrained(entry, count), state, entry.name, place)
    layers = {key.rpartition(".")[0] for key in keys}
    if len(layers) != 1:
        raise ModelError(f"model {entry.name!r} has no single last layer that could be replaced ({', '.join(layers)})")
    return net.eval(), entry, layers.pop()


def resume_from_checkpoint(
    file: Checkpoint, path: Path, labels: Sequence[str], until: str | None, image_size: tuple[int, int]
) -> tuple[nn.Module, str, tuple[str, ...]]:
    """Return the network of a model file for these classes, its last layer's name, and which classes it knows.

    Known classes keep their part of the last layer; that of the others begins at random, from torch's random state.

    Args:
        file: what was learned before.
        path: its place, for messages.
        labels: the classes to come, in their order.
        until: the layer it is to end with; None = where it ends.
        image_size: of the pictures to come.

    Raises:
        ModelError, LayerError: weights that do not fit, or a layer it cannot end with.
        ConfigError: it ends with another layer already.
    """
    entry = find_entry(file.model)
    if file.truncate_at and until not in {None, file.truncate_at}:
        raise ConfigError(
            f"--truncate-at {until!r}: {path} ends with {file.truncate_at!r}; leave "
            f"--truncate-at out, or begin with --model {file.model}"
        )
    old = load_from_checkpoint(file, path).module
    if until and not file.truncate_at:
        return truncate(old, until, image_size, len(labels)), LAST, ()

    build: Callable[[int], nn.Module] = lambda count: build_untrained(entry, count)  # noqa: E731 - one of two
    keys = [f"{LAST}.weight", f"{LAST}.bias"]
    if file.truncate_at:
        whole, ends, size = build_untrained(entry), file.truncate_at, file.input_size
        build = lambda count: truncate(whole, ends, size, count)  # noqa: E731 - the other
    else:
        keys = class_keys(entry, len(labels))
    net = _started_above_zero(build(len(labels)), keys, image_size)
    state, fresh = dict(old.state_dict()), net.state_dict()
    for key in keys:
        rows = [state[key][file.labels.index(one)] if one in file.labels else fresh[key][k]
                for k, one in enumerate(labels)]  # fmt: skip
        state[key] = torch.stack(rows)
    put_into(net, state)
    return net.eval(), keys[0].rpartition(".")[0], tuple(one for one in labels if one in file.labels)


def _started_above_zero(net: nn.Module, keys: Sequence[str], image_size: tuple[int, int]) -> nn.Module:
    """Lift the last layer's biases where a rectifier follows it (SqueezeNet's): return the network.

    A class that begins below zero, or is taken there by one large step, gets no gradient any more and is never named.
    """
    bias = dict(net.named_parameters()).get(next((key for key in keys if key.endswith("bias")), ""))
    if bias is not None:
        with torch.inference_mode():
            begun = bias.clone()
            bias.fill_(_FAR_BELOW)
            rectified = bool(net.eval()(torch.zeros(1, 3, *image_size)).min() >= 0.0)
            bias.copy_(begun + ABOVE_ZERO if rectified else begun)
    return net


def _state(model: str, weights: Path | str | None) -> StateDict:
    if weights is None:
        return dict(load_network(model).module.state_dict())
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

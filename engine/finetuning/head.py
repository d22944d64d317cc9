"""Replaces the last layer of a pretrained network, for any class count and any model family.

The last layer is found by its shape, which depends on the class count, not by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from engine.models.checkpoint import Checkpoint
from engine.models.loader import RANDOM, build_untrained, find_entry, load_from_checkpoint, load_network
from engine.models.registry import ModelEntry
from engine.models.truncated import truncate
from engine.models.weights import StateDict, load_weights, put_into, read_state, without_prefix
from pipeline.errors import ConfigError, ModelError

TRUNCATED_HEAD = "classifier"
"""Name of the last layer of a truncated network."""

RECTIFIED_BIAS = 10.0
"""Initial bias of a last layer with a ReLU after it; softmax depends only on differences of logits."""

_VERY_NEGATIVE = -1e6


def truncate_and_replace_head(
    model: str, weights: Path | str | None, count: int, until: str, image_size: tuple[int, int] | None
) -> tuple[nn.Module, ModelEntry, str]:
    """Like ``replace_head``, for a network that is truncated after the layer ``until``.

    Raises:
        ModelError, LayerError: as in ``replace_head``, or the network cannot be truncated there.
    """
    entry = find_entry(model)
    net = build_untrained(entry) if weights == RANDOM else load_network(model, weights=weights).module
    return truncate(net, until, image_size or entry.input_size, count), entry, TRUNCATED_HEAD


def replace_head(model: str, weights: Path | str | None, count: int) -> tuple[nn.Module, ModelEntry, str]:
    """Return the network for ``count`` classes, its registry entry and the name of its last layer.

    All layers have the given weights, except for the last layer, whose weights are random (torch's random state).

    Args:
        model: a name in the registry, or the name of any torchvision or timm classifier.
        weights: file of a state dict, ``"random"``, or None: the default pretrained weights.
        count: number of classes.

    Raises:
        ModelError: the name is unknown, or the weights do not fit or are not available.
    """
    entry = find_entry(model)
    keys = class_keys(entry, count)
    net = _lift_rectified_bias(build_untrained(entry, count), keys, entry.input_size)
    if weights != RANDOM:
        state = _state(model, weights)
        initial = net.state_dict()
        state = without_prefix(state, set(initial)) | {key: initial[key] for key in keys}
        path = Path(weights) if weights else Path(entry.name)
        net = load_weights(lambda _: build_untrained(entry, count), state, entry.name, path)
    layers = {key.rpartition(".")[0] for key in keys}
    if len(layers) != 1:
        raise ModelError(
            f"model {entry.name!r} has no single last layer to replace ({', '.join(layers)}); choose another --model"
        )
    return net.eval(), entry, layers.pop()


def resume_from_checkpoint(
    file: Checkpoint, path: Path, labels: Sequence[str], until: str | None, image_size: tuple[int, int]
) -> tuple[nn.Module, str, tuple[str, ...]]:
    """Build the network of a checkpoint for new classes.

    Known classes keep their rows in the last layer; the other rows are random (torch's random state). Returns the
    network, the name of its last layer, and the known classes.

    Args:
        file: the checkpoint.
        path: its path, for messages.
        labels: the new classes, in order.
        until: the layer after which to truncate; None: as in the checkpoint.
        image_size: height and width of the input, in pixels.

    Raises:
        ModelError, LayerError: the weights do not fit, or the network cannot be truncated there.
        ConfigError: the checkpoint is already truncated after another layer.
    """
    entry = find_entry(file.model)
    if file.truncate_at and until not in {None, file.truncate_at}:
        raise ConfigError(
            f"--truncate-at {until!r}: {path} ends with {file.truncate_at!r}; omit --truncate-at, or start with "
            f"--model {file.model}"
        )
    parent = load_from_checkpoint(file, path).module
    if until and not file.truncate_at:
        return truncate(parent, until, image_size, len(labels)), TRUNCATED_HEAD, ()
    if file.truncate_at:
        net: nn.Module = truncate(build_untrained(entry), file.truncate_at, file.input_size, len(labels))
        keys = [f"{TRUNCATED_HEAD}.weight", f"{TRUNCATED_HEAD}.bias"]
    else:
        net = build_untrained(entry, len(labels))
        keys = class_keys(entry, len(labels))
    net = _lift_rectified_bias(net, keys, image_size)
    state, initial = dict(parent.state_dict()), net.state_dict()
    for key in keys:
        state[key] = torch.stack(
            [
                state[key][file.labels.index(label)] if label in file.labels else initial[key][row]
                for row, label in enumerate(labels)
            ]
        )
    put_into(net, state)
    return net.eval(), keys[0].rpartition(".")[0], tuple(label for label in labels if label in file.labels)


def _lift_rectified_bias(net: nn.Module, keys: Sequence[str], image_size: tuple[int, int]) -> nn.Module:
    """Raise the biases of the last layer if a ReLU follows it (SqueezeNet); return the network.

    A class whose logit falls below zero gets no gradient and is never predicted.
    """
    bias = dict(net.named_parameters()).get(next((key for key in keys if key.endswith("bias")), ""))
    if bias is not None:
        with torch.inference_mode():
            initial = bias.clone()
            bias.fill_(_VERY_NEGATIVE)
            rectified = bool(net.eval()(torch.zeros(1, 3, *image_size)).min() >= 0.0)
            bias.copy_(initial + RECTIFIED_BIAS if rectified else initial)
    return net


def _state(model: str, weights: Path | str | None) -> StateDict:
    if weights is None:
        return dict(load_network(model).module.state_dict())
    return read_state(Path(weights))


def class_keys(entry: ModelEntry, count: int) -> list[str]:
    """Return the names of the weights whose shape depends on the class count."""
    shapes, other_shapes = (_shapes(entry, class_count) for class_count in (count, count + 1))
    keys = [key for key, shape in shapes.items() if other_shapes[key] != shape]
    if not keys:
        raise ModelError(f"model {entry.name!r}: the class count cannot be changed; choose another --model")
    return keys


def _shapes(entry: ModelEntry, count: int) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            net = build_untrained(entry, count)
    except NotImplementedError:
        with torch.random.fork_rng(devices=[]):
            net = build_untrained(entry, count)
    return {key: value.shape for key, value in net.state_dict().items()}

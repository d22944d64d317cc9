"""Freezes the first layers of a network in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import nn

from engine.split.layers import trace_layer_outputs
from pipeline.errors import LayerError, did_you_mean

_MAX_NAMED = 8
"""Maximum number of layers that a message names."""


@dataclass(frozen=True, slots=True, eq=False)
class TruncatedParent:
    """The network from which a truncated network was created."""

    net: nn.Module
    """The whole network, with its documented layer names."""
    truncate_at: str
    """The layer of ``net`` that is the last layer of the truncated network."""
    prefix: str = "features."
    """Prefix of the layer names in the truncated network."""


def freeze_until(net: nn.Module, layer: str, image_size: tuple[int, int], parent: TruncatedParent | None = None) -> int:
    """Freeze a layer and all layers before it; return the number of parameters that remain trainable.

    Args:
        net: the network.
        layer: name of the layer; for a truncated network, its name in the whole network.
        image_size: height and width of the input in pixels.
        parent: the whole network if ``net`` is truncated.

    Raises:
        LayerError: there is no such layer, or no parameter would remain trainable.
    """
    whole = net if parent is None else parent.net
    outputs, _ = trace_layer_outputs(whole, torch.zeros(1, 3, *image_size))
    orders = {name: output.order for name, output in outputs.items()}
    own_orders = {
        name: order for name, order in orders.items() if parent is None or order <= orders[parent.truncate_at]
    }
    if layer not in own_orders:
        _raise_unknown_layer(layer, orders, own_orders, parent)
    prefix = "" if parent is None else parent.prefix
    parameters = dict(net.named_parameters())
    for name, order in own_orders.items():
        if order <= own_orders[layer]:
            for parameter, _ in whole.get_submodule(name).named_parameters(prefix=prefix + name):
                parameters[parameter].requires_grad = False
    trainable = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    if not trainable:
        raise LayerError(f"--freeze-until {layer!r}: freezes all layers; choose an earlier layer")
    return trainable


def _raise_unknown_layer(
    layer: str, orders: Mapping[str, int], own_orders: Mapping[str, int], parent: TruncatedParent | None
) -> NoReturn:
    depth = min(name.count(".") for name in own_orders)
    top_level = [name for name in sorted(own_orders, key=own_orders.__getitem__) if name.count(".") == depth]
    listed = ", ".join(top_level[-_MAX_NAMED:])
    if parent is not None and layer in orders:
        raise LayerError(
            f"--freeze-until {layer!r}: the network is truncated at {parent.truncate_at!r}, before this layer; choose "
            f"one of {listed}"
        )
    raise LayerError(
        f"--freeze-until {layer!r}: the network has no such layer.{did_you_mean(layer, own_orders)} Choose one of "
        f"{listed}"
    )

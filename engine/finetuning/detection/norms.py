"""Restores batch norms that a file has folded into its convolutions.

If the norms are folded, nothing is normalised in training, and a pretrained network diverges within a few steps. A
restored norm has the statistics of its input, and an affine part that inverts the normalisation: the network computes
the same function, and the norm can be trained.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def folded_norms(net: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Return the batch norms with trivial statistics, which are folded into their convolutions.

    Args:
        net: the network.
        names: the names of the batch norms with loaded weights.
    """
    return frozenset(name for name in names if not bool(net.get_submodule(name).get_buffer("running_mean").any()))


def restore_norms(net: nn.Module, names: Iterable[str], batches: Iterable[Tensor]) -> None:
    """Set the statistics of batch norms to those of their inputs, in place; outputs stay the same.

    Args:
        net: the network, in inference mode.
        names: names of the batch norms.
        batches: normalised images (N, 3, H, W), at least one batch.
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def add(name: str, inputs: Tensor) -> None:
        values = inputs.double()
        count, total, squares = sums.get(name, (0, torch.tensor(0.0), torch.tensor(0.0)))
        sums[name] = (
            count + values.numel() // values.shape[1],
            total + values.sum((0, 2, 3)),
            squares + values.square().sum((0, 2, 3)),
        )

    handles = [
        net.get_submodule(name).register_forward_pre_hook(lambda _module, inputs, name=name: add(name, inputs[0]))
        for name in names
    ]
    try:
        with torch.no_grad():
            for images in batches:
                net(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, (count, total, squares) in sums.items():
        norm = net.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101 - ``names`` are batch norms
        mean = total / count
        _restore(norm, mean, (squares / count - mean.square()).clamp(min=0.0))


def _restore(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Set the statistics of a norm, and an affine part that inverts them."""
    assert norm.running_mean is not None  # noqa: S101 - the norms of these networks track statistics
    assert norm.running_var is not None  # noqa: S101
    with torch.no_grad():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = norm.bias.double() + scale * (mean - norm.running_mean.double())
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.bias.copy_(bias)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

"""Weights of another form than the network's: older names, other heads, one channel, one score.

Each function takes a state dict and returns one that gives the same answers in the network's own form. Pure, but for
what is logged. Knows nothing about files.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

LUMINANCE: Final = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as Pillow makes grey of RGB."""

_OFFICIAL: Final = (
    (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$"), r"\1\2"),
    (re.compile(r"^(.*\.mlp)\.linear_1\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(.*\.mlp)\.linear_2\.(weight|bias)$"), r"\1.3.\2"),
)
"""Names in torchvision's own files that it changes when it loads them: DenseNet, vision transformers."""


def official_names(state: StateDict, net: nn.Module) -> StateDict:
    """Return the state dict with the names of its builder's own files changed to those of the network."""
    expected = set(net.state_dict())
    if expected <= set(state):
        return state
    renamed = dict(state)
    for pattern, to in _OFFICIAL:
        renamed = {pattern.sub(to, key) if key not in expected else key: value for key, value in renamed.items()}
    if len(expected & set(renamed)) > len(expected & set(state)):
        return renamed
    convert = getattr(sys.modules.get(type(net).__module__), "checkpoint_filter_fn", None)
    if type(net).__module__.startswith("timm.") and convert is not None:
        try:  # timm's own renaming of the files it was built from
            converted = {str(key): value for key, value in convert(dict(state), net).items()}
        except Exception as reason:  # noqa: BLE001 - each of its families reads its own files only
            log.debug("timm does not convert these names: %s", reason)
        else:
            if len(expected & set(converted)) > len(expected & set(state)):
                return {key: value for key, value in converted.items() if isinstance(value, Tensor)}
    return state


@dataclass(frozen=True)
class Head:
    """A linear layer that takes a module's place."""

    name: str
    inputs: int
    outputs: int
    bias: bool

    def made(self, outputs: int | None = None) -> nn.Linear:
        """Return it, untrained."""
        return nn.Linear(self.inputs, outputs or self.outputs, bias=self.bias)


def fitted_head(state: StateDict, whole: StateDict, net: nn.Module, path: Path) -> tuple[StateDict, Head | None]:
    """Bring a single linear layer under another name, or in a Sequential, to where the network has its head.

    Args:
        state: tensors by name, without a wrapper's prefix.
        whole: all tensors of the file, with it: a head may stand beside the backbone that has it.
        net: the network as its builder makes it.
        path: the file's, for the log.

    Returns:
        The state dict, and what takes the place of a module of ``net``, if any does.
    """
    expected = net.state_dict()
    missing = {key for key in expected if key not in state and not key.endswith("num_batches_tracked")}
    place = _head_of(net, missing)
    if place is None:
        return _without_old_head(state, expected, net), None
    known = {key for key in expected if key not in missing and not key.startswith(f"{place}.")}
    foreign = {key: value for key, value in state.items() if key not in known}
    if not foreign:
        backbone = {id(value) for value in state.values()}
        foreign = {key: value for key, value in whole.items() if id(value) not in backbone}
    found = _single_linear(foreign)
    if found is None:
        return state, None
    name, weight, bias = found
    kept = {key: value for key, value in state.items() if key not in foreign}
    last = _only_linear(net, place)
    head = None
    if last is not None and weight.shape[1] == last[1]:
        target = last[0]
        if (bias is None) == (f"{target}.bias" in expected):
            head = Head(target, weight.shape[1], weight.shape[0], bias is not None)
    elif name == place or name.startswith(f"{place}."):
        target, head = place, Head(place, weight.shape[1], weight.shape[0], bias is not None)
    else:
        return state, None
    if name != target:
        log.warning(
            "%s: its last layer is called %r and is taken for %r; layers without weights beside it, such as dropout, "
            "are left out", path, name, target,
        )  # fmt: skip
    kept[f"{target}.weight"] = weight
    if bias is not None:
        kept[f"{target}.bias"] = bias
    return kept, head


def _head_of(net: nn.Module, missing: set[str]) -> str | None:
    """Return the module that holds all missing weights and is the network's last with weights; None otherwise."""
    if not missing:
        return None
    owners = {key.rpartition(".")[0] for key in missing}
    place = min(owners, key=len)
    while not all(owner == place or owner.startswith(place + ".") for owner in owners):
        place = place.rpartition(".")[0]
        if not place:
            return None
    keys = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    last = keys[-1].rpartition(".")[0]
    if not (last == place or last.startswith(place + ".")) or len(missing) * 2 > len(keys):
        return None
    module = net.get_submodule(place)
    if not isinstance(module, nn.Linear | nn.Sequential):
        return None
    parent = place.rpartition(".")[0]
    if parent and isinstance(net.get_submodule(parent), nn.Sequential) and _weighted(net.get_submodule(parent)) == 1:
        return parent  # MobileNet's and EfficientNet's classifier: dropout, then the layer
    return place


def _weighted(module: nn.Module) -> int:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


def _only_linear(net: nn.Module, place: str) -> tuple[str, int] | None:
    """Return the name of the only linear layer of a module and how many numbers it takes; None where there are more."""
    found = [
        (f"{place}.{name}" if name else place, part.in_features)
        for name, part in net.get_submodule(place).named_modules()
        if isinstance(part, nn.Linear)
    ]
    return found[0] if len(found) == 1 else None


def _single_linear(tensors: Mapping[str, Tensor]) -> tuple[str, Tensor, Tensor | None] | None:
    """Return name, weight and bias if these tensors are those of one linear layer and nothing else."""
    weights = [key for key, value in tensors.items() if key.endswith(".weight") and value.ndim == 2]
    if len(weights) != 1:
        return None
    name = weights[0].removesuffix(".weight")
    bias = tensors.get(f"{name}.bias")
    if set(tensors) - {weights[0], f"{name}.bias"} or (
        bias is not None and bias.shape != tensors[weights[0]].shape[:1]
    ):
        return None
    return name, tensors[weights[0]], bias


def _without_old_head(state: StateDict, expected: Mapping[str, Tensor], net: nn.Module) -> StateDict:
    """Leave out what stands under a linear layer that has its own weights already: a head that was replaced."""
    linear = [name for name, part in net.named_modules() if isinstance(part, nn.Linear) and f"{name}.weight" in state]
    return {
        key: value
        for key, value in state.items()
        if key in expected or not any(key.startswith(f"{name}.") for name in linear)
    }


def hidden_head(state: StateDict, net: nn.Module) -> str:
    """Return the cure for a head of several layers whose activations no file tells, or ""."""
    expected = net.state_dict()
    missing = {key for key in expected if key not in state and not key.endswith("num_batches_tracked")}
    foreign = [key for key in state if key not in expected]
    place = _head_of(net, missing)
    layers = [key.removesuffix(".weight") for key in foreign if key.endswith(".weight")]
    if place is None or len(layers) < 2:
        return ""
    return (
        f"its head has {len(layers)} layers ({', '.join(layers[:4])}), and what lies between them is not in a state "
        "dict; give the network a single linear layer (run.py train), or explain your own network in Python: "
        "recipro_cam(split_network(net), images)"
    )


def no_head(state: StateDict, net: nn.Module) -> str:
    """Return the remedy for a backbone that lacks the last layer and nothing else, or ""."""
    expected = net.state_dict()
    missing = {key for key in expected if key not in state and not key.endswith("num_batches_tracked")}
    place = _head_of(net, missing)
    if place is None or any(key.startswith(f"{place}.") for key in state if key not in expected):
        return ""
    return (
        f"only the last layer ({place}) is missing: it is a backbone, as self-supervised training and feature "
        "extractors leave it, and names no classes; give the weights of the network that was trained on from it"
    )


def quantized(names: Iterable[str]) -> str:
    """Return the remedy for weights of a quantised network, which has scales and zero points, or ""."""
    if any(name.rpartition(".")[2] in {"zero_point", "_packed_params"} or "_packed_params" in name for name in names):
        return "it is quantised; save net.state_dict() of the float network it was made from"
    return ""


def expanded_stem(state: StateDict, net: nn.Module) -> tuple[StateDict, bool]:
    """Return the state dict for RGB of weights that take one channel, and whether it was one.

    A convolution of the luminance is one of red, green and blue with the weight shared out by ``LUMINANCE``; grey
    pictures (red = green = blue) give exactly what the weights gave.
    """
    key = _stem(net)
    if key is None or key not in state or state[key].ndim != 4 or state[key].shape[1] != 1:
        return state, False
    wanted = net.state_dict()[key].shape
    if wanted[1] != 3 or state[key].shape[2:] != wanted[2:] or state[key].shape[0] != wanted[0]:
        return state, False
    fractions = torch.tensor(LUMINANCE, dtype=torch.float64).view(1, 3, 1, 1)
    weight = (state[key].double() * fractions).to(state[key].dtype if state[key].is_floating_point() else torch.float32)
    return {**state, key: weight}, True


def _stem(net: nn.Module) -> str | None:
    """Return the name of the first convolution's weight."""
    return next((f"{name}.weight" for name, part in net.named_modules() if isinstance(part, nn.Conv2d)), None)


def other_stem(state: StateDict, net: nn.Module) -> str:
    """Return the cure for weights that take neither one channel nor three, or ""."""
    key = _stem(net)
    if key is None or key not in state or state[key].ndim != 4 or state[key].shape[1] in {1, 3}:
        return ""
    if state[key].shape[1:2] == net.state_dict()[key].shape[1:2]:
        return ""
    return f"they take {state[key].shape[1]} channels, and cameras give three (RGB) or their luminance; train on these"


def expanded_binary(state: StateDict, expected: Mapping[str, Tensor], count: int | None) -> tuple[StateDict, bool]:
    """Return the state dict of two classes for weights that give one score, and whether it was one.

    The sigmoid of a score s is the softmax over (0, s) at its second class, so a row of zeros before it gives exactly
    such a network: class 0 is the sigmoid's "no".
    """
    rows = [
        key for key, value in state.items() if key in expected and value.shape[:1] == (1,) and value.ndim in {1, 2, 4}
    ]
    named = [key for key in rows if count == 1 and state[key].shape != expected[key].shape]
    if not named:
        keys = list(expected)
        last = keys[-1].rpartition(".")[0] if keys else ""
        named = [key for key in rows if key in {f"{last}.weight", f"{last}.bias"}]
        if f"{last}.weight" not in named:
            return state, False
    return {**state, **{key: torch.cat((torch.zeros_like(state[key]), state[key])) for key in named}}, True

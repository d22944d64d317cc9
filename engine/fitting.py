"""Converts state dicts to a network's names and shapes: old names, other heads, one input or output.

Each function takes a state dict and returns an equivalent one with the network's names and shapes.
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
"""Weights of red, green and blue in the luminance (ITU-R BT.601, as in Pillow)."""

_OFFICIAL: Final = (
    (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$"), r"\1\2"),
    (re.compile(r"^(.*\.mlp)\.linear_1\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(.*\.mlp)\.linear_2\.(weight|bias)$"), r"\1.3.\2"),
)
"""Old names in torchvision's files, which torchvision renames when it loads them: DenseNet, vision transformers."""


def official_names(state: StateDict, net: nn.Module) -> StateDict:
    """Rename the tensors of torchvision's or timm's original files as in the network."""
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
        try:  # timm's conversion of the original files
            converted = {str(key): value for key, value in convert(dict(state), net).items()}
        except Exception as reason:  # noqa: BLE001 - each model family reads only its own files
            log.debug("timm does not convert these names: %s", reason)
        else:
            if len(expected & set(converted)) > len(expected & set(state)):
                return {key: value for key, value in converted.items() if isinstance(value, Tensor)}
    return state


@dataclass(frozen=True)
class Head:
    """A linear layer that replaces a module of the network."""

    name: str
    """Qualified name of the module."""
    inputs: int
    outputs: int
    bias: bool

    def build(self, outputs: int | None = None) -> nn.Linear:
        """Create the untrained layer; ``outputs`` None: as many as the file's layer."""
        return nn.Linear(self.inputs, outputs or self.outputs, bias=self.bias)


def fitted_head(state: StateDict, whole: StateDict, net: nn.Module, path: Path) -> tuple[StateDict, Head | None]:
    """Rename the file's only linear layer to the network's head.

    Args:
        state: tensors by name, without a wrapper's prefix.
        whole: all tensors of the file by their original names, because the head may lack the prefix.
        net: the network, newly built.
        path: the file, for the log.

    Returns:
        The state dict, and the layer that must replace a module of ``net``, or None.
    """
    expected = net.state_dict()
    missing = {key for key in expected if key not in state and not key.endswith("num_batches_tracked")}
    head_name = _head_of(net, missing)
    if head_name is None:
        return _without_old_head(state, expected, net), None
    known = {key for key in expected if key not in missing and not key.startswith(f"{head_name}.")}
    foreign = {key: value for key, value in state.items() if key not in known}
    if not foreign:
        backbone = {id(value) for value in state.values()}
        foreign = {key: value for key, value in whole.items() if id(value) not in backbone}
    linear = _single_linear(foreign)
    if linear is None:
        return state, None
    name, weight, bias = linear
    renamed = {key: value for key, value in state.items() if key not in foreign}
    last = _only_linear(net, head_name)
    head = None
    if last is not None and weight.shape[1] == last[1]:
        target = last[0]
        if (bias is None) == (f"{target}.bias" in expected):
            head = Head(target, weight.shape[1], weight.shape[0], bias is not None)
    elif name == head_name or name.startswith(f"{head_name}."):
        target, head = head_name, Head(head_name, weight.shape[1], weight.shape[0], bias is not None)
    else:
        return state, None
    if name != target:
        log.warning(
            "%s: the weights of its last layer %r are used for layer %r of the network; layers without weights, such "
            "as dropout, are ignored",
            path, name, target,
        )  # fmt: skip
    renamed[f"{target}.weight"] = weight
    if bias is not None:
        renamed[f"{target}.bias"] = bias
    return renamed, head


def _head_of(net: nn.Module, missing: set[str]) -> str | None:
    """Return the network's last module with weights if all missing weights belong to it, else None."""
    if not missing:
        return None
    owners = {key.rpartition(".")[0] for key in missing}
    head_name = min(owners, key=len)
    while not all(owner == head_name or owner.startswith(head_name + ".") for owner in owners):
        head_name = head_name.rpartition(".")[0]
        if not head_name:
            return None
    keys = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    last = keys[-1].rpartition(".")[0]
    if not (last == head_name or last.startswith(head_name + ".")) or len(missing) * 2 > len(keys):
        return None
    module = net.get_submodule(head_name)
    if not isinstance(module, nn.Linear | nn.Sequential):
        return None
    parent = head_name.rpartition(".")[0]
    if parent and isinstance(net.get_submodule(parent), nn.Sequential) and _weighted(net.get_submodule(parent)) == 1:
        return parent  # the classifier of MobileNet and EfficientNet: dropout, then the layer
    return head_name


def _weighted(module: nn.Module) -> int:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


def _only_linear(net: nn.Module, head_name: str) -> tuple[str, int] | None:
    """Return name and input width of a module's only linear layer; None if there is not exactly one."""
    layers = [
        (f"{head_name}.{name}" if name else head_name, part.in_features)
        for name, part in net.get_submodule(head_name).named_modules()
        if isinstance(part, nn.Linear)
    ]
    return layers[0] if len(layers) == 1 else None


def _single_linear(tensors: Mapping[str, Tensor]) -> tuple[str, Tensor, Tensor | None] | None:
    """Return name, weight and bias if the tensors are exactly those of one linear layer, else None."""
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
    """Remove the tensors of a replaced head: they are named as parts of a linear layer."""
    linear = [name for name, part in net.named_modules() if isinstance(part, nn.Linear) and f"{name}.weight" in state]
    return {
        key: value
        for key, value in state.items()
        if key in expected or not any(key.startswith(f"{name}.") for name in linear)
    }


def hidden_head(state: StateDict, net: nn.Module) -> str:
    """Return the remedy for a head of several layers, whose activations are unknown; "" for others."""
    expected = net.state_dict()
    missing = {key for key in expected if key not in state and not key.endswith("num_batches_tracked")}
    foreign = [key for key in state if key not in expected]
    head_name = _head_of(net, missing)
    layers = [key.removesuffix(".weight") for key in foreign if key.endswith(".weight")]
    if head_name is None or len(layers) < 2:
        return ""
    return (
        f"its head has {len(layers)} layers ({', '.join(layers[:4])}), and a state dict does not have the activations "
        "between them; train a head of a single linear layer (run.py train), or explain your network in "
        "Python: recipro_cam(split_network(net), images)"
    )


def no_head(state: StateDict, net: nn.Module) -> str:
    """Return the remedy for weights that lack only the last layer; "" for others."""
    expected = net.state_dict()
    missing = {key for key in expected if key not in state and not key.endswith("num_batches_tracked")}
    head_name = _head_of(net, missing)
    if head_name is None or any(key.startswith(f"{head_name}.") for key in state if key not in expected):
        return ""
    return (
        f"only the last layer ({head_name}) is missing: it is a backbone without classes (self-supervised training "
        "or a feature extractor); use the weights of a classifier fine-tuned from it"
    )


def quantized(names: Iterable[str]) -> str:
    """Return the remedy for weights of a quantised network; "" for others."""
    if any(name.rpartition(".")[2] in {"zero_point", "_packed_params"} or "_packed_params" in name for name in names):
        return "it is quantised; save net.state_dict() of the network before quantisation"
    return ""


def expanded_stem(state: StateDict, net: nn.Module) -> tuple[StateDict, bool]:
    """Convert the first convolution from one input channel to RGB; also return whether it was converted.

    The weight w of the luminance becomes ``LUMINANCE[c] * w`` for channel c. The output for grey images (red = green =
    blue) is unchanged.
    """
    key = _stem(net)
    if key is None or key not in state or state[key].ndim != 4 or state[key].shape[1] != 1:
        return state, False
    expected = net.state_dict()[key].shape
    if expected[1] != 3 or state[key].shape[2:] != expected[2:] or state[key].shape[0] != expected[0]:
        return state, False
    fractions = torch.tensor(LUMINANCE, dtype=torch.float64).view(1, 3, 1, 1)
    weight = (state[key].double() * fractions).to(state[key].dtype if state[key].is_floating_point() else torch.float32)
    return {**state, key: weight}, True


def _stem(net: nn.Module) -> str | None:
    """Return the name of the first convolution's weight, or None."""
    return next((f"{name}.weight" for name, part in net.named_modules() if isinstance(part, nn.Conv2d)), None)


def other_stem(state: StateDict, net: nn.Module) -> str:
    """Return the remedy for weights with neither one nor three input channels; "" for others."""
    key = _stem(net)
    if key is None or key not in state or state[key].ndim != 4 or state[key].shape[1] in {1, 3}:
        return ""
    if state[key].shape[1:2] == net.state_dict()[key].shape[1:2]:
        return ""
    return (
        f"they have {state[key].shape[1]} input channels, but frames have three (RGB) or one (grey); train with 3 or 1"
    )


def expanded_binary(state: StateDict, expected: Mapping[str, Tensor], count: int | None) -> tuple[StateDict, bool]:
    """Convert a last layer with one output to two; also return whether it was converted.

    The sigmoid of a logit s equals the softmax of (0, s) for class 1, so a row of zeros is added as class 0.
    """
    rows = [
        key for key, value in state.items() if key in expected and value.shape[:1] == (1,) and value.ndim in {1, 2, 4}
    ]
    fitting = [key for key in rows if count == 1 and state[key].shape != expected[key].shape]
    if not fitting:
        keys = list(expected)
        last = keys[-1].rpartition(".")[0] if keys else ""
        fitting = [key for key in rows if key in {f"{last}.weight", f"{last}.bias"}]
        if f"{last}.weight" not in fitting:
            return state, False
    return {**state, **{key: torch.cat((torch.zeros_like(state[key]), state[key])) for key in fitting}}, True

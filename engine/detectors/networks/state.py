"""Loads state dicts into detectors, and reports what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from torch import Tensor, nn

from engine.models.weights import put_into, without_prefix
from pipeline.errors import ModelError

_MAX_LISTED: Final = 4
_CLASS_LAYERS: Final = ("classification_head.cls_logits.", "classification_head.module_list.0.", "cls_score.")
_CLASSES: Final = 91
"""Default number of classes of torchvision's detectors: COCO's ids and the background."""

Net = TypeVar("Net", bound=nn.Module)


def load_state(net: Net, state: Mapping[str, Tensor], name: str, path: Path) -> Net:
    """Load a complete state dict into ``net``; prefixes of training wrappers are removed.

    Args:
        net: the network, which is changed.
        state: tensors by name.
        name: the network's name, for messages.
        path: the file, for messages.

    Raises:
        ModelError: a tensor is missing, has another shape, or contains NaN or infinity.
    """
    expected = net.state_dict()
    fitting = without_prefix(dict(state), set(expected))
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    fitting = {**counters, **fitting}
    problems = {
        "missing": [key for key in expected if key not in fitting],
        "of another shape": [
            f"{key} {tuple(fitting[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in fitting and fitting[key].shape != value.shape
        ],
        "with NaN or infinity": [
            key for key in expected if key in fitting and not bool(fitting[key].isfinite().all())
        ],
    }  # fmt: skip
    found = [
        f"{len(keys)} tensor{'s' * (len(keys) != 1)} {kind} "
        f"({', '.join(keys[:_MAX_LISTED])}{', ...' if len(keys) > _MAX_LISTED else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise ModelError(
            f"weights {str(path)!r} do not fit {name}: {'; '.join(found)}; use the detector that they belong to"
        )
    put_into(net, {key: fitting[key].to(value.dtype) for key, value in expected.items()})
    return net


def fit_classes(build: Callable[[int], Net], state: Mapping[str, Tensor], name: str, path: Path) -> Net:
    """Build a torchvision detector with the number of classes of a state dict, and load it."""
    net = build(_CLASSES)
    expected = net.state_dict()
    fitting = without_prefix(dict(state), set(expected))
    for key, value in expected.items():
        if any(layer in key for layer in _CLASS_LAYERS) and key.endswith("weight") and key in fitting:
            rows = len(fitting[key]) * _CLASSES
            if len(fitting[key]) != len(value) and rows % len(value) == 0 and value.shape[1:] == fitting[key].shape[1:]:
                net = build(rows // len(value))
            if value.shape[0] % _CLASSES == 0:
                break
    return load_state(net, fitting, name, path)

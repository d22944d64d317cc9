"""Loads timm networks from the Hugging Face hub (``hf-hub:``) or from a folder (``local-dir:``).

The folder contains ``config.json`` (architecture, input size, mean, std, class names) and the weights. timm reads it;
from the weights only tensors are loaded, never code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from torch import nn

from engine.backends.registry import first_line
from engine.models.registry import IMAGENET_MEAN, IMAGENET_STD
from engine.vendors import stop_telemetry
from pipeline.errors import ModelError

HUB_PREFIXES: Final = ("hf-hub:", "local-dir:")
_FOLDER: Final = "local-dir:"
_USUAL: Final = {"num_classes": None, "in_chans": 3, "global_pool": "avg"}
"""Default arguments of the architecture, which timm always writes."""


@dataclass(frozen=True, slots=True)
class HubConfig:
    """The content of a folder's ``config.json``."""

    architecture: str
    """Name of the network in timm."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    labels: tuple[str, ...]
    """Class names; empty if there are none."""
    is_standard: bool
    """True if the name of the architecture suffices to build the network for another number of classes."""


@lru_cache(maxsize=8)
def hub_config(model: str) -> HubConfig:
    """Read the configuration of a network from the hub or a folder.

    Args:
        model: ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.

    Raises:
        ModelError: timm is not installed, there is no such folder, or the hub cannot be reached.
    """
    stop_telemetry()
    try:
        from timm.models import load_model_config_from_hf
        from timm.models._hub import load_model_config_from_path
    except ImportError as reason:
        raise ModelError(
            f"model {model!r}: timm's models need the package timm: uv sync --inexact --extra timm ({reason})"
        ) from None
    place = model.partition(":")[2]
    try:
        config, architecture, arguments = (
            load_model_config_from_path(place) if model.startswith(_FOLDER) else load_model_config_from_hf(place)
        )
        size = [int(side) for side in config.get("input_size") or (3, 224, 224)]
        return HubConfig(
            str(architecture), (size[1], size[2]), _triple(config.get("mean"), IMAGENET_MEAN),
            _triple(config.get("std"), IMAGENET_STD), _labels(config),
            is_standard={**_USUAL, **arguments, "num_classes": None} == _USUAL,
        )  # fmt: skip
    except Exception as reason:  # the hub's client and JSON have their own exceptions
        raise ModelError(_not_loaded(model, reason)) from reason


def load_hub_network(model: str) -> nn.Module:
    """Load the network with its weights, in inference mode.

    Raises:
        ModelError: the weights are missing or do not fit, or the hub cannot be reached.
    """
    stop_telemetry()
    import timm

    try:
        net: nn.Module = timm.create_model(model, pretrained=True)
    except Exception as reason:  # timm and the hub's client have their own exceptions
        raise ModelError(_not_loaded(model, reason)) from reason
    return net.eval()


def _not_loaded(model: str, reason: BaseException) -> str:
    if model.startswith(_FOLDER):
        return (
            f"model {model!r}: the folder cannot be loaded ({first_line(reason)}); use local-dir: and a folder with "
            "the config.json and weights written by timm or the Hugging Face hub"
        )
    return (
        f"model {model!r}: cannot be loaded from the Hugging Face hub ({first_line(reason)}); check the name and the "
        "internet connection, or download its files on another computer and use the folder: local-dir:FOLDER"
    )


def _triple(values: Sequence[float] | None, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if values is None:
        return default
    red, green, blue = values
    return float(red), float(green), float(blue)


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names, replaced by their descriptions if there are any."""
    names = config.get("label_names") or ()
    described = config.get("label_descriptions") or {}
    names = names.values() if isinstance(names, Mapping) else names
    if not isinstance(described, Mapping):
        return tuple(map(str, described))
    return tuple(str(described.get(name, name)) for name in names)

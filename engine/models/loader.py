"""Loads models by name or checkpoint file: network, labels, input size, mean and std.

The builders are torchvision, timm and the network of the simulated line; ``_BUILDERS`` has one function for each.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from engine.models.checkpoint import Checkpoint, load_checkpoint
from engine.models.hub import HUB_PREFIXES, hub_config, load_hub_network
from engine.models.labels import read_labels
from engine.models.preprocess import Fit, Preprocessing
from engine.models.registry import IMAGENET_MEAN, IMAGENET_STD, MODELS, ModelEntry, lookup
from engine.models.truncated import truncate
from engine.models.weights import Fitted, fit_weights, read_state
from engine.vendors import stop_telemetry
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, ModelError, did_you_mean

log = logging.getLogger(__name__)

MODEL_FILE = ".safetensors"
"""Suffix of checkpoint files, written by ``run.py train`` with weights, labels and preprocessing."""

_IMAGENET_CLASSES = 1000
_MAX_LISTED = 4

RANDOM = "random"
"""Value of ``--weights`` for an untrained network, to measure cost."""


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with its labels and preprocessing."""

    module: nn.Module
    """Computes class logits (N, K) from images (N, 3, H, W), in inference mode."""
    name: str
    labels: tuple[str, ...]
    """Class names from the weights or a labels file; their number may differ from K, see ``class_names``."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layer: str | None
    """The explained layer; None: the default of ``split_network``."""
    labels_from: str = ""
    """The labels file, if the user set one."""
    fit: Fit = "stretch"
    """Resize mode of the training images."""
    binary: bool = False
    """True if the weights have one score for a sigmoid, converted to two: class 1 is the positive class."""

    def preprocessing(self, config: EngineConfig) -> Preprocessing:
        """Return the preprocessing: the configuration's settings, and the model's if they are not set."""
        fit = config.fit if "fit" in config.model_fields_set else self.fit
        return Preprocessing(
            config.input_size or self.input_size, config.mean or self.mean, config.std or self.std, fit
        )


def load_network(model: str, *, weights: Path | str | None = None, labels: Path | None = None) -> LoadedModel:
    """Load a model.

    Args:
        model: a name in the registry, a torchvision or timm classifier, ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``
            (timm), or a checkpoint file (``.safetensors``).
        weights: a state dict file, ``"random"``, or None: the builder's pretrained weights; not allowed for a
            checkpoint, which has its own weights.
        labels: a labels file, see ``read_labels``; None: the labels of the weights.

    Raises:
        ModelError: the name is unknown, or the weights do not fit or cannot be downloaded.
        ConfigError: the labels file is invalid, or ``weights`` is set for a checkpoint.
    """
    if model.endswith(MODEL_FILE):
        if weights is not None:
            raise ConfigError(f"--weights {str(weights)!r}: {model} has its own weights; omit --weights")
        network = load_from_checkpoint(load_checkpoint(model), Path(model))
    else:
        entry = find_entry(model)
        network = _BUILDERS[entry.builder](entry, weights)
    return network if labels is None else replace(network, labels=read_labels(labels), labels_from=str(labels))


def class_names(network: LoadedModel, count: int) -> tuple[str, ...]:
    """Return one name per class: ``class 0``, ``class 1`` ... if the model has no names.

    Args:
        network: the model.
        count: the number of classes K.

    Raises:
        ConfigError: the labels file has a different number of names.
    """
    if len(network.labels) == count:
        _warn_of_labels(network, count)
        return network.labels
    if network.binary and len(network.labels) == 1:
        return f"not {network.labels[0]}", network.labels[0]
    if network.labels_from:
        raise ConfigError(
            f"labels {network.labels_from!r}: has {len(network.labels)} names, but the network has {count} classes; "
            f"list {count} names"
        )
    log.warning("%s has %d classes without names; name them by --labels FILE", network.name, count)
    return tuple(f"class {k}" for k in range(count))


def _warn_of_labels(network: LoadedModel, count: int) -> None:
    """Log a warning if the network has a single class, or several classes with the same name."""
    if count == 1:
        log.warning(
            "%s has one class (%r): its score is always 1 and its heat maps are empty; train it with a second class, "
            "such as good parts", network.name, network.labels[0],
        )  # fmt: skip
    repeated = [(label, number) for label, number in Counter(network.labels).items() if number > 1]
    # ImageNet's labels have two duplicates ("crane", "maillot"), which are not the user's mistake.
    if repeated and (network.labels_from or count != _IMAGENET_CLASSES):
        listed = ", ".join(f"{label!r} {number} times" for label, number in repeated[:_MAX_LISTED])
        log.warning(
            "labels of %s: several classes have the same name (%s); --target and guards use the first of them. Name "
            "each class differently by --labels FILE, or choose classes by index",
            network.labels_from or network.name, listed,
        )  # fmt: skip


def find_entry(model: str) -> ModelEntry:
    """Return the registry's entry, or a new entry for a classifier of torchvision or timm.

    Raises:
        ModelError: the name is unknown; the message suggests the nearest name.
    """
    return lookup(model) or _entry_by_builder(model)


def _entry_by_builder(model: str) -> ModelEntry:
    """Create an entry for a name in torchvision or timm, or for a folder or hub of timm."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if model in names:
        size, mean, std = _validated_at(model)
        return ModelEntry(model, size, mean, std)
    if Path(model).suffix.lower() in {".onnx", ".xml"}:
        raise ModelError(
            f"model {model!r}: only `stream` and `explain-archive` can run an ONNX or OpenVINO file; "
            "use the PyTorch network: --model NAME --weights FILE"
        )
    if Path(model).is_file():
        raise ModelError(
            f"model {model!r} is a file but not a checkpoint of `run.py train`; use the network's name: "
            "--model NAME --weights FILE"
        )
    if model.startswith(HUB_PREFIXES):
        hub = hub_config(model)
        name = hub.architecture if hub.is_standard else model
        return ModelEntry(name, hub.input_size, hub.mean, hub.std, builder="timm", source=model)
    plain, known, more = model.removeprefix("timm/"), [*MODELS, *names], ""
    stop_telemetry()
    try:
        import timm

        known += timm.list_models()
        if timm.is_model(plain):
            config = timm.get_pretrained_cfg(plain)
            size = config.input_size[1:] if config else (224, 224)
            mean, std = (_triple(config.mean), _triple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
            return ModelEntry(plain, size, mean, std, builder="timm")
    except (ImportError, RuntimeError) as reason:  # RuntimeError: timm does not know the weights after the dot
        needs = " (timm's models need the package timm: uv sync --inexact --extra timm)"
        more = needs * isinstance(reason, ImportError)
    raise ModelError(f"model {model!r} is unknown.{did_you_mean(plain, known)} `run.py models` lists models{more}")


def _validated_at(
    name: str,
) -> tuple[tuple[int, int], tuple[float, float, float], tuple[float, float, float]]:
    """Return input size, mean and std with which torchvision's weights of ``name`` were validated."""
    import torchvision

    try:
        transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    except (ValueError, AttributeError):
        return (224, 224), IMAGENET_MEAN, IMAGENET_STD
    side = int(transforms.crop_size[0])
    return (side, side), _triple(transforms.mean), _triple(transforms.std)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def build_untrained(entry: ModelEntry, count: int | None = None) -> nn.Module:
    """Return the network with random weights, in inference mode.

    Args:
        entry: the registry's entry of the network.
        count: number of classes; None: the builder's default.

    Raises:
        ModelError: the builder does not accept a number of classes.
    """
    classes: dict[str, Any] = {} if count is None else {"num_classes": count}
    if entry.builder == "line_net":
        from engine.models.line_net import LineNet

        return LineNet(count or 5).eval()
    if entry.builder == "timm":
        import timm

        created: nn.Module = timm.create_model(entry.name, pretrained=False, **classes)
        return created.eval()
    import torchvision

    try:
        built: nn.Module = torchvision.models.get_model(entry.name, weights=None, **dict(entry.options), **classes)
    except TypeError as reason:
        raise ModelError(
            f"model {entry.name!r} cannot be built for {count} classes ({reason}); use another --model"
        ) from reason
    return built.eval()


def _seeded(entry: ModelEntry) -> nn.Module:
    """Return a network with seeded random weights; the global random state is not changed."""
    log.warning("%s runs with random weights: its predictions are meaningless", entry.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomize_zero_layers(build_untrained(entry))


def randomize_zero_layers(net: nn.Module) -> nn.Module:
    """Initialise all-zero linear layers (the last layer of vision transformers) with random weights."""
    for module in net.modules():
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return net


def _with_weights(entry: ModelEntry, weights: Path | str, labels: Sequence[str]) -> LoadedModel:
    if weights == RANDOM:
        return LoadedModel(
            _seeded(entry), entry.name, tuple(labels), entry.input_size, entry.mean, entry.std, entry.layer
        )
    path = Path(weights)
    fitted = fit_weights(lambda count: build_untrained(entry, count), read_state(path), entry.name, path)
    mean, std = _normalisation(entry, fitted, path)
    if fitted.binary:
        log.warning(
            "%s has one score, which is used as the logit of a sigmoid: class 1 above zero, class 0 below. Name both "
            "classes by --labels FILE", path,
        )  # fmt: skip
    names = () if fitted.binary else tuple(labels)
    return LoadedModel(fitted.net, entry.name, names, entry.input_size, mean, std, entry.layer, binary=fitted.binary)


def _normalisation(
    entry: ModelEntry, fitted: Fitted, path: Path
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and std, equal for all channels if the weights are for greyscale images."""
    if not fitted.greyscale:
        return entry.mean, entry.std
    mean, std = (sum(values) / 3 for values in (entry.mean, entry.std))
    log.warning(
        "%s is for greyscale images: the input is the luminance of each frame (ITU-R BT.601), normalised with mean "
        "%.3f and std %.3f; if it was trained with other values, use --mean M --std S", path, mean, std,
    )  # fmt: skip
    return (mean, mean, mean), (std, std, std)


def _from_torchvision(entry: ModelEntry, weights: Path | str | None) -> LoadedModel:
    import torchvision

    try:
        known = torchvision.models.get_model_weights(entry.name).DEFAULT
    except (ValueError, AttributeError):
        known = None
    labels = known.meta["categories"] if known is not None else ()
    if weights is not None:
        return _with_weights(entry, weights, labels)
    if known is None:
        raise ModelError(f"model {entry.name!r}: torchvision has no pretrained weights; use --weights FILE")
    try:
        net: nn.Module = torchvision.models.get_model(entry.name, weights=known)
    except (URLError, OSError, RuntimeError) as reason:
        raise ModelError(_no_download(entry.name, known.url, reason)) from reason
    return LoadedModel(net.eval(), entry.name, tuple(labels), entry.input_size, entry.mean, entry.std, entry.layer)


def _no_download(name: str, url: str, reason: BaseException) -> str:
    return (
        f"model {name!r}: its pretrained weights cannot be downloaded ({reason}); download {url} on another computer "
        "and use the file by --weights FILE"
    )


def _from_timm(entry: ModelEntry, weights: Path | str | None) -> LoadedModel:
    labels = hub_config(entry.source).labels if entry.source else ()
    if weights is not None:
        return _with_weights(entry, weights, labels)
    if entry.source:
        net = load_hub_network(entry.source)
        return LoadedModel(net, entry.name, labels, entry.input_size, entry.mean, entry.std, entry.layer)
    stop_telemetry()
    import timm

    try:
        net = timm.create_model(entry.name, pretrained=True).eval()
    except Exception as reason:  # the hub's client has its own exceptions
        first = str(reason).strip().splitlines()[0][:160] if str(reason).strip() else type(reason).__name__
        raise ModelError(
            f"model {entry.name!r}: its pretrained weights cannot be downloaded ({first}); use --weights FILE"
        ) from reason
    return LoadedModel(net, entry.name, (), entry.input_size, entry.mean, entry.std, entry.layer)


def _line_net(entry: ModelEntry, weights: Path | str | None) -> LoadedModel:
    if weights == RANDOM:
        return _with_weights(entry, weights, ())
    if weights is None:
        raise ModelError(f"model {entry.name!r}: needs --weights FILE; or train the weights: run.py train-line")
    return load_from_checkpoint(load_checkpoint(Path(weights)), Path(weights))


def load_from_checkpoint(file: Checkpoint, path: Path) -> LoadedModel:
    """Build the network of a checkpoint and load its weights.

    Args:
        file: the checkpoint's content.
        path: its file, for messages.

    Raises:
        ModelError: the network is unknown or the weights do not fit.
    """
    entry = find_entry(file.model)
    count = max(2, len(file.labels))

    def build(_: int | None) -> nn.Module:
        if file.truncate_at:
            return truncate(build_untrained(entry), file.truncate_at, file.input_size, count)
        return build_untrained(entry, count)

    fitted = fit_weights(build, file.state, entry.name, path)
    return LoadedModel(
        fitted.net, entry.name, file.labels, file.input_size, file.mean, file.std, file.layer, fit=file.fit,
        binary=fitted.binary,
    )  # fmt: skip


_BUILDERS: dict[str, Callable[[ModelEntry, Path | str | None], LoadedModel]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "line_net": _line_net,
}

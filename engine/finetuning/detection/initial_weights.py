"""Loads the initial weights for the training of a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from engine.detectors.checkpoint import is_detector_file, load_detector_checkpoint
from engine.detectors.loader import load_detector
from engine.detectors.networks.registry import OWN_DETECTORS
from engine.detectors.torchvision_detectors import COCO_COLUMNS, coco_columns, download_state, has_background
from engine.finetuning.detection.networks import DetectionNetwork
from engine.models.checkpoint import is_checkpoint_file, load_checkpoint
from engine.models.weights import put_into, read_state
from pipeline.errors import ModelError

_CLASSIFIER_PREFIXES: Final = ("", "features.")
"""Prefixes of the stages of a backbone in the state dict of a classifier."""


@dataclass(frozen=True, slots=True, eq=False)
class InitialWeights:
    """Weights by name, and their classes, if known."""

    state: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()


def initial_weights(name: str, weights: str | None) -> InitialWeights:
    """Load the initial weights that the user chose.

    Args:
        name: name of the network.
        weights: a state dict, for YOLOX also an ONNX file, or a detector or classifier written by ``run.py train``;
            None: torchvision's pretrained weights, which are downloaded.

    Raises:
        ModelError: the file cannot be read, or the weights cannot be downloaded.
    """
    if weights is None:
        return _with_coco(name, download_state(name))
    path = Path(weights)
    if is_detector_file(path):
        file = load_detector_checkpoint(path)
        return InitialWeights(file.state, file.labels)
    if path.suffix == ".onnx":
        if name not in OWN_DETECTORS:
            raise ModelError(
                f"weights {weights!r}: {name} cannot be initialised from an ONNX file; use a state dict (.pth, "
                ".safetensors)"
            )
        detector = load_detector(name, weights=path)
        return InitialWeights(dict(detector.module.state_dict()), detector.labels)  # type: ignore[union-attr]
    if is_checkpoint_file(path):
        return InitialWeights(load_checkpoint(path).state)
    state = read_state(path)
    return InitialWeights(state) if name in OWN_DETECTORS else _with_coco(name, state)


def _with_coco(name: str, state: Mapping[str, Tensor]) -> InitialWeights:
    """Return weights with COCO's class names; ``load_initial_weights`` ignores names that do not fit."""
    columns = coco_columns()
    assert len(columns) == COCO_COLUMNS  # noqa: S101 - torchvision's own list
    return InitialWeights(state, columns[has_background(name) :])


def load_initial_weights(
    network: DetectionNetwork, name: str, labels: tuple[str, ...], weights: InitialWeights, source: str
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Load weights of a network or its backbone, in place; classes with equal names keep their rows.

    Args:
        network: the untrained network.
        name: name of the network, for messages.
        labels: the network's classes.
        weights: the weights.
        source: origin of the weights, for messages.

    Returns:
        The names of the batch norms with loaded statistics, and the classes whose rows were kept.

    Raises:
        ModelError: the weights belong to another network.
    """
    expected = network.module.state_dict()
    found = {key: value for key, value in weights.state.items() if key in expected}
    found = found or _of_classifier(network.body, expected, weights.state)
    classes = {key: value for key, value in found.items() if network.class_rows.matches(key)}
    fitting = {key: value for key, value in found.items() if key not in classes and value.shape == expected[key].shape}
    wrong = [key for key in found if key not in classes and key not in fitting]
    if wrong or not any(key.endswith(".weight") for key in fitting):
        reason = f"{wrong[0]} has another shape" if wrong else "none of its tensors is in the network"
        raise ModelError(f"weights {source!r}: do not fit {name}: {reason}; use the network that the weights belong to")
    for key, value in classes.items():
        fitting[key] = network.class_rows.carried(key, expected[key], value, labels, weights.labels)
    put_into(network.module, {**expected, **{key: value.to(expected[key].dtype) for key, value in fitting.items()}})
    norms = frozenset(key.removesuffix(".running_mean") for key in fitting if key.endswith(".running_mean"))
    has_rows = any(fitting[key] is not expected[key] for key in classes)
    return norms, tuple(label for label in weights.labels if has_rows and label in labels)


def _of_classifier(body: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's weights from a classifier's state dict, renamed as in the detector."""
    for prefix in _CLASSIFIER_PREFIXES:
        names = {key: prefix + key.removeprefix(body) for key in expected if key.startswith(body)}
        found = {key: state[name] for key, name in names.items() if name in state}
        if found:
            return found
    return {}

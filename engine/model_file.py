"""A trained network in one file: weights and all that is needed to use them, in safetensors.

Nothing in it is code. Beside the tensors it carries string metadata, each value JSON where it is no plain word:
``format`` ("recipro-stream 1"), ``model``, ``labels``, ``input_size`` [height, width], ``mean``, ``std``, ``layer``
(where the network is cut) and ``provenance``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.errors import ModelError

_FORMAT = "recipro-stream 1"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model file holds."""

    state: dict[str, torch.Tensor]
    """Weights by qualified name, on the CPU."""
    model: str
    """The network's name in the models table."""
    labels: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layer: str
    """The cut point's qualified name."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it came to be: seeds, steps, date, versions, measured accuracy, the command."""


def save_model(path: str | Path, content: ModelFile) -> None:
    """Write a model file whole or not at all: a reader sees the old file or the new one, never half of one.

    Raises ``ModelError`` where it cannot be written.
    """
    path = Path(path)
    metadata = {
        "format": _FORMAT,
        "model": content.model,
        "labels": json.dumps(content.labels),
        "input_size": json.dumps(content.input_size),
        "mean": json.dumps(content.mean),
        "std": json.dumps(content.std),
        "layer": content.layer,
        "provenance": json.dumps(dict(content.provenance), sort_keys=True),
    }
    payload = save({name: tensor.contiguous().cpu() for name, tensor in content.state.items()}, metadata)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ModelError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from error


def read_model_file(path: str | Path) -> ModelFile:
    """Read a file that ``save_model`` wrote.

    Raises ``ModelError`` for a missing file, one that is no safetensors file, and one that says too little about
    itself to be used (bare weights: those need a model's name beside them).
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; `uv run run.py train-line` writes one")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: is no readable safetensors file ({error}); give one that this system wrote"
        ) from error
    return ModelFile(
        state=state,
        model=_word(path, metadata, "model"),
        labels=_labels(path, metadata),
        input_size=_input_size(path, metadata),
        mean=_triple(path, metadata, "mean"),
        std=_triple(path, metadata, "std"),
        layer=_word(path, metadata, "layer"),
        provenance=_provenance(path, metadata),
    )


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    found = metadata.get("format")
    if found == _FORMAT:
        return
    if found and found.startswith("recipro-stream"):
        raise ModelError(f"{path}: was written as {found!r}, this version reads {_FORMAT!r}; update recipro-stream")
    raise ModelError(
        f"{path}: holds bare weights, without labels and input size: not one of this system's model files; "
        "name the network they belong to with --model NAME --weights FILE"
    )


def _word(path: Path, metadata: Mapping[str, str], key: str) -> str:
    value = metadata.get(key)
    if not value:
        raise ModelError(f"{path}: its metadata lacks {key!r}; write it again with save_model")
    return value


def _parsed(path: Path, metadata: Mapping[str, str], key: str) -> Any:  # noqa: ANN401 - JSON is anything
    try:
        return json.loads(_word(path, metadata, key))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: metadata {key!r} is no JSON ({error}); write the file again") from None


def _wrong(path: Path, key: str, value: object, rule: str) -> ModelError:
    return ModelError(f"{path}: metadata {key!r} is {value!r}; it must be {rule}. Write the file again")


def _labels(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    value = _parsed(path, metadata, "labels")
    if not isinstance(value, list) or not value or not all(isinstance(label, str) for label in value):
        raise _wrong(path, "labels", value, "a list of names")
    return tuple(value)


def _input_size(path: Path, metadata: Mapping[str, str]) -> tuple[int, int]:
    value = _parsed(path, metadata, "input_size")
    if not _numbers(value, 2) or not all(isinstance(side, int) and side > 0 for side in value):
        raise _wrong(path, "input_size", value, "[height, width] in pixels")
    return value[0], value[1]


def _triple(path: Path, metadata: Mapping[str, str], key: str) -> tuple[float, float, float]:
    value = _parsed(path, metadata, key)
    if not _numbers(value, 3):
        raise _wrong(path, key, value, "three numbers, for red, green and blue")
    return float(value[0]), float(value[1]), float(value[2])


def _provenance(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    value = _parsed(path, metadata, "provenance")
    if not isinstance(value, dict):
        raise _wrong(path, "provenance", value, "an object")
    return value


def _numbers(value: object, count: int) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return False
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)

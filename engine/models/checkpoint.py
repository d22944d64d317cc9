"""A trained network in one file: weights and all that is needed to use them, in safetensors.

Nothing in it is code. Beside the tensors it carries string metadata, each value JSON where it is no plain word:
``format`` ("recipro-stream 1"), ``model``, ``labels``, ``input_size`` [height, width], ``mean``, ``std``, ``layer``
(where the network is cut), ``provenance``, ``fit`` (how a frame is brought to the input size; older files have none,
and mean ``stretch``), ``until`` (the layer it ends with, where it was ended earlier than the table's) and ``seen``
(digests of the pictures it learned from; older files have none) and ``looks`` (their perceptual hashes; the same).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine.io.atomic import atomic_write
from engine.io.metadata import input_size, invalid_value, mapping, names, read_str, triple
from engine.io.perceptual_hash import KnownImages
from engine.models.file_sniffing import read_head, why_not_weights
from engine.models.preprocess import Fit
from pipeline.errors import ModelError

_FORMAT = "recipro-stream 1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
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
    fit: Fit = "stretch"
    """How a frame is brought to the input size."""
    truncate_at: str | None = None
    """The layer the network of the table ends with here; None = its own end."""
    trained_digests: frozenset[str] = frozenset()
    """Digests of the pictures it learned from: none of them may examine what goes on from it."""
    looks: tuple[KnownImages, ...] = ()
    """Perceptual hashes of the same, from each training: copies in another format are recognised by them."""


def save_checkpoint(path: str | Path, content: Checkpoint) -> None:
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
        "fit": content.fit,
        **({"until": content.truncate_at} if content.truncate_at else {}),
        **({"seen": json.dumps(sorted(content.trained_digests))} if content.trained_digests else {}),
        **({"looks": json.dumps([one.to_text() for one in content.looks])} if content.looks else {}),
        "provenance": json.dumps(dict(content.provenance), sort_keys=True),
    }
    payload = save({name: tensor.contiguous().cpu() for name, tensor in content.state.items()}, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(payload)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file that ``save_checkpoint`` wrote.

    Raises ``ModelError`` for a missing file, one that is no safetensors file, and one that says too little about
    itself to be used (bare weights: those need a model's name beside them).
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; `run.py train` and `run.py train-line` write them")
    try:
        if (told := why_not_weights(read_head(path))) is not None:
            raise ModelError(f"{path}: {told}")
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: is no readable safetensors file ({error}); give one that this system wrote"
        ) from error
    return Checkpoint(
        state=state,
        model=read_str(path, metadata, "model"),
        labels=names(path, metadata, "labels"),
        input_size=input_size(path, metadata),
        mean=triple(path, metadata, "mean"),
        std=triple(path, metadata, "std"),
        layer=read_str(path, metadata, "layer"),
        provenance=mapping(path, metadata, "provenance"),
        fit=_fit(path, metadata),
        truncate_at=metadata.get("until"),
        trained_digests=frozenset(names(path, metadata, "seen")) if "seen" in metadata else frozenset(),
        looks=_looks(path, metadata) if "looks" in metadata else (),
    )


def _looks(path: Path, metadata: Mapping[str, str]) -> tuple[KnownImages, ...]:
    try:
        return tuple(KnownImages.from_text(text) for text in names(path, metadata, "looks"))
    except ValueError as reason:
        raise invalid_value(path, "looks", "...", f"perceptual hashes as `train` writes them ({reason})") from None


def _fit(path: Path, metadata: Mapping[str, str]) -> Fit:
    found = metadata.get("fit", "stretch")
    for known in get_args(Fit):
        if found == known:
            return cast("Fit", known)
    raise invalid_value(path, "fit", found, f"one of {', '.join(get_args(Fit))}")


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

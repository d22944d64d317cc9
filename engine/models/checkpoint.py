"""Reads and writes checkpoints: safetensors with weights, labels and preprocessing of a network.

The file contains no code. Besides the tensors it has string metadata; each value that is not a plain string is JSON:
``format`` ("recipro-stream 1"), ``model``, ``labels``, ``input_size`` [height, width], ``mean``, ``std``, ``layer``
(where the network is split), ``provenance``, ``fit`` (how a frame is fitted to the input size; ``stretch`` if absent),
and optionally ``until`` (the last layer of a truncated network), ``seen`` (digests of the training images) and
``looks`` (perceptual hashes of the training images).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open

from engine.io.metadata import file_format, input_size, invalid_value, mapping, names, read_str, triple
from engine.io.perceptual_hash import KnownImages
from engine.io.tensor_file import write_safetensors
from engine.models.file_sniffing import read_head, why_not_weights
from engine.models.preprocess import Fit
from pipeline.errors import ModelError

_FORMAT = "recipro-stream 1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a checkpoint file."""

    state: dict[str, torch.Tensor]
    """Weights by qualified name, on the CPU."""
    model: str
    """Name of the network in the registry, or name of a torchvision or timm model."""
    labels: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Normalisation per channel (RGB), for pixel values in [0, 1]."""
    layer: str
    """Qualified name of the explained layer."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the weights: seeds, steps, date, versions, measured accuracy, the command."""
    fit: Fit = "stretch"
    """Resize mode of the input."""
    truncate_at: str | None = None
    """Last layer of a truncated network; None: the network is not truncated."""
    trained_digests: frozenset[str] = frozenset()
    """Digests of the training images; later training runs must not test on these images."""
    perceptual_hashes: tuple[KnownImages, ...] = ()
    """Perceptual hashes of the training images, one set per training; they identify copies in other formats."""


def is_checkpoint_file(path: str | Path) -> bool:
    """Return whether a file is a checkpoint of this version."""
    return file_format(path) == _FORMAT


def save_checkpoint(path: str | Path, content: Checkpoint) -> None:
    """Write a checkpoint file atomically.

    Raises:
        ModelError: the file cannot be written.
    """
    path = Path(path)
    hashes = [known.to_text() for known in content.perceptual_hashes]
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
        **({"looks": json.dumps(hashes)} if hashes else {}),
        "provenance": json.dumps(dict(content.provenance), sort_keys=True),
    }
    write_safetensors(path, content.state, metadata)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file written by ``save_checkpoint``.

    Raises:
        ModelError: the file is missing, is not a safetensors file, or has no metadata of a checkpoint (plain
            weights, which need a model name).
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; `run.py train` and `run.py train-line` write checkpoints")
    try:
        if (description := why_not_weights(read_head(path))) is not None:
            raise ModelError(f"{path}: {description}")
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: is not a readable safetensors file ({error}); use a file written by recipro-stream"
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
        perceptual_hashes=_perceptual_hashes(path, metadata) if "looks" in metadata else (),
    )


def _perceptual_hashes(path: Path, metadata: Mapping[str, str]) -> tuple[KnownImages, ...]:
    try:
        return tuple(KnownImages.from_text(text) for text in names(path, metadata, "looks"))
    except ValueError as reason:
        message = f"{path}: the perceptual hashes in metadata 'looks' are not in the format of `train` ({reason})"
        raise ModelError(f"{message}. Write the file again") from None


def _fit(path: Path, metadata: Mapping[str, str]) -> Fit:
    fit = metadata.get("fit", "stretch")
    for known in get_args(Fit):
        if fit == known:
            return cast("Fit", known)
    raise invalid_value(path, "fit", fit, f"one of {', '.join(get_args(Fit))}")


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    stated = metadata.get("format")
    if stated == _FORMAT:
        return
    if stated and stated.startswith("recipro-stream detector"):
        raise ModelError(
            f"{path}: is a detector, but this command needs a classifier; stream, why and train accept detectors"
        )
    if stated and stated.startswith("recipro-stream"):
        raise ModelError(f"{path}: has format {stated!r}, but this version reads {_FORMAT!r}; update recipro-stream")
    raise ModelError(
        f"{path}: contains weights but no labels and input size, so it is not a checkpoint of recipro-stream; "
        "use the network of the weights: --model NAME --weights FILE"
    )

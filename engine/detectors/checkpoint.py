"""Reads and writes files of trained detectors: safetensors with weights, labels and input format.

The file contains no code. Besides the tensors it has string metadata; each value that is not a plain string is JSON:
``format`` ("recipro-stream detector 1"), ``model``, ``labels``, ``input`` (the fields of ``InputFormat``),
``provenance``, and optionally ``seen`` (digests of the training images) and ``looks`` (their perceptual hashes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from engine.detectors.input_format import InputFormat
from engine.io.metadata import file_format, invalid_value, mapping, names, read_json, read_str
from engine.io.perceptual_hash import KnownImages
from engine.io.tensor_file import write_safetensors
from pipeline.errors import ModelError

FORMAT: Final = "recipro-stream detector 1"
_INPUT: Final = TypeAdapter(InputFormat)


@dataclass(frozen=True, slots=True, eq=False)
class DetectorCheckpoint:
    """The content of a detector's file."""

    state: dict[str, torch.Tensor]
    """Weights by qualified name, on the CPU."""
    model: str
    """Name of the network, of ``engine.detectors.loader.DETECTORS``."""
    labels: tuple[str, ...]
    input: InputFormat
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the weights: seeds, epochs, date, versions, measured precision, the command."""
    trained_digests: frozenset[str] = frozenset()
    """Digests of the training images; later training runs do not test on these images."""
    perceptual_hashes: tuple[KnownImages, ...] = ()
    """Perceptual hashes of the training images, one set per training."""


def is_detector_file(path: str | Path) -> bool:
    """Return whether a file is a detector written by ``run.py train``."""
    return file_format(path).startswith("recipro-stream detector")


def save_detector(path: Path, content: DetectorCheckpoint) -> None:
    """Write a detector's file atomically.

    Raises:
        ModelError: the file cannot be written.
    """
    hashes = [known.to_text() for known in content.perceptual_hashes]
    metadata = {
        "format": FORMAT,
        "model": content.model,
        "labels": json.dumps(content.labels),
        "input": json.dumps(asdict(content.input)),
        **({"seen": json.dumps(sorted(content.trained_digests))} if content.trained_digests else {}),
        **({"looks": json.dumps(hashes)} if hashes else {}),
        "provenance": json.dumps(dict(content.provenance), sort_keys=True),
    }
    write_safetensors(path, content.state, metadata)


def load_detector_checkpoint(path: Path) -> DetectorCheckpoint:
    """Read a file written by ``save_detector``.

    Raises:
        ModelError: the file is missing or damaged, or a newer version wrote it.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; `run.py train` writes detectors")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: is not a readable safetensors file ({error}); copy it again, or train the detector again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{path}: has format {metadata.get('format')!r}, but this version reads {FORMAT!r}; update recipro-stream"
        )
    stated = read_json(path, metadata, "input")
    try:
        input_format = _INPUT.validate_python(stated)
    except ValidationError as reason:
        rule = f"an input format ({reason.errors()[0]['msg'].lower()})"
        raise invalid_value(path, "input", stated, rule) from None
    try:
        hashes = (
            tuple(KnownImages.from_text(text) for text in names(path, metadata, "looks"))
            if ("looks" in metadata)
            else ()
        )
    except ValueError as reason:
        message = f"{path}: the perceptual hashes in metadata 'looks' are not in the format of `train` ({reason})"
        raise ModelError(f"{message}. Write the file again") from None
    return DetectorCheckpoint(
        state,
        read_str(path, metadata, "model"),
        names(path, metadata, "labels"),
        input_format,
        mapping(path, metadata, "provenance"),
        frozenset(names(path, metadata, "seen")) if "seen" in metadata else frozenset(),
        hashes,
    )

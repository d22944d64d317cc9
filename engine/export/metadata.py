"""The metadata of an exported network, for preparing its input and interpreting its outputs.

The metadata is stored in the file as strings: in ONNX's ``metadata_props``, or in an extra file of a ``.pt2`` archive.
Reading it requires neither onnx nor a runtime, and detects a damaged or foreign file before the file is run.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import torch
from torch import Tensor

from engine.checkpoints import check_declared
from engine.io.metadata import input_size, invalid_value, mapping, names, read_int_pair, read_str, triple
from engine.models.preprocess import Fit
from engine.runtime.verification import ModelOutputs
from pipeline.errors import ModelError

FORMAT = "recipro-stream explained 1"
DETECTOR_FORMAT = "recipro-stream detector 1"
EXTRA = "recipro-stream.json"
"""Name of the metadata among the extra files of a ``.pt2`` archive."""
MAX_EXTRA_BYTES = 64 << 20
SUFFIXES = {".onnx": "onnx", ".pt2": "torch"}
"""Formats by file suffix."""
METADATA_PROPS, KEY, VALUE = 14, 1, 2
"""Field numbers of ONNX's ModelProto and StringStringEntryProto."""
GRAPH, OUTPUT, TYPE, TENSOR, SHAPE, DIMENSION, DIMENSION_SIZE = 7, 12, 2, 1, 2, 1, 1
"""Field numbers from ModelProto down to the size of a dimension of an output."""
CLASSIFIER_SIDES = 2
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""Wire types of protocol buffers."""


@dataclass(frozen=True, slots=True)
class ExportMetadata:
    """Metadata of an exported network."""

    model: str
    """The network's name."""
    labels: tuple[str, ...]
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit
    layer: str
    grid: tuple[int, int]
    """Rows and columns of the heat map."""
    method: str
    """``recipro-cam/point``."""
    plan: str
    target: tuple[str, ...]
    """The explained classes, as set by the user."""
    probe: Mapping[str, Any]
    """The engine's result for the first probe image; see ``encode_probe``."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """Versions of the packages that wrote the file."""

    def metadata(self) -> dict[str, str]:
        """Return the metadata as strings."""
        plain = {"format": FORMAT, "model": self.model, "fit": self.fit, "layer": self.layer, "method": self.method}
        listed = {
            "labels": self.labels, "input_size": self.input_size, "mean": self.mean, "std": self.std,
            "grid": self.grid, "target": self.target, "proof": dict(self.probe), "made_with": dict(self.made_with),
        }  # fmt: skip
        return {**plain, "plan": self.plan, **{key: json.dumps(value) for key, value in listed.items()}}

    def probe_outputs(self, path: Path) -> tuple[ModelOutputs, float]:
        """Return the engine's result for the first probe image, and the rounding tolerance of its heat map.

        Scores (1, K), one class (1, 1), its heat map (1, 1, h, w).
        """
        try:
            scores, heat = (_floats(self.probe[key]) for key in ("scores", "heat"))
            chosen = torch.tensor([[int(self.probe["class"])]])
            answers = scores.view(1, len(self.labels)), chosen, heat.view(1, 1, *self.grid)
            return answers, float(self.probe["slack"])
        except (KeyError, TypeError, ValueError, RuntimeError, binascii.Error) as error:
            raise ModelError(
                f"{path}: the stored result of the probe image is damaged ({error}); export the network again"
            ) from None


def encode_probe(answers: ModelOutputs, slack: float) -> dict[str, Any]:
    """Encode the probe's scores and its first class's heat map as float32 in base64.

    ``slack`` is the rounding tolerance of the heat map.
    """
    scores, classes, heat = answers
    return {"scores": _packed(scores[0]), "class": int(classes[0, 0]), "heat": _packed(heat[0, 0]), "slack": slack}


def _packed(values: Tensor) -> str:
    return base64.b64encode(values.float().numpy().astype("<f4").tobytes()).decode("ascii")


def _floats(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32))


def is_exported(model: str) -> bool:
    """Return whether a model's name has the suffix of an exported file."""
    return Path(model).suffix.lower() in SUFFIXES


def is_foreign_onnx(model: str) -> bool:
    """Return whether a model is an ONNX file that ``export`` did not write; False for damaged and missing files."""
    path = Path(model)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return False
    try:
        return not _of_onnx(path).get("format", "").startswith("recipro-stream")
    except (OSError, ValueError):
        return False


def is_foreign_classifier(model: str) -> bool:
    """Return whether a model is an OpenVINO IR, or a foreign ONNX file with an output (N, classes)."""
    path = Path(model)
    if path.suffix.lower() == ".xml":
        return True
    if not is_foreign_onnx(model):
        return False
    with path.open("rb") as file:
        outputs = [
            entry for graph in _parts(file, (0, _size(file)), {GRAPH}) for entry in _parts(file, graph, {OUTPUT})
        ]
        sides = [_sides(file, entry) for entry in outputs]
    return len(sides) == 1 and (len(sides[0]) == CLASSIFIER_SIDES or sides[0][2:] == [1, 1])


def read_metadata(path: Path) -> ExportMetadata:
    """Return the metadata of an exported file.

    Raises:
        ModelError: the file is missing or damaged, or was not written by ``export``.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; `run.py export --model NAME --output {path}` writes one")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: is empty (0 bytes); export the network again")
    try:
        fields = _of_archive(path) if path.suffix.lower() == ".pt2" else _of_onnx(path)
    except (OSError, ValueError, zipfile.BadZipFile, RecursionError) as error:
        raise ModelError(
            f"{path}: is damaged, or not a {path.suffix} file ({error}); export the network again"
        ) from None
    version = fields.get("format", "")
    if version == DETECTOR_FORMAT:
        raise ModelError(
            f"{path}: is an exported detector, which only other programs can run; `stream` explains the detector "
            "itself: use the name or file from which it was exported"
        )
    if version != FORMAT and version.startswith("recipro-stream"):
        raise ModelError(f"{path}: has format {version!r}, but this version reads {FORMAT!r}; export the network again")
    if version != FORMAT:
        raise ModelError(
            f"{path}: has no labels, input size and layer in its metadata, so `export` did not write it; write a "
            f"file with `run.py export --model NAME --output {path.name}`"
        )
    return _passport(path, fields)


def _passport(path: Path, fields: Mapping[str, str]) -> ExportMetadata:
    fit = read_str(path, fields, "fit")
    if fit not in get_args(Fit):
        raise invalid_value(path, "fit", fit, "stretch, letterbox or crop")
    return ExportMetadata(
        model=read_str(path, fields, "model"),
        labels=names(path, fields, "labels"),
        input_size=input_size(path, fields),
        mean=triple(path, fields, "mean"),
        std=triple(path, fields, "std"),
        fit=fit,  # type: ignore[arg-type]
        layer=read_str(path, fields, "layer"),
        grid=read_int_pair(path, fields, "grid", "[rows, columns]"),
        method=read_str(path, fields, "method"),
        plan=read_str(path, fields, "plan"),
        target=names(path, fields, "target"),
        probe=mapping(path, fields, "proof"),
        made_with=mapping(path, fields, "made_with"),
    )


def _of_archive(path: Path) -> dict[str, str]:
    """Return the metadata of a ``.pt2`` archive; empty if it has none."""
    with zipfile.ZipFile(path) as archive:
        check_declared(archive.infolist(), path.stat().st_size)
        if broken := archive.testzip():
            raise ValueError(f"the checksum of {broken} does not match")
        held = [name for name in archive.namelist() if name.endswith(f"/extra/{EXTRA}")]
        if held and archive.getinfo(held[0]).file_size > MAX_EXTRA_BYTES:
            raise ValueError(f"{EXTRA} is larger than {MAX_EXTRA_BYTES >> 20} MiB")
        fields = json.loads(archive.read(held[0])) if held else {}
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise ValueError(f"{EXTRA} is not a map of strings")
    return fields


def _of_onnx(path: Path) -> dict[str, str]:
    """Return ``metadata_props`` of an ONNX file, without reading the other fields."""
    with path.open("rb") as file:
        entries = [dict(_fields(io.BytesIO(entry), {KEY, VALUE})) for _, entry in _fields(file, {METADATA_PROPS})]
    return {entry.get(KEY, b"").decode(): entry.get(VALUE, b"").decode() for entry in entries}


def _sides(file: BinaryIO, output: tuple[int, int]) -> list[int]:
    """Return an output's shape; 0 for a dynamic dimension."""
    parts = [output]
    for number in (TYPE, TENSOR, SHAPE, DIMENSION):
        parts = [inner for part in parts for inner in _parts(file, part, {number})]
    sides = []
    for start, end in parts:
        file.seek(start)
        stated = end > start and _varint(file) == 8 * DIMENSION_SIZE + VARINT
        sides.append(_varint(file) if stated else 0)
    return sides


def _fields(file: BinaryIO, numbers: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the requested byte fields of a protocol buffer; raises ValueError for a malformed buffer."""
    for number in sorted(numbers):
        for start, end in _parts(file, (0, _size(file)), {number}):
            file.seek(start)
            yield number, file.read(end - start)


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


def _parts(file: BinaryIO, span: tuple[int, int], numbers: set[int]) -> list[tuple[int, int]]:
    """Return (start, end) of the requested byte fields in a span of a file."""
    found, (position, size) = [], span
    while position < size:
        file.seek(position)
        number, kind = divmod(_varint(file), 8)
        length = {EIGHT_BYTES: 8, FOUR_BYTES: 4, VARINT: 0}.get(kind)
        if kind in {VARINT, LENGTH}:
            value = _varint(file)
            length = value if kind == LENGTH else 0
        if length is None:
            raise ValueError("a field has an unknown wire type")
        start, position = file.tell(), file.tell() + length
        if position > size:
            raise ValueError("the file is cut off")
        if kind == LENGTH and number in numbers:
            found.append((start, position))
    return found


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("the file is cut off")

"""What an exported network carries with it: all that is needed to feed it and to read its answers.

It stands in the file itself, as string metadata: ONNX's ``metadata_props``, or one extra file in a ``.pt2`` archive.
Reading it needs neither onnx nor a runtime, and tells a damaged or foreign file before anything of it runs.
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
EXTRA = "recipro-stream.json"
"""The passport's name among a ``.pt2`` archive's extra files."""
MAX_EXTRA_BYTES = 64 << 20
SUFFIXES = {".onnx": "onnx", ".pt2": "torch"}
"""Formats by the ending of their files."""
METADATA_PROPS, KEY, VALUE = 14, 1, 2
"""Field numbers of ONNX's ModelProto and StringStringEntryProto."""
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""Wire types of protocol buffers."""


@dataclass(frozen=True, slots=True)
class ExportMetadata:
    """Who an exported network is."""

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
    """Rows and columns of the heat."""
    method: str
    """``recipro-cam/point``."""
    plan: str
    target: tuple[str, ...]
    """The explained classes, as they were asked for."""
    probe: Mapping[str, Any]
    """The engine's own answer to the first probe picture; see ``encode_probe``."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """Versions."""

    def metadata(self) -> dict[str, str]:
        """Return it as strings."""
        plain = {"format": FORMAT, "model": self.model, "fit": self.fit, "layer": self.layer, "method": self.method}
        listed = {
            "labels": self.labels, "input_size": self.input_size, "mean": self.mean, "std": self.std,
            "grid": self.grid, "target": self.target, "proof": dict(self.probe), "made_with": dict(self.made_with),
        }  # fmt: skip
        return {**plain, "plan": self.plan, **{key: json.dumps(value) for key, value in listed.items()}}

    def probe_outputs(self, path: Path) -> tuple[ModelOutputs, float]:
        """Return what the engine said to the first probe picture, and what rounding may do to the heat.

        Scores (1, K), one class (1, 1), its heat (1, 1, h, w).
        """
        try:
            scores, heat = (_floats(self.probe[key]) for key in ("scores", "heat"))
            chosen = torch.tensor([[int(self.probe["class"])]])
            answers = scores.view(1, len(self.labels)), chosen, heat.view(1, 1, *self.grid)
            return answers, float(self.probe["slack"])
        except (KeyError, TypeError, ValueError, RuntimeError, binascii.Error) as error:
            raise ModelError(f"{path}: its proof is damaged ({error}); export it again") from None


def encode_probe(answers: ModelOutputs, slack: float) -> dict[str, Any]:
    """Return the first answer in words a passport can hold: scores and the first class's heat, float32 in base64.

    ``slack`` is what rounding alone may do to the heat.
    """
    scores, classes, heat = answers
    return {"scores": _packed(scores[0]), "class": int(classes[0, 0]), "heat": _packed(heat[0, 0]), "slack": slack}


def _packed(values: Tensor) -> str:
    return base64.b64encode(values.float().numpy().astype("<f4").tobytes()).decode("ascii")


def _floats(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32))


def is_exported(model: str) -> bool:
    """Say whether a model is named by an exported file, going by its ending."""
    return Path(model).suffix.lower() in SUFFIXES


def read_metadata(path: Path) -> ExportMetadata:
    """Return the passport of an exported file.

    Raises:
        ModelError: there is no such file, it is damaged, or it was not made by this system's export.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; `run.py export --model NAME --output {path}` writes one")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: is empty (0 bytes); export it again")
    try:
        told = _of_archive(path) if path.suffix.lower() == ".pt2" else _of_onnx(path)
    except (OSError, ValueError, zipfile.BadZipFile, RecursionError) as error:
        raise ModelError(f"{path}: is damaged, or no {path.suffix} file ({error}); export it again") from None
    found = told.get("format", "")
    if found != FORMAT and found.startswith("recipro-stream"):
        raise ModelError(f"{path}: was written as {found!r}, this version reads {FORMAT!r}; export it again")
    if found != FORMAT:
        raise ModelError(
            f"{path}: does not say its labels, input size and layer, so it is none of this system's; make one with "
            f"`run.py export --model NAME --output {path.name}`"
        )
    return _passport(path, told)


def _passport(path: Path, told: Mapping[str, str]) -> ExportMetadata:
    fit = read_str(path, told, "fit")
    if fit not in get_args(Fit):
        raise invalid_value(path, "fit", fit, "stretch, letterbox or crop")
    return ExportMetadata(
        model=read_str(path, told, "model"),
        labels=names(path, told, "labels"),
        input_size=input_size(path, told),
        mean=triple(path, told, "mean"),
        std=triple(path, told, "std"),
        fit=fit,  # type: ignore[arg-type]
        layer=read_str(path, told, "layer"),
        grid=read_int_pair(path, told, "grid", "[rows, columns]"),
        method=read_str(path, told, "method"),
        plan=read_str(path, told, "plan"),
        target=names(path, told, "target"),
        probe=mapping(path, told, "proof"),
        made_with=mapping(path, told, "made_with"),
    )


def _of_archive(path: Path) -> dict[str, str]:
    """Return the metadata of a ``.pt2`` archive; empty where it carries none."""
    with zipfile.ZipFile(path) as archive:
        check_declared(archive.infolist(), path.stat().st_size)
        if broken := archive.testzip():
            raise ValueError(f"the checksum of {broken} does not hold")
        held = [name for name in archive.namelist() if name.endswith(f"/extra/{EXTRA}")]
        if held and archive.getinfo(held[0]).file_size > MAX_EXTRA_BYTES:
            raise ValueError(f"{EXTRA} is larger than {MAX_EXTRA_BYTES >> 20} MiB")
        told = json.loads(archive.read(held[0])) if held else {}
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise ValueError(f"{EXTRA} is no map of words")
    return told


def _of_onnx(path: Path) -> dict[str, str]:
    """Return ``metadata_props`` of an ONNX file; everything else in it is passed over unread."""
    with path.open("rb") as file:
        entries = [dict(_fields(io.BytesIO(entry), {KEY, VALUE})) for _, entry in _fields(file, {METADATA_PROPS})]
    return {entry.get(KEY, b"").decode(): entry.get(VALUE, b"").decode() for entry in entries}


def _fields(file: BinaryIO, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Give a protocol buffer's wanted fields of bytes; raise ValueError where it breaks the format's rules."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    while file.tell() < size:
        number, kind = divmod(_varint(file), 8)
        if kind == VARINT:
            _varint(file)
            continue
        length = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind)
        if kind == LENGTH:
            length = _varint(file)
        if length is None:
            raise ValueError("its fields are of no known kind")
        end = file.tell() + length
        if end > size:
            raise ValueError("it ends too early")
        if kind == LENGTH and number in wanted:
            yield number, file.read(length)
        file.seek(end)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it ends too early")

"""Reads and checks file metadata: strings that are plain text or JSON values.

The functions raise ``ModelError``; the message names the file, the key and the rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from pipeline.config import Fractions, Size, Triple
from pipeline.errors import ModelError

_SIZE: Final[TypeAdapter[tuple[int, int]]] = TypeAdapter(Size)
_TRIPLES: Final[Mapping[str, TypeAdapter[tuple[float, float, float]]]] = {
    "mean": TypeAdapter(Triple),
    "std": TypeAdapter(Fractions),
}
"""Values allowed by the command-line options of the same names."""
_SHOWN: Final = 120


def file_format(path: str | Path) -> str:
    """Return the key ``format`` in the metadata of a safetensors file; "" for other files."""
    if not str(path).endswith(".safetensors") or not Path(path).is_file():
        return ""
    try:
        with safe_open(str(path), framework="pt") as file:
            return str((file.metadata() or {}).get("format", ""))
    except (SafetensorError, OSError):
        return ""


def read_str(path: Path, metadata: Mapping[str, str], key: str) -> str:
    """Return the plain string of a key."""
    value = metadata.get(key)
    if not value:
        raise ModelError(f"{path}: its metadata lacks {key!r}; write the file again")
    return value


def read_json(path: Path, metadata: Mapping[str, str], key: str) -> Any:  # noqa: ANN401 - JSON is anything
    """Return the JSON value of a key."""
    try:
        return json.loads(read_str(path, metadata, key))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError
        raise ModelError(f"{path}: metadata {key!r} is not JSON ({error}); write the file again") from None


def invalid_value(path: Path, key: str, value: object, rule: str) -> ModelError:
    """Return the error for a value that breaks a rule."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return ModelError(f"{path}: metadata {key!r} is {shown}; it must be {rule}. Write the file again")


def names(path: Path, metadata: Mapping[str, str], key: str) -> tuple[str, ...]:
    """Return the non-empty list of names of a key."""
    value = read_json(path, metadata, key)
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise invalid_value(path, key, value, "a list of names")
    return tuple(value)


def read_int_pair(path: Path, metadata: Mapping[str, str], key: str, rule: str) -> tuple[int, int]:
    """Return two positive integers; ``rule`` describes them in the error message."""
    value = read_json(path, metadata, key)
    if not _numbers(value, 2) or not all(isinstance(side, int) and side > 0 for side in value):
        raise invalid_value(path, key, value, rule)
    return value[0], value[1]


def input_size(path: Path, metadata: Mapping[str, str]) -> tuple[int, int]:
    """Return the input size, (height, width) in pixels, within the limits of ``--input-size``."""
    value = read_int_pair(path, metadata, "input_size", "[height, width] in pixels")
    try:
        return _SIZE.validate_python(value)
    except ValidationError:
        rule = "[height, width], from 8 to 16384 pixels each and 16 million in all"
        raise invalid_value(path, "input_size", list(value), rule) from None


def triple(path: Path, metadata: Mapping[str, str], key: str) -> tuple[float, float, float]:
    """Return the three numbers of a key."""
    value = read_json(path, metadata, key)
    if not _numbers(value, 3):
        raise invalid_value(path, key, value, "three numbers, for red, green and blue")
    try:
        return _TRIPLES[key].validate_python(value)
    except ValidationError as reason:
        message = reason.errors()[0]["msg"].lower()
        raise invalid_value(path, key, value, f"three numbers, for red, green and blue ({message})") from None


def mapping(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Return the JSON object of a key."""
    value = read_json(path, metadata, key)
    if not isinstance(value, dict):
        raise invalid_value(path, key, value, "an object")
    return value


def _numbers(value: object, count: int) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return False
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)

"""Validated access to the fields of JSON from an untrusted sender.

Pure. Each reader names the key, the value and the rule in its error, and raises nothing but ``WireError``.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn, Self

from pipeline.errors import WireError
from pipeline.frames import Box

MAX_COORDINATE: Final = 1 << 30
"""Maximum absolute value of a coordinate in frame pixels: a point beyond it lies in no image and cannot be drawn."""


def replace_undecodable(text: str) -> str:
    """Return ``text`` in a form that UTF-8 can encode: an undecodable byte of a file name becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def escaped(path: str) -> str:
    """Return a path in a form that UTF-8 can encode: undecodable bytes are escaped, so that names stay distinct."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _reject_constant(word: str) -> NoReturn:
    raise WireError(f"header: {word} is not JSON")


class JsonFields:
    """One JSON object with typed readers of its keys."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    @classmethod
    def parse(cls, packed: bytes) -> Self:
        """Parse a JSON object in UTF-8.

        Raises:
            WireError: the bytes are no JSON object.
        """
        try:
            values = json.loads(packed.decode("utf-8"), parse_constant=_reject_constant)
        except (ValueError, RecursionError) as error:
            raise WireError(f"header: {packed[:40]!r}… is not a JSON object in UTF-8") from error
        if not isinstance(values, dict):
            raise WireError(f"header: a JSON {type(values).__name__}, not an object")
        return cls(values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:  # noqa: ANN401 - JSON gives anything
        """Return the unchecked value of a key; None if it is missing."""
        return self._values.get(key)

    def _error(self, key: str, rule: str) -> WireError:
        value = repr(self._values[key])[:60] if key in self._values else "missing"
        return WireError(f"{self._where}{key}: {value}; it must be {rule}")

    def _value(self, key: str, rule: str) -> Any:  # noqa: ANN401 - JSON gives anything
        if key not in self._values:
            raise self._error(key, rule)
        return self._values[key]

    def text(self, key: str, max_length: int) -> str:
        """Read a string of at most ``max_length`` characters that UTF-8 can encode."""
        rule = f"a string of at most {max_length} characters"
        value = self._value(key, rule)
        if not isinstance(value, str) or len(value) > max_length or replace_undecodable(value) != value:
            raise self._error(key, rule)
        return value

    def integer(self, key: str, minimum: int, maximum: int) -> int:
        """Read an integer in [minimum, maximum]."""
        rule = f"an integer from {minimum} to {maximum}"
        value = self._value(key, rule)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self._error(key, rule)
        return value

    def integers(self, key: str, count: int, minimum: int, maximum: int) -> list[int]:
        """Read a list of ``count`` integers in [minimum, maximum]."""
        rule = f"{count} integers from {minimum} to {maximum}"
        value = self._value(key, rule)
        if not isinstance(value, list) or len(value) != count:
            raise self._error(key, rule)
        if not all(type(each) is int and minimum <= each <= maximum for each in value):
            raise self._error(key, rule)
        return value

    def number(self, key: str) -> float:
        """Read a finite number."""
        value = self._value(key, "a finite number")
        if not _is_finite(value):
            raise self._error(key, "a finite number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """Read a finite number, or None for null and for a missing key."""
        return None if self._values.get(key) is None else self.number(key)

    def point(self, key: str) -> list[float] | None:
        """Read [x, y] in pixels, or None for null and for a missing key."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_coordinate, value)):
            raise self._error(key, f"[x, y] in pixels, each at most {MAX_COORDINATE} either way")
        return [float(each) for each in value]

    def numbers(self, key: str) -> dict[str, float]:
        """Read an object of finite numbers; a missing key gives an empty one."""
        value = self._values.get(key, {})
        if not isinstance(value, dict) or not all(_is_finite(each) for each in value.values()):
            raise self._error(key, "an object of finite numbers")
        return {replace_undecodable(name): float(each) for name, each in value.items()}

    def box(self, key: str) -> Box | None:
        """Read [left, top, right, bottom], or None for null and for a missing key."""
        value = self._values.get(key)
        return None if value is None else self._box_of(key, value)

    def boxes(self, key: str, maximum: int) -> tuple[Box, ...]:
        """Read a list of at most ``maximum`` boxes."""
        value = self._value(key, "a list of boxes")
        if not isinstance(value, list) or len(value) > maximum:
            raise self._error(key, f"a list of at most {maximum} boxes")
        return tuple(self._box_of(key, each) for each in value)

    def _box_of(self, key: str, value: object) -> Box:
        if not isinstance(value, list) or len(value) != 4 or not all(map(_is_coordinate, value)):
            raise self._error(key, f"[left, top, right, bottom] in pixels, each at most {MAX_COORDINATE} either way")
        box = Box(*(float(each) for each in value))
        if not (box.left <= box.right and box.top <= box.bottom):
            raise self._error(key, "[left, top, right, bottom] in pixels, left <= right and top <= bottom")
        return box

    def points(self, key: str, minimum: int, maximum: int) -> tuple[tuple[float, float], ...]:
        """Read a list of ``minimum`` to ``maximum`` points [x, y]."""
        rule = f"a list of {minimum} to {maximum} points [x, y], each number at most {MAX_COORDINATE} either way"
        value = self._value(key, rule)
        if not isinstance(value, list) or not minimum <= len(value) <= maximum:
            raise self._error(key, rule)
        if not all(isinstance(each, list) and len(each) == 2 and all(map(_is_coordinate, each)) for each in value):
            raise self._error(key, rule)
        return tuple((float(x), float(y)) for x, y in value)

    def flag(self, key: str) -> bool:
        """Read true or false."""
        value = self._value(key, "true or false")
        if not isinstance(value, bool):
            raise self._error(key, "true or false")
        return value

    def object(self, key: str) -> JsonFields | None:
        """Read an object, or None for null and for a missing key."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._error(key, "an object or null")
        return JsonFields(value, f"{self._where}{key}.")

    def objects(self, key: str, maximum: int) -> Iterator[JsonFields]:
        """Read a list of at most ``maximum`` objects."""
        value = self._value(key, "a list of objects")
        if not isinstance(value, list) or len(value) > maximum or not all(isinstance(each, dict) for each in value):
            raise self._error(key, f"a list of at most {maximum} objects")
        return (JsonFields(each, f"{self._where}{key}[{index}].") for index, each in enumerate(value))

    def base64_bytes(self, key: str, count: int) -> bytes:
        """Read ``count`` bytes in base64."""
        rule = f"{count} bytes in base64, one per cell of the grid"
        value = self._value(key, rule)
        if not isinstance(value, str) or len(value) != (count + 2) // 3 * 4:
            raise self._error(key, rule)
        try:
            content = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self._error(key, rule) from error
        if len(content) != count:
            raise self._error(key, rule)
        return content


def _is_finite(value: object) -> bool:
    if type(value) is int:
        return abs(value) < 1 << 1000
    return type(value) is float and math.isfinite(value)


def _is_coordinate(value: object) -> bool:
    return _is_finite(value) and isinstance(value, int | float) and abs(value) <= MAX_COORDINATE

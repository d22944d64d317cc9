"""Base model and field types of the wire header: strict types and limits; errors contain key, value and rule."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, NoReturn, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from pipeline.errors import WireError, WireVersionError
from pipeline.frames import Box
from pipeline.input_area import Polygon

VERSION: Final = 1
MAX_FRAME_SIDE: Final = 1 << 20
"""Maximum side of a camera's frame in pixels; the sent image may be smaller than the frame."""
MAX_GRID_SIDE: Final = 4096
MAX_COORDINATE: Final = 1 << 30
"""Maximum absolute value of a coordinate in frame pixels."""


def _error(rule: str) -> PydanticCustomError:
    return PydanticCustomError("wire", "it must be {rule}", {"rule": rule})


def _is_finite(value: object) -> bool:
    if type(value) is int:
        return abs(value) < 1 << 1000
    return type(value) is float and math.isfinite(value)


def _is_coordinate(value: Any) -> bool:  # noqa: ANN401 - JSON gives anything
    return _is_finite(value) and abs(value) <= MAX_COORDINATE


def _read_coordinates(value: object, names: str) -> list[float]:
    if not isinstance(value, list) or len(value) != names.count(",") + 1 or not all(map(_is_coordinate, value)):
        raise _error(f"{names} in pixels, each from -{MAX_COORDINATE} to {MAX_COORDINATE}")
    return [float(each) for each in value]


def _read_point(value: object) -> tuple[float, float]:
    x, y = _read_coordinates(value, "[x, y]")
    return x, y


def _read_box(value: object) -> Box:
    box = Box(*_read_coordinates(value, "[left, top, right, bottom]"))
    if not (box.left <= box.right and box.top <= box.bottom):
        raise _error("[left, top, right, bottom] in pixels, left <= right and top <= bottom")
    return box


def _read_numbers(value: object) -> Mapping[str, float]:
    # Fails at the first wrong number, whereas a model would collect an error for each of possibly millions.
    if not isinstance(value, dict) or not all(map(_is_finite, value.values())):
        raise _error("an object of finite numbers")
    return MappingProxyType({name: float(number) for name, number in value.items()})


def _read_heat(value: Any) -> bytes:  # noqa: ANN401 - JSON gives anything
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise _error("bytes in base64, one per cell of the grid") from None


def check_version(version: int) -> int:
    """Return ``version`` if this reader supports it; raises ``WireVersionError`` for a newer version."""
    if version > VERSION:
        raise WireVersionError(
            f"version: {version} is newer than this reader supports ({VERSION}); update recipro-stream here"
        )
    return version


def _list_schema(count: int, description: str) -> WithJsonSchema:
    items = {"type": "array", "items": {"type": "number"}, "minItems": count, "maxItems": count}
    return WithJsonSchema(items | {"description": description})


Version = Annotated[int, Field(ge=1, le=1 << 31, json_schema_extra={"maximum": VERSION}), AfterValidator(check_version)]
Text = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(max_length=64)]
State = Annotated[str, Field(max_length=32)]
SourcePath = Annotated[
    str,
    Field(max_length=32768),  # a path of 4096 bytes, some of them escaped
    BeforeValidator(lambda path: "" if path is None else path),
]
Index = Annotated[int, Field(ge=0, le=1 << 62)]
Side = Annotated[int, Field(ge=1, le=MAX_FRAME_SIDE)]
GridSide = Annotated[int, Field(ge=0, le=MAX_GRID_SIDE)]
Seconds = Annotated[float, Field(json_schema_extra={"minimum": 0})]
Point = Annotated[tuple[float, float], PlainValidator(_read_point), _list_schema(2, "[x, y] in pixels of the frame")]
Edges = Annotated[Box, PlainValidator(_read_box), _list_schema(4, "[left, top, right, bottom] in pixels of the frame")]
Numbers = Annotated[
    Mapping[str, float],
    PlainValidator(_read_numbers),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
]
HeatBytes = Annotated[
    bytes,
    PlainValidator(_read_heat),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


def always_sent(*keys: str) -> Callable[[dict[str, Any]], None]:
    """Return a function that marks keys as required in a JSON Schema.

    Every publisher sends these keys, but readers accept headers without them.
    """

    def mark(schema: dict[str, Any]) -> None:
        schema["required"] = [key for key in schema["properties"] if key in {*schema["required"], *keys}]

    return mark


class WireModel(BaseModel):
    """Base of all objects in a header: strict types and finite numbers; unknown keys are ignored."""

    # Strict types, except that tuple fields accept lists, because JSON has no tuples.
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Return the model of a JSON object in UTF-8.

        Raises:
            WireError: the bytes are not a JSON object, or a value has the wrong type or range.
        """
        try:
            # pydantic's own parser would use about 1 KB of memory for each empty object in a hostile header.
            values = json.loads(line.decode("utf-8"), parse_constant=_reject_constant)
        except (ValueError, RecursionError) as error:
            raise WireError(f"header: {line[:40]!r}… is not a JSON object in UTF-8") from error
        if not isinstance(values, dict):
            raise WireError(f"header: a JSON {type(values).__name__}, not an object")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _wire_error(error) from None


class WireClass(WireModel):
    """A class and its score, without a heat map."""

    label: Text
    score: float


def scaled_polygon(polygon: Polygon, x: float, y: float) -> Polygon:
    """Return a polygon scaled to an image that is ``x`` times as wide and ``y`` times as high."""
    return tuple((a * x, b * y) for a, b in polygon)


def _reject_constant(word: str) -> NoReturn:
    raise WireError(f"header: {word} is not JSON")


def _wire_error(error: ValidationError) -> WireError:
    """Return the first validation error as a ``WireError`` with its key, value and rule."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).removeprefix(".")
    if first["type"] == "missing":
        return WireError(f"{key}: missing; it must be given")
    rule = re.sub(r"^\w+ (should|must)", "it must", first["msg"]).replace("tuple", "list")
    return WireError(f"{key}: {repr(first['input'])[:60]}; {rule}")

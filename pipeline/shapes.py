"""The configuration of polygons in the image, in fractions of the frame or in pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from pipeline.frames import Region
from pipeline.polygons import Point, polygon_area, self_intersects

MAX_COORDINATE: Final = 1 << 20
Coordinate = Annotated[float, Field(ge=0, le=MAX_COORDINATE, allow_inf_nan=False)]
Corner = tuple[Coordinate, Coordinate]
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, ends of lines, and characters that change the direction of the text around them."""

_BETWEEN: Final = re.compile(r"""[\s"'()=<>!]+""")


def one_line(name: str) -> str:
    """Return ``name`` if it can stand on one line of logs, legends, addresses and file names.

    Raises:
        ValueError: the name has control characters, or characters that change the direction of text.
    """
    if found := _UNSAFE.search(name):
        raise ValueError(
            f"contains the character U+{ord(found[0]):04X}; use one line without control characters, because "
            "logs, legends and file names contain the name"
        )
    return name


def _name_in_rules(name: str) -> str:
    one_line(name)
    if _BETWEEN.search(name):
        plain = _BETWEEN.sub("-", name).strip("-") or "part"
        raise ValueError(
            f"contains a space, quote, bracket or one of = < > !, which rules cannot contain in a name; write for "
            f"instance {plain}"
        )
    return name


ShapeName = Annotated[
    str,
    Field(min_length=1, max_length=64, json_schema_extra={"pattern": r"""^[^\s"'()=<>!]+$"""}),
    AfterValidator(_name_in_rules),
]
MAX_CORNERS: Final = 64
_MIN_FRACTION: Final = 1e-6


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys; the docstrings of its fields are descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class PolygonSettings(StrictModel):
    """A named polygon."""

    name: ShapeName
    """Name of the polygon."""
    polygon: list[Corner] = Field(min_length=3, max_length=MAX_CORNERS)
    """Corners [x, y]: fractions of the frame if no number is above 1, such as [0.5, 1], else pixels."""

    @field_validator("polygon")
    @classmethod
    def _is_plain(cls, polygon: list[Corner]) -> list[Corner]:
        check_polygon(polygon)
        return polygon

    def placed(self, width: int, height: int) -> Region:
        """Return the polygon in pixels, for a frame of a size in pixels."""
        return Region(self.name, in_pixels(self.polygon, width, height))


def check_polygon(polygon: Sequence[Corner]) -> None:
    """Check that a polygon has an area and no crossing sides.

    Raises:
        ValueError: the polygon has no area, less than a pixel, or crossing sides.
    """
    if self_intersects(polygon):
        raise ValueError("its sides cross each other; give the corners in their order along the outline")
    fractions = are_fractions(polygon)
    if polygon_area(polygon) < (_MIN_FRACTION if fractions else 1.0):
        if fractions:
            raise ValueError("has no area; give corners that do not lie on one line")
        raise ValueError(
            "has an area of less than a pixel (if one number is above 1, all are pixels); give corners further apart, "
            "or as fractions of the frame, none above 1"
        )


def are_fractions(corners: Sequence[Sequence[float]]) -> bool:
    """Return whether the corners are fractions of the frame: no number is above 1."""
    return all(max(corner) <= 1.0 for corner in corners)


def in_pixels(corners: Sequence[Corner], width: int, height: int) -> tuple[Point, ...]:
    """Return the corners in pixels, for a frame of a size in pixels."""
    scale_x, scale_y = (width, height) if are_fractions(corners) else (1, 1)
    return tuple((x * scale_x, y * scale_y) for x, y in corners)

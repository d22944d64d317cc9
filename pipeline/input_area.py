"""The part of a camera's frames that the network gets: a region of interest, without masked polygons.

``InputAreaOptions`` has the values of the configuration, in pixels or fractions of the frame; its method ``placed``
returns the ``InputArea`` in pixels for one frame size. The engine crops the frame and paints over the masks; its
results have coordinates of the whole frame.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from pydantic import PlainValidator

from pipeline.errors import SourceError
from pipeline.frames import Box, Frame
from pipeline.polygons import Point, pixels_inside
from pipeline.shapes import MAX_COORDINATE, MAX_CORNERS, are_fractions, check_polygon, in_pixels

Polygon = tuple[Point, ...]
Rectangle = tuple[float, float, float, float]
"""Left, top, width and height."""
Cut = tuple[int, int, int, int]
"""Left, top, right and bottom in whole pixels."""

MAX_MASKS: Final = 64
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class InputArea:
    """The part of a frame that the network gets, in pixels of the frame."""

    cut: Cut
    """The rectangle that is cut out of the frame."""
    roi: Polygon = ()
    """Corners of the region of interest; the rest of ``cut`` is painted over. Empty: the whole frame."""
    masks: tuple[Polygon, ...] = ()
    """Polygons whose pixels are painted over."""

    @classmethod
    def around(cls, roi: Polygon, masks: Sequence[Polygon], width: int, height: int) -> InputArea:
        """Return the input area for a region of interest and masks.

        Args:
            roi: corners of the region in pixels; empty for the whole frame.
            masks: polygons in pixels.
            width: of the frame in pixels.
            height: of the frame in pixels.
        """
        if not roi:
            return cls((0, 0, width, height), (), tuple(masks))
        (left, right), (top, bottom) = (
            (min(max(math.floor(min(axis)), 0), side), max(min(math.ceil(max(axis)), side), 0))
            for axis, side in zip(zip(*roi, strict=True), (width, height), strict=True)
        )
        return cls((left, top, right, bottom), roi, tuple(masks))


def input_box(frame: Frame) -> Box:
    """Return the rectangle of a frame that the network gets, in whole pixels."""
    return Box(0, 0, frame.width, frame.height) if frame.area is None else Box(*frame.area.cut)


@functools.lru_cache(maxsize=256)
def painted_runs(area: InputArea) -> tuple[tuple[int, int], ...]:
    """Return the pixels of ``area.cut`` that are painted over.

    A pixel is painted over if its centre lies in a mask or outside the region of interest.

    Returns:
        (start, stop) of each run of pixels, counted row by row in ``cut``.
    """
    left, top, right, bottom = area.cut
    painted = np.zeros((bottom - top, right - left), np.bool_)
    if area.roi:
        painted |= ~pixels_inside(area.roi, area.cut)
    for mask in area.masks:
        painted |= pixels_inside(mask, area.cut)
    edges = np.flatnonzero(np.diff(painted.ravel(), prepend=False, append=False)).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class InputAreaOptions:
    """A region of interest and masks in the units of the configuration: pixels, or fractions of the frame."""

    roi: Rectangle | Polygon | None = None
    """A rectangle, the corners of a polygon, or None for the whole frame."""
    masks: tuple[Polygon, ...] = ()

    @classmethod
    def of(cls, roi: RoiOption, masks: MaskOption) -> InputAreaOptions:
        """Parse the values of ``roi`` and ``masks`` in a configuration."""
        return cls(read_roi(roi), _read_masks(masks))

    def placed(self, width: int, height: int) -> InputArea:
        """Return the input area in pixels for frames of a size in pixels.

        Raises:
            SourceError: part of the region or a whole mask lies outside the frame, or no pixel is left.
        """
        return _placed(self, width, height)


@functools.lru_cache(maxsize=256)
def _placed(options: InputAreaOptions, width: int, height: int) -> InputArea:
    frames = f"frames of {width}x{height} pixels"
    masks = tuple(in_pixels(mask, width, height) for mask in options.masks)
    for mask, corners in zip(options.masks, masks, strict=True):
        if not pixels_inside(corners, (0, 0, width, height)).any():
            raise SourceError(
                f"mask {as_text(mask)}: covers no pixel of {frames}; give corners inside, as pixels or as fractions "
                "of the frame"
            )
    roi = _placed_roi(options.roi, width, height)
    right, bottom = (max((corner[axis] for corner in roi), default=0.0) for axis in (0, 1))
    if right > width or bottom > height:
        raise SourceError(
            f"roi {as_text(options.roi)}: ends at x {right:g} and y {bottom:g}, outside {frames}; end it at x {width} "
            f"and y {height} at most, or give fractions of the frame, none above 1"
        )
    if roi and not pixels_inside(roi, (0, 0, width, height)).any():
        raise SourceError(f"roi {as_text(options.roi)}: contains no pixel of {frames}; make it larger")
    area = InputArea.around(roi, masks, width, height)
    pixels = (area.cut[2] - area.cut[0]) * (area.cut[3] - area.cut[1])
    if painted_runs(area) == ((0, pixels),):
        raise SourceError(f"mask: covers the whole region of interest in {frames}; make the masks smaller")
    return area


def _placed_roi(roi: Rectangle | Polygon | None, width: int, height: int) -> Polygon:
    """Return the region's corners in pixels; a rectangle has whole pixels."""
    if roi is None:
        return ()
    if isinstance(roi[0], tuple):
        return in_pixels(roi, width, height)
    x, y, wide, high = roi
    across, down = (width, height) if are_fractions([(x, y, wide, high)]) else (1, 1)
    left, right = (math.floor(edge * across + 0.5) for edge in (x, x + wide))
    top, bottom = (math.floor(edge * down + 0.5) for edge in (y, y + high))
    return (left, top), (right, top), (right, bottom), (left, bottom)


def as_text(numbers: object) -> str:
    """Return numbers as YAML in one line."""
    if isinstance(numbers, tuple | list):
        return f"[{', '.join(map(as_text, numbers))}]"
    return f"{numbers:g}" if isinstance(numbers, float) else str(numbers)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COORDINATE:
        raise ValueError(f"{value!r}: should be a number from 0 to {MAX_COORDINATE}")
    return value


def read_polygon(value: object) -> Polygon:
    """Parse a polygon: a list of corners [x, y].

    Raises:
        ValueError: the value is not a polygon, or its area is 0.
    """
    is_list = isinstance(value, list | tuple) and all(
        isinstance(each, list | tuple) and len(each) == 2 for each in value
    )
    if not is_list or not 3 <= len(value) <= MAX_CORNERS:  # type: ignore[arg-type]
        raise ValueError(f"should be 3 to {MAX_CORNERS} corners, such as [[0, 0], [0.5, 0], [0, 0.5]]")
    polygon = tuple((_number(x), _number(y)) for x, y in value)  # type: ignore[attr-defined]
    check_polygon(polygon)
    return polygon


def read_roi(value: object) -> Rectangle | Polygon | None:
    """Parse a region of interest: [x, y, width, height], the text ``x,y,width,height``, or a polygon.

    Raises:
        ValueError: the value is not a region, or its area is 0.
    """
    if isinstance(value, str):
        try:
            value = [float(part) if "." in part else int(part) for part in value.split(",")]
        except ValueError:
            raise ValueError("should be x,y,width,height, such as 100,50,448,448") from None
    if value is None:
        return None
    if isinstance(value, list | tuple) and any(isinstance(each, list | tuple) for each in value):
        return read_polygon(value)
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError("should be [x, y, width, height], or 3 corners or more: [[x, y], ...]")
    return _read_rectangle(*map(_number, value))


def _read_rectangle(x: float, y: float, width: float, height: float) -> Rectangle:
    if width <= 0 or height <= 0:
        raise ValueError("width and height should be above 0")
    if not are_fractions([(x, y, width, height)]):
        if any(number != int(number) for number in (x, y, width, height)):
            raise ValueError("give four whole numbers of pixels, or four fractions of the frame, each at most 1")
    elif max(x + width, y + height) > 1 + _ROUNDING:
        raise ValueError("ends outside the frame: x + width and y + height should be at most 1")
    return x, y, width, height


def _read_masks(value: object) -> tuple[Polygon, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_MASKS:
        raise ValueError(f"should be a list of at most {MAX_MASKS} polygons, such as [[[0, 0], [0.5, 0], [0, 0.5]]]")
    return tuple(_read_mask(number, mask) for number, mask in enumerate(value))


def _read_mask(number: int, value: object) -> Polygon:
    try:
        return read_polygon(value)
    except ValueError as reason:
        raise ValueError(f"polygon {number}: {reason}") from None


# ``Any`` rather than float: whole numbers stay whole numbers when a configuration is written.
RoiOption = Annotated[
    list[Any] | None,
    PlainValidator(lambda value: _lists(read_roi(value)), json_schema_input_type=list[float] | list[list[float]] | str),
]
MaskOption = Annotated[
    list[Any],
    PlainValidator(lambda value: _lists(_read_masks(value)), json_schema_input_type=list[list[list[float]]]),
]


def _lists(value: Any) -> Any:  # noqa: ANN401 - nested tuples to nested lists, which configurations have
    return [_lists(each) for each in value] if isinstance(value, tuple) else value

"""The configuration under ``lines:`` and ``zones:`` of a source."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator

from pipeline.passages.vote import Vote, VoteRule, parse_vote
from pipeline.polygons import Point
from pipeline.shapes import Corner, PolygonSettings, ShapeName, StrictModel, are_fractions, in_pixels

MAX_PLACES: Final = 64
"""Maximum number of zones, and of lines, of a camera."""
Place = TypeVar("Place", "ZoneConfig", "LineConfig")


class ZoneConfig(PolygonSettings):
    """A zone: each passage of an object through it is counted as a part and gets a verdict."""

    name: ShapeName
    """Its name in images, messages, logs and metrics."""
    vote: VoteRule = "mean"
    """Rule for the class of a part: mean (the class with the largest sum of scores), best (the class of the most
    certain frame), worst (a class that is not ok in any frame), or N of M, such as 3 of 5 (a class that is not ok in at
    least N of M consecutive frames)."""
    ok: list[str] | None = None
    """The classes that are ok. Default: the class named ok, if the detector has it. []: parts get no verdict."""
    classes: list[str] | None = Field(default=None, min_length=1)
    """The classes that are counted. Default: all. If every zone and line of a camera has this option, boxes of other
    classes are ignored from the start."""
    anchor: Literal["centre", "bottom"] = "centre"
    """The point of a box that decides whether the box is in the zone: its centre, or the middle of its lower edge,
    which suits road users."""
    min_frames: int = Field(default=2, ge=1, le=1000)
    """Smallest number of frames in the zone; objects with fewer are not counted."""
    gap_seconds: float = Field(default=1.0, gt=0, le=3600)
    """Time after which an object that is not found has left. Within this time, a new track at its expected position
    continues the object."""

    @property
    def parsed_vote(self) -> Vote:
        """The parsed vote."""
        return parse_vote(self.vote)


class LineConfig(StrictModel):
    """A counting line: objects that cross it are counted by class and direction."""

    name: ShapeName
    """Its name in images, messages, logs and metrics."""
    points: list[Corner] = Field(min_length=2, max_length=2)
    """Its two end points [x, y]: fractions of the frame if no number is above 1, else pixels. Forward is from the left
    to the right of the line, seen from the first point towards the second."""
    direction: Literal["both", "forward", "backward"] = "both"
    """The directions that are counted."""
    classes: list[str] | None = Field(default=None, min_length=1)
    """The classes that are counted. Default: all. If every zone and line of a camera has this option, boxes of other
    classes are ignored from the start."""
    anchor: Literal["centre", "bottom"] = "centre"
    """The point of a box that must cross the line: its centre, or the middle of its lower edge, which suits road
    users."""
    min_frames: int = Field(default=2, ge=1, le=1000)
    """Smallest number of frames of an object that is counted."""

    @field_validator("points")
    @classmethod
    def _is_a_line(cls, points: list[Corner]) -> list[Corner]:
        (x, y), (other_x, other_y) = points
        smallest = 1e-3 if are_fractions(points) else 1.0
        if abs(x - other_x) + abs(y - other_y) < smallest:
            raise ValueError("both end points are equal; give two different points")
        return points

    def placed(self, width: int, height: int) -> tuple[Point, Point]:
        """Return the two end points in pixels, for a frame of a size in pixels."""
        first, second = in_pixels(self.points, width, height)
        return first, second


def _check_names(places: list[Place]) -> list[Place]:
    names = [place.name for place in places]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice; give each entry its own name")
    return places


Zones = Annotated[list[ZoneConfig], Field(max_length=MAX_PLACES), AfterValidator(_check_names)]
Lines = Annotated[list[LineConfig], Field(max_length=MAX_PLACES), AfterValidator(_check_names)]

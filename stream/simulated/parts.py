"""Parts of the simulated line: shapes, and rendering under a lamp.

A shape is drawn once per kind and scale; rendering a part rotates it, shades its edges for a fixed lamp and adds the
grain of its finish. Lengths are in units (see ``schedule``); ``scale`` is in pixels per unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stream.simulated.schedule import Part

Mask = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]

LAMP = (-0.6, -0.8)
"""Direction towards the lamp in the image, x to the right and y down."""
RADIUS_UNITS = 104.0
"""Maximum radius of a part at size 1."""

_SUPERSAMPLING = 3  # shapes are drawn this much larger and then reduced, for smooth edges
_COLOURS = {
    "steel": (176, 180, 184),
    "zinc": (150, 156, 160),
    "brass": (196, 164, 98),
    "copper": (176, 120, 94),
    "blue": (72, 108, 168),
    "red": (150, 64, 60),
    "black": (78, 80, 86),
}


@dataclass(frozen=True, slots=True)
class Hole:
    """A round hole in a shape, in units from the part's centre."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class PartShape:
    """The shape of a kind of part before it is rotated."""

    outline: tuple[tuple[float, float], ...]
    """Corners, in units from the centre, before rounding."""
    rounding: float
    """Radius of the rounded corners; the outline also grows by this radius."""
    holes: tuple[Hole, ...]
    """The pattern of drilled holes, of which one may be missing."""
    bore: float
    """Radius of the hole in the middle, which is never missing; 0: no hole."""
    hub: float
    """Radius of the raised ring; 0: no ring."""
    turned: bool
    """True: the grain is circular, as from a lathe; False: straight, as from a mill."""


def _ring(count: int, radius: float, hole: float, start: float = 0.0) -> tuple[Hole, ...]:
    angles = [start + 2 * math.pi * i / count for i in range(count)]
    return tuple(Hole(radius * math.cos(angle), radius * math.sin(angle), hole) for angle in angles)


def _polygon(count: int, radius: float) -> tuple[tuple[float, float], ...]:
    angles = [2 * math.pi * i / count for i in range(count)]
    return tuple((radius * math.cos(angle), radius * math.sin(angle)) for angle in angles)


def _teeth(count: int, root: float, tip: float) -> tuple[tuple[float, float], ...]:
    corners = []
    for i in range(count):
        for part, radius in ((-0.32, root), (-0.16, tip), (0.16, tip), (0.32, root)):
            angle = 2 * math.pi * (i + part) / count
            corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return tuple(corners)


SHAPES = {
    "flange": PartShape(_polygon(72, 90.0), 4.0, _ring(6, 66.0, 14.0), 28.0, 44.0, turned=True),
    "plate": PartShape(
        ((-72.0, -46.0), (72.0, -46.0), (72.0, 46.0), (-72.0, 46.0)),
        18.0,
        tuple(Hole(x, y, 14.0) for x in (-64.0, 64.0) for y in (-38.0, 38.0)),
        25.0,
        0.0,
        turned=False,
    ),
    "bracket": PartShape(_polygon(3, 80.0), 24.0, _ring(3, 70.0, 15.0), 26.0, 36.0, turned=False),
    "gear": PartShape(_teeth(22, 86.0, 98.0), 2.0, _ring(5, 56.0, 15.0), 19.0, 28.0, turned=True),
    "hexagon": PartShape(_polygon(6, 88.0), 12.0, _ring(6, 62.0, 14.0, math.pi / 6), 22.0, 34.0, turned=False),
}


@dataclass(slots=True)
class PartCanvas:
    """The square arrays, in pixels, on which a part is painted."""

    solid: Mask
    """255 on metal, 0 in holes and outside."""
    whole: Mask
    """``solid`` without the holes."""
    colour: Field
    """Reflectance, RGB, (side, side, 3), 0 to 255."""
    light: Field
    """Brightness added by the lamp at bright and dark edges, (side, side)."""
    transform: npt.NDArray[np.float64]
    """2x3 matrix from units of the shape to pixels of the canvas."""
    scale: float
    """Pixels per unit."""

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel (column, row) of a point of the shape in units."""
        column, row = self.transform @ (x, y, 1.0)
        return float(column), float(row)


def draw_part(part: Part, shape: PartShape, holes: tuple[Hole, ...], scale: float) -> PartCanvas:
    """Return the canvas of a part without defects, with ``holes`` drilled."""
    outline, relief = _drawn(part.kind, scale)
    solid = outline.copy()
    centre = (outline.shape[0] - 1) / 2
    for hole in (*holes, Hole(0.0, 0.0, shape.bore)):
        if hole.radius:
            point = (centre + hole.x * scale, centre + hole.y * scale)
            cv2.circle(solid, _fixed(point), round(hole.radius * scale * 16), 0, -1, cv2.LINE_AA, 4)
    cosine, sine = part.size * math.cos(part.angle), part.size * math.sin(part.angle)
    rotation = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    rotation[:, 2] = centre - rotation[:, :2] @ (centre, centre)
    turned = cv2.warpAffine(cv2.merge([solid, outline, relief]), rotation, solid.shape[::-1], flags=cv2.INTER_LINEAR)
    solid, whole, relief = (np.asarray(layer, np.uint8) for layer in cv2.split(turned))
    rng = np.random.default_rng((*part.seed, 1))
    to_canvas = rotation * scale
    to_canvas[:, 2] = centre
    light = slope(cv2.GaussianBlur(solid, (0, 0), 1.3 * scale), 0.16 * scale) + slope(relief, 0.10 * scale)
    colour = _grain(shape, part, solid.shape[0], scale, rng)[..., None] * np.array(_COLOURS[part.finish], np.float32)
    return PartCanvas(solid, whole, colour, light, to_canvas, scale)


def slope(height: npt.NDArray[Any], strength: float) -> Field:
    """Return the shading of the height map ``height`` under the lamp."""
    across = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3)
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3)
    return np.asarray(cv2.addWeighted(across, -LAMP[0] * strength, down, -LAMP[1] * strength, 0.0), np.float32)


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0] * 16), round(point[1] * 16)


@lru_cache(maxsize=64)
def _drawn(kind: str, scale: float) -> tuple[Mask, Mask]:
    """Return outline (filled, without holes) and relief of a kind of part."""
    shape = SHAPES[kind]
    side = canvas_side(scale)
    big = scale * _SUPERSAMPLING
    outline = np.zeros((side * _SUPERSAMPLING, side * _SUPERSAMPLING), np.uint8)
    relief = np.full_like(outline, 130)
    centre = (side * _SUPERSAMPLING - 1) / 2
    corners = [np.array([_fixed((centre + x * big, centre + y * big)) for x, y in shape.outline], np.int32)]
    cv2.fillPoly(outline, corners, 255, cv2.LINE_AA, 4)
    cv2.polylines(outline, corners, True, 255, max(1, round(2 * shape.rounding * big)), cv2.LINE_AA, 4)
    middle = _fixed((centre, centre))
    if shape.hub:
        cv2.circle(relief, middle, round(shape.hub * big * 16), 200, -1, cv2.LINE_AA, 4)
    text = f"{kind[:2].upper()}{len(shape.holes)}7"
    origin = (round(centre - 17 * big), round(centre + ((shape.hub or shape.bore) + 14) * big))
    stroke = max(1, round(1.7 * big))
    cv2.putText(relief, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.42 * big, 10, stroke, cv2.LINE_AA)
    small = (side, side)
    return (
        np.asarray(cv2.resize(outline, small, interpolation=cv2.INTER_AREA), np.uint8),
        np.asarray(cv2.GaussianBlur(cv2.resize(relief, small, interpolation=cv2.INTER_AREA), (3, 3), 0), np.uint8),
    )


def canvas_side(scale: float) -> int:
    """Return the side in pixels of a canvas on which any part fits."""
    return 2 * math.ceil((RADIUS_UNITS * 1.06 + 13.0) * scale) + 1


def _grain(shape: PartShape, part: Part, side: int, scale: float, rng: np.random.Generator) -> Field:
    """Return the grain of a part, circular or straight, as brightness factors near 1."""
    if shape.turned:
        radius, around = _polar(side)
        rings = rng.normal(1.0, 0.035, round(side * 0.75 / scale) + 2).astype(np.float32)
        circles = cv2.remap(rings[None], radius / scale, np.zeros_like(radius), cv2.INTER_LINEAR)
        glare = np.cos(2.0 * (around - float(rng.uniform(0.0, math.pi)))) * 0.10
        return np.asarray(circles + glare, np.float32)
    lines = _lines(scale)
    left, top = (int(v) for v in rng.integers(0, 64, 2))
    angle = math.degrees(part.angle) + (0.0 if rng.random() < 0.7 else 90.0)
    centre = ((lines.shape[1] - 1) / 2, (lines.shape[0] - 1) / 2)
    rotation = cv2.getRotationMatrix2D(centre, -angle, 1.0)
    rotation[:, 2] += (side - 1) / 2 - centre[0] + left - 32, (side - 1) / 2 - centre[1] + top - 32
    grain = cv2.warpAffine(lines, rotation, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(grain, np.float32)


@lru_cache(maxsize=16)
def _polar(side: int) -> tuple[Field, Field]:
    span = np.arange(side, dtype=np.float32) - (side - 1) / 2
    radius, angle = cv2.cartToPolar(*np.meshgrid(span, span))
    return np.asarray(radius, np.float32), np.asarray(angle, np.float32)


@lru_cache(maxsize=16)
def _lines(scale: float) -> Field:
    """Return straight milling marks as brightness factors, the same for every belt."""
    side = round(canvas_side(scale) * 1.5) + 64
    noise = np.random.default_rng(5).normal(0.0, 1.0, (side, side)).astype(np.float32)
    fine = cv2.GaussianBlur(noise, (0, 0), sigmaX=16.0 * scale, sigmaY=0.5 * scale)
    broad = cv2.GaussianBlur(noise, (0, 0), sigmaX=40.0 * scale, sigmaY=5.0 * scale)
    return np.asarray(1.0 + 0.04 * fine / fine.std() + 0.02 * broad / broad.std(), np.float32)

"""The four defects of the simulated line, each painted on one part.

A painter changes the canvas in place and returns the defect's tight box in canvas pixels. For ``missing_hole`` the part
is drawn without one hole; its painter adds the scribed ring and the punch mark of the hole that was not drilled.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.frames import Box
from stream.simulated.parts import Hole, Mask, PartCanvas, slope

_BRIGHT = 105.0
"""Stains are dark on metal brighter than this (0 to 255), and pale on darker metal."""
_SHINY = 125.0
"""Scratches are dark on metal brighter than this, and bright on darker metal and coloured coats."""


def scratch(canvas: PartCanvas, rng: np.random.Generator) -> Box:
    """Paint one to three scratches, 50 to 85 units long."""
    length = rng.uniform(50.0, 85.0) * canvas.scale
    (x, y), angle = _on_metal(canvas, rng, reach=length * 0.5, width=6.0 * canvas.scale)
    along = np.array((math.cos(angle), math.sin(angle)))
    across = np.array((-along[1], along[0]))
    cut = np.zeros_like(canvas.solid)
    steps = np.linspace(-0.5, 0.5, 14)[:, None]
    for number in range(int(rng.integers(1, 4))):
        bow = rng.uniform(-0.10, 0.10) * length * (1 - 4 * steps**2)
        wobble = np.cumsum(rng.normal(0.0, 0.15 * canvas.scale, (14, 1)), axis=0)
        fraction = 1.0 if number == 0 else rng.uniform(0.45, 0.8)
        sideways = number * rng.uniform(3.0, 5.5) * canvas.scale * (1 if number % 2 else -1)
        points = (x, y) + steps * fraction * length * along + (bow + wobble + sideways) * across
        fixed = np.round(points * 16).astype(np.int32)[None]
        cv2.polylines(cut, fixed, False, 255, max(1, round(rng.uniform(1.7, 2.8) * canvas.scale)), cv2.LINE_AA, 4)
    cut = np.minimum(cut, canvas.solid)
    soft = cut.astype(np.float32) / 255.0
    lip = np.clip(cv2.GaussianBlur(soft, (0, 0), 1.6 * canvas.scale) - soft, 0.0, 1.0)
    strength = rng.uniform(0.75, 1.0)
    if _brightness(canvas) > _SHINY:
        canvas.colour *= (1.0 - 0.62 * strength * soft)[..., None]
        canvas.light += lip * strength * 60.0
    else:
        canvas.colour *= (1.0 - 0.8 * strength * lip)[..., None]
        canvas.light += soft * strength * 105.0
    return _box_of(cut)


def dent(canvas: PartCanvas, rng: np.random.Generator) -> Box:
    """Paint a dent of 17 to 25 units radius, with shading."""
    radius = rng.uniform(17.0, 25.0) * canvas.scale
    (x, y), angle = _on_metal(canvas, rng, reach=radius * 0.7, width=radius * 1.4)
    axes = (radius, radius * rng.uniform(0.75, 1.0))
    hollow = np.zeros_like(canvas.solid)
    fixed = (round(x * 16), round(y * 16)), (round(axes[0] * 16), round(axes[1] * 16))
    cv2.ellipse(hollow, *fixed, math.degrees(angle), 0.0, 360.0, 255, -1, cv2.LINE_AA, 4)
    depth = cv2.GaussianBlur(hollow, (0, 0), radius * 0.30)
    fraction = cv2.min(cv2.GaussianBlur(hollow, (0, 0), 1.5 * canvas.scale), canvas.solid).astype(np.float32) / 255.0
    shading = slope(depth, -1.0)
    strongest = float(np.abs(shading).max()) or 1.0
    canvas.light += shading * (rng.uniform(76.0, 100.0) / strongest) * fraction
    canvas.colour *= (1.0 - 0.22 * fraction)[..., None]
    return _box_of(np.minimum(hollow, canvas.solid))


def stain(canvas: PartCanvas, rng: np.random.Generator) -> Box:
    """Paint a stain of 20 to 34 units radius with ragged edges."""
    radius = rng.uniform(20.0, 34.0) * canvas.scale
    (x, y), angle = _on_metal(canvas, rng, reach=radius * 0.7, width=radius * 1.2)
    corners = 28
    rough = rng.normal(0.0, 1.0, corners)
    ragged = 1.0 + 0.16 * np.sum([np.roll(rough, k) for k in range(-2, 3)], axis=0) / math.sqrt(5)
    angles = np.linspace(0.0, 2 * math.pi, corners, endpoint=False)
    reach = radius * np.clip(ragged, 0.6, 1.4)
    shape = np.stack([reach * np.cos(angles), reach * rng.uniform(0.7, 1.0) * np.sin(angles)], axis=1)
    spin = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    blot = np.zeros_like(canvas.solid)
    cv2.fillPoly(blot, [np.round((shape @ spin + (x, y)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    blot = np.minimum(np.asarray(cv2.GaussianBlur(blot, (0, 0), 1.4 * canvas.scale), np.uint8), canvas.solid)
    fraction = blot.astype(np.float32) / 255.0
    rim = np.clip(fraction - cv2.GaussianBlur(fraction, (0, 0), 4.5 * canvas.scale), 0.0, 1.0)
    tint = _tint(_brightness(canvas), rng)
    cover = np.clip(fraction * rng.uniform(0.62, 0.8) + rim * 0.8, 0.0, 1.0)[..., None]
    canvas.colour += (tint - canvas.colour) * cover
    return _box_of(blot)


def undrilled(canvas: PartCanvas, hole: Hole) -> Box:
    """Paint a missing hole's marks: a scribed ring and a punch mark."""
    x, y = canvas.to_pixels(hole.x, hole.y)
    radius = hole.radius * canvas.scale
    fixed = (round(x * 16), round(y * 16))
    ring, dimple = np.zeros_like(canvas.solid), np.zeros_like(canvas.solid)
    cv2.circle(ring, fixed, round(radius * 16), 255, max(1, round(1.8 * canvas.scale)), cv2.LINE_AA, 4)
    cv2.circle(dimple, fixed, round(3.2 * canvas.scale * 16), 255, -1, cv2.LINE_AA, 4)
    canvas.colour *= (1.0 - 0.5 * ring.astype(np.float32) / 255.0 - 0.6 * dimple.astype(np.float32) / 255.0)[..., None]
    canvas.light += slope(ring, -0.06 * canvas.scale)
    return Box(x - radius, y - radius, x + radius, y + radius)


PAINTERS: dict[str, Callable[[PartCanvas, np.random.Generator], Box]] = {
    "scratch": scratch,
    "dent": dent,
    "stain": stain,
}
"""Defects that are painted on a finished part."""


def _brightness(canvas: PartCanvas) -> float:
    """Return the mean reflectance of the metal, 0 to 255."""
    return float(canvas.colour[canvas.solid > 0].mean())


def _tint(brightness: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a colour with high contrast to metal of this brightness (0 to 255)."""
    dark = ((96, 52, 24), (44, 36, 28), (70, 64, 30))
    pale = ((196, 190, 172), (206, 168, 118))
    choices = dark if brightness > _BRIGHT else pale
    return np.array(choices[int(rng.integers(len(choices)))], np.float32)


def _on_metal(
    canvas: PartCanvas, rng: np.random.Generator, *, reach: float, width: float
) -> tuple[tuple[float, float], float]:
    """Return centre and angle (radians) of a bar on metal.

    Draws 24 random bars and returns the bar with the largest share of its points on metal. ``reach`` is half the length
    of the bar and ``width`` its width, in pixels.
    """
    rim = cv2.erode(canvas.solid, np.ones((3, 3), np.uint8), iterations=max(1, round(3 * canvas.scale)))
    rows, columns = np.nonzero(rim)
    best, chosen = -1.0, ((0.0, 0.0), 0.0)
    grid_along, grid_across = (
        g.ravel() for g in np.meshgrid(np.linspace(-reach, reach, 9), (-width / 2, 0, width / 2))
    )
    side = rim.shape[0] - 1
    for _ in range(24):
        pick = int(rng.integers(len(rows)))
        angle = float(rng.uniform(0.0, math.pi))
        xs = columns[pick] + grid_along * math.cos(angle) - grid_across * math.sin(angle)
        ys = rows[pick] + grid_along * math.sin(angle) + grid_across * math.cos(angle)
        inside = rim[np.clip(ys, 0, side).astype(int), np.clip(xs, 0, side).astype(int)] > 0
        if inside.mean() > best:
            best, chosen = float(inside.mean()), ((float(columns[pick]), float(rows[pick])), angle)
        if best == 1.0:
            break
    return chosen


def _box_of(mask: Mask) -> Box:
    left, top, width, height = cv2.boundingRect((mask > 40).astype(np.uint8))
    return Box(left, top, left + width, top + height)

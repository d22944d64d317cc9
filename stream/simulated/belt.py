"""The simulated conveyor: belt, rails and distractors.

Distractors are dust, oil, scuffs, paper labels and screws. Lengths are in units (see ``schedule``); ``scale`` is in
pixels per unit.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from pipeline.frames import Image
from stream.simulated.parts import Field
from stream.simulated.schedule import HEIGHT_UNITS, SLOT_UNITS

RAIL_UNITS = 30
"""Height of the rails at the image's top and bottom."""
_PERIOD_SLOTS = 4
_COLOURS = ((64, 72, 70), (52, 84, 70), (84, 86, 88), (56, 66, 92), (96, 88, 74))


def bare_belt(seed: int, slot: int, scale: float) -> Image:
    """Return the belt of one slot, a new uint8 RGB array."""
    weave = _weave(scale)
    slot_pixels = weave.shape[1] // _PERIOD_SLOTS
    left = slot % _PERIOD_SLOTS * slot_pixels
    colour = np.array(_COLOURS[int(np.random.default_rng((seed, 5)).integers(len(_COLOURS)))], np.float32)
    piece = weave[:, left : left + slot_pixels, None] * colour
    return np.asarray(cv2.convertScaleAbs(piece).reshape(piece.shape), np.uint8)


def draw_distractors(canvas: Image, rng: np.random.Generator, scale: float, clutter: float) -> None:
    """Draw distractors on ``canvas`` in place, away from the ends of the slot.

    ``clutter`` scales the probability of labels and screws; 1 is the default of the line.
    """
    if rng.random() < 0.5:
        _oil(canvas, rng, scale)
    if rng.random() < 0.4:
        _scuff(canvas, rng, scale)
    if rng.random() < 0.18 * clutter:
        _paper_label(canvas, rng, scale)
    if rng.random() < 0.18 * clutter:
        _screw(canvas, rng, scale)
    dust(canvas, rng, scale, int(rng.integers(8, 26)))


def dust(canvas: Image, rng: np.random.Generator, scale: float, count: int) -> None:
    """Draw ``count`` specks of light dust on ``canvas``, in place."""
    height, width = canvas.shape[:2]
    for _ in range(count):
        x, y = rng.uniform(4, width - 4), rng.uniform(4, height - 4)
        tone = int(rng.integers(120, 200))
        radius = max(6, round(rng.uniform(0.5, 1.3) * scale * 16))
        cv2.circle(canvas, (round(x * 16), round(y * 16)), radius, (tone, tone, tone - 12), -1, cv2.LINE_AA, 4)


@lru_cache(maxsize=8)
def rails(width: int, scale: float) -> Image:
    """Return one rail, uint8 RGB (rail height, width, 3); the last row is the inner edge."""
    rows = round(RAIL_UNITS * scale)
    down = np.linspace(0.0, 1.0, rows)
    tone = 118 + 40 * np.exp(-(((down - 0.35) / 0.18) ** 2)) - 70 * np.clip(down - 0.82, 0.0, 1.0) / 0.18
    strip = np.repeat(np.repeat(tone[:, None, None], width, axis=1), 3, axis=2)
    strip += np.random.default_rng(8).normal(0.0, 2.0, (1, width, 1))
    image = np.clip(strip * (0.98, 1.0, 1.02), 0, 255).astype(np.uint8)
    for middle in np.arange(60 * scale, width, 150 * scale):
        centre = (round(middle * 16), round(rows * 0.36 * 16))
        cv2.circle(image, centre, round(7.5 * scale * 16), (70, 72, 74), -1, cv2.LINE_AA, 4)
        cv2.circle(image, centre, round(6.0 * scale * 16), (150, 152, 156), -1, cv2.LINE_AA, 4)
        cv2.circle(image, centre, round(3.0 * scale * 16), (52, 52, 54), -1, cv2.LINE_AA, 4)
    return image


@lru_cache(maxsize=8)
def _weave(scale: float) -> Field:
    """Return the belt's texture as brightness factors near 1, with a period of four slots."""
    rows, columns = round(HEIGHT_UNITS * scale), _PERIOD_SLOTS * round(SLOT_UNITS * scale)
    rng = np.random.default_rng(9)
    x = np.arange(columns, dtype=np.float32)[None] / columns * (2 * math.pi)
    y = np.arange(rows, dtype=np.float32)[:, None] / (HEIGHT_UNITS * scale) * (2 * math.pi)
    threads = np.sin(112 * x + 48 * y) * np.sin(112 * x - 48 * y)
    coarse = rng.normal(0.0, 1.0, (9, 20)).astype(np.float32)
    coarse = np.concatenate([coarse[:, -2:], coarse, coarse[:, :2]], axis=1)
    wide = cv2.resize(coarse, (columns * 24 // 20, rows), interpolation=cv2.INTER_CUBIC)
    margin = (wide.shape[1] - columns) // 2
    clouds = wide[:, margin : margin + columns]
    grit = rng.normal(0.0, 1.0, (rows, columns)).astype(np.float32)
    brightness = 1.0 + 0.10 * threads + 0.05 * clouds + 0.05 * grit
    tick_rows = slice(round((RAIL_UNITS + 7) * scale), round((RAIL_UNITS + 13) * scale))
    pitch = round(SLOT_UNITS * scale) / 4
    for tick in range(4 * _PERIOD_SLOTS):
        left = round(tick * pitch)
        brightness[tick_rows, left : left + max(1, round(3 * scale))] = 2.1
    return np.asarray(np.clip(brightness, 0.4, 2.2), np.float32)


def _random_point(canvas: Image, rng: np.random.Generator, margin: float) -> tuple[float, float]:
    height, width = canvas.shape[:2]
    return float(rng.uniform(margin, width - margin)), float(rng.uniform(1.6 * margin, height - 1.6 * margin))


def _oil(canvas: Image, rng: np.random.Generator, scale: float) -> None:
    x, y = _random_point(canvas, rng, 44 * scale)
    reach = round(42 * scale)
    column, row = round(x) - reach, round(y) - reach
    region = canvas[max(row, 0) : row + 2 * reach, max(column, 0) : column + 2 * reach]
    blot = np.zeros(region.shape[:2], np.uint8)
    for _ in range(4):
        centre = (round(reach + rng.normal(0, 7 * scale)), round(reach + rng.normal(0, 7 * scale)))
        cv2.ellipse(
            blot,
            centre,
            (round(rng.uniform(8, 20) * scale), round(rng.uniform(6, 14) * scale)),
            float(rng.uniform(0, 180)),
            0.0,
            360.0,
            255,
            -1,
        )
    soft = cv2.GaussianBlur(blot, (0, 0), 3.0 * scale).astype(np.float32)[..., None] / 255.0
    region[:] = (region * (1.0 - rng.uniform(0.25, 0.5) * soft)).astype(np.uint8)


def _scuff(canvas: Image, rng: np.random.Generator, scale: float) -> None:
    x, y = _random_point(canvas, rng, 40 * scale)
    angle, length = rng.uniform(0, math.pi), rng.uniform(20, 38) * scale
    step = np.array((math.cos(angle), math.sin(angle))) * length
    ends = np.round((np.array((x, y)) + np.outer((-1.0, 1.0), step)) * 16).astype(int)
    tone = [int(v) for v in np.clip(canvas[round(y), round(x)].astype(int) + 34, 0, 255)]
    cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), tone, max(1, round(1.6 * scale)), cv2.LINE_AA, 4)


def _corners(
    x: float, y: float, angle: float, points: list[tuple[float, float]]
) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array(
        [(round((x + a * cosine - b * sine) * 16), round((y + a * sine + b * cosine) * 16)) for a, b in points],
        np.int32,
    )


def _paper_label(canvas: Image, rng: np.random.Generator, scale: float) -> None:
    x, y = _random_point(canvas, rng, 36 * scale)
    angle = rng.uniform(0, math.pi)
    half_width, half_height = 26 * scale, 15 * scale
    sheet = [
        (-half_width, -half_height),
        (half_width, -half_height),
        (half_width, half_height),
        (-half_width, half_height),
    ]
    cv2.fillPoly(canvas, [_corners(x, y, angle, sheet)], (214, 212, 202), cv2.LINE_AA, 4)
    left = -half_width + 4 * scale
    while left < half_width - 5 * scale:
        bar = rng.uniform(0.8, 2.6) * scale
        stripe = [(left, -9 * scale), (left + bar, -9 * scale), (left + bar, 6 * scale), (left, 6 * scale)]
        cv2.fillPoly(canvas, [_corners(x, y, angle, stripe)], (40, 40, 44), cv2.LINE_AA, 4)
        left += bar + rng.uniform(1.2, 3.0) * scale


def _screw(canvas: Image, rng: np.random.Generator, scale: float) -> None:
    x, y = _random_point(canvas, rng, 34 * scale)
    angle = rng.uniform(0, 2 * math.pi)
    shaft = [
        (0.0, -3.5 * scale),
        (26 * scale, -3.5 * scale),
        (29 * scale, 0.0),
        (26 * scale, 3.5 * scale),
        (0.0, 3.5 * scale),
    ]
    head = [(-7 * scale, -8 * scale), (0.0, -8 * scale), (0.0, 8 * scale), (-7 * scale, 8 * scale), (-9 * scale, 0.0)]
    shadow = 3 * scale
    for outline in (shaft, head):
        cv2.fillPoly(canvas, [_corners(x + shadow, y + shadow, angle, outline)], (24, 26, 26), cv2.LINE_AA, 4)
    cv2.fillPoly(canvas, [_corners(x, y, angle, shaft)], (138, 140, 144), cv2.LINE_AA, 4)
    for thread in np.arange(4, 26, 3.2):
        stroke = _corners(x, y, angle, [(thread * scale, -3.5 * scale), ((thread + 1) * scale, 3.5 * scale)])
        cv2.line(canvas, stroke[0].tolist(), stroke[1].tolist(), (92, 94, 98), max(1, round(scale)), cv2.LINE_AA, 4)
    cv2.fillPoly(canvas, [_corners(x, y, angle, head)], (168, 170, 174), cv2.LINE_AA, 4)

"""The simulated camera: uneven and moving light, focus, sensor noise.

A frame costs one crop and four saturating 8-bit operations; their gain and noise fields are computed once.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from pipeline.frames import Image

_UNITY = 128  # the 8-bit value of a gain of 1
_DRIFT = 32  # amplitude of the light's movement, in units (see schedule)
_NOISE_LEVELS = (2.5, 3.5, 4.5)


class CameraModel:
    """One camera's light, focus and noise, fixed by ``seed``."""

    def __init__(self, *, seed: int, size: tuple[int, int], scale: float) -> None:
        rng = np.random.default_rng((seed, 6))
        self._seed = seed
        self._size = size
        self._drift_pixels = round(_DRIFT * scale)
        self._light = _light(rng, size, self._drift_pixels, scale)
        self._noise = _noise(size, _NOISE_LEVELS[int(rng.integers(len(_NOISE_LEVELS)))])
        self._focus = scale * rng.uniform(0.45, 0.75)
        self._phase = rng.uniform(0.0, 2 * math.pi, 3)

    def expose(self, scene: Image, index: int, seconds: float) -> Image:
        """Return the camera's image of ``scene`` at ``seconds``, a new array."""
        width, height = self._size
        rng = np.random.default_rng((self._seed, 7, index))
        drift, defocus, dim = np.sin(seconds * np.array((0.45, 0.8, 0.6)) + self._phase)
        shift = round(self._drift_pixels * (1 + drift))
        gain = 1.0 + 0.08 * float(dim) + float(rng.normal(0.0, 0.012))
        light = self._light[:, shift : shift + width]
        image = cv2.multiply(scene, light, scale=gain / _UNITY)
        sigma = self._focus * (1.0 + 0.3 * float(defocus))
        image = cv2.GaussianBlur(image, (5, 5), sigma * 1.25, sigmaY=sigma)
        bright, dark = self._noise
        for tile, apply in ((bright, cv2.add), (dark, cv2.subtract)):
            row, column = (int(v) for v in rng.integers(0, 64, 2))
            apply(image, tile[row : row + height, column : column + width], dst=image)
        return np.asarray(image, np.uint8)


def _light(rng: np.random.Generator, size: tuple[int, int], drift: int, scale: float) -> Image:
    """Return the lamp's gain, ``_UNITY`` = 1, for a field wider than the image."""
    width, height = size[0] + 2 * drift, size[1]
    y, x = np.mgrid[-1:1:64j, -1:1:96j].astype(np.float32)
    angle = rng.uniform(0.0, 2 * math.pi)
    gain = 1.04 + rng.uniform(0.05, 0.14) * (x * math.cos(angle) + y * math.sin(angle))
    glow_x, glow_y = rng.uniform(-0.6, 0.6, 2)
    gain += rng.uniform(0.05, 0.16) * np.exp(-(((x - glow_x) / 0.45) ** 2 + ((y - glow_y) / 0.6) ** 2))
    gain *= 1.0 - rng.uniform(0.08, 0.2) * (0.6 * x**2 + 0.4 * y**2)
    field = cv2.resize(gain, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        field *= _bar_shadow(rng, (width, height), scale)
    tint = 1.0 + rng.uniform(-0.05, 0.05, 3)
    return np.clip(np.asarray(field)[..., None] * tint * _UNITY, 30, 235).astype(np.uint8)


def _bar_shadow(
    rng: np.random.Generator, size: tuple[int, int], scale: float
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the gain of the soft shadow of a cable or a strut across the image."""
    shade = np.zeros((size[1], size[0]), np.uint8)
    top, bottom = rng.uniform(0.1, 0.9, 2) * size[0]
    thickness = max(2, round(rng.uniform(14, 40) * scale))
    cv2.line(shade, (round(top), -20), (round(bottom), size[1] + 20), 255, thickness)
    soft = cv2.GaussianBlur(shade, (0, 0), rng.uniform(4.0, 9.0) * scale)
    return np.asarray(1.0 - rng.uniform(0.12, 0.25) * soft.astype(np.float32) / 255.0, np.float32)


@lru_cache(maxsize=8)
def _noise(size: tuple[int, int], sigma: float) -> tuple[Image, Image]:
    """Return two tiles of noise: one to add, one to subtract."""
    width, height = size
    rng = np.random.default_rng(10)
    tiles = []
    for _ in range(2):
        field = rng.standard_normal((height + 64, width + 64, 3), np.float32)
        tiles.append(np.clip(field * sigma + 0.5, 0, 255).astype(np.uint8))
    return tiles[0], tiles[1]

"""Geometry and blending of heat maps, compared with slow reference loops."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overlays.render.colormaps import COLORMAPS, palette
from overlays.render.heatmap import draw_box, draw_contour, heat_levels, hottest_box, paint_heat
from pipeline.errors import ConfigError
from pipeline.frames import Box


def reference_levels(heat: np.ndarray, region: Box, height: int, width: int) -> np.ndarray:
    """255 * heat of every pixel, by the words of the module: float64, pixel by pixel."""
    rows, columns = heat.shape
    levels = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            if not region.holds(x + 0.5, y + 0.5):
                continue
            u = (x + 0.5 - region.left) / region.width * columns - 0.5
            v = (y + 0.5 - region.top) / region.height * rows - 0.5
            u, v = min(max(u, 0.0), columns - 1.0), min(max(v, 0.0), rows - 1.0)
            c, r = math.floor(u), math.floor(v)
            c2, r2 = min(c + 1, columns - 1), min(r + 1, rows - 1)
            upper = float(heat[r, c]) * (1 - (u - c)) + float(heat[r, c2]) * (u - c)
            lower = float(heat[r2, c]) * (1 - (u - c)) + float(heat[r2, c2]) * (u - c)
            levels[y, x] = 255 * (upper * (1 - (v - r)) + lower * (v - r))
    return levels


def reference_blend(image: np.ndarray, levels: np.ndarray, name: str, opacity: float) -> np.ndarray:
    """The picture with the heat on it, in float64."""
    colours = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], getattr(cv2, COLORMAPS[name]))[:, 0, ::-1]
    alpha = np.rint(opacity * levels)[..., None] / 255
    return image * (1 - alpha) + colours[levels].astype(np.float64) * alpha


def some_heat(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    heat = np.random.default_rng(seed).random((rows, columns), dtype=np.float32)
    heat.flat[0], heat.flat[-1] = 0.0, 1.0
    return heat


edges = st.floats(-20, 60, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    corner=st.tuples(edges, edges),
    extent=st.tuples(st.floats(0.25, 90, width=32), st.floats(0.25, 90, width=32)),
)
@example(shape=(7, 7), size=(30, 40), corner=(0, 0), extent=(40, 30))  # stretch
@example(shape=(7, 7), size=(30, 40), corner=(5, 0), extent=(30, 30))  # crop
@example(shape=(7, 7), size=(30, 40), corner=(0, -5), extent=(40, 40))  # letterbox
@example(shape=(7, 7), size=(30, 40), corner=(-5.25, 3.5), extent=(33.3, 20.75))  # between pixels
@example(shape=(7, 7), size=(30, 40), corner=(100, 100), extent=(10, 10))  # misses the frame
@example(shape=(90, 90), size=(30, 40), corner=(0, 0), extent=(40, 30))  # finer than the frame
def test_pixel_heat_is_interpolated_at_its_position_in_the_region(shape, size, corner, extent):
    region = Box(corner[0], corner[1], corner[0] + extent[0], corner[1] + extent[1])
    heat = some_heat(*shape)
    levels = heat_levels(heat, region, *size)
    expected = reference_levels(heat, region, *size)
    assert levels.shape == size
    assert np.abs(levels - expected).max() <= 0.5 + 2e-3, "a level is the rounded heat, nothing further away"


def test_heat_over_the_whole_frame_equals_opencvs_bilinear_resize():
    heat = some_heat(7, 7)
    theirs = cv2.resize(heat, (1280, 720), interpolation=cv2.INTER_LINEAR) * 255
    ours = heat_levels(heat, Box(0, 0, 1280, 720), 720, 1280)
    assert np.abs(ours - theirs).max() <= 0.5 + 2e-3


def test_strips_leave_no_seam():
    ramp = np.linspace(0, 1, 2, dtype=np.float32).reshape(2, 1)
    column = heat_levels(ramp, Box(0, 0, 3, 500), 500, 3)[:, 0].astype(int)
    assert np.diff(column).min() >= 0
    assert np.diff(column).max() <= 2


@pytest.mark.parametrize("name", COLORMAPS)
@pytest.mark.parametrize("opacity", [0.0, 0.37, 0.6, 1.0])
def test_blended_pixel_is_within_one_level_of_the_float_blend(name, opacity):
    image = np.random.default_rng(1).integers(0, 256, (150, 90, 3), np.uint8)
    heat, region = some_heat(7, 7), Box(-10.5, 20, 80, 160)
    painted = paint_heat(image, heat, region, palette(name, opacity))
    expected = reference_blend(image, heat_levels(heat, region, 150, 90), name, opacity)
    assert np.abs(painted - expected).max() <= 1.0


def test_cold_pixels_are_unchanged_and_the_frame_is_not_modified():
    image = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    before = image.copy()
    image.flags.writeable = False
    heat = np.zeros((8, 8), np.float32)
    heat[1, 1] = 1.0
    region = Box(0, 0, 64, 64)
    painted = paint_heat(image, heat, region, palette("inferno", 1.0))
    cold = heat_levels(heat, region, 64, 64) == 0
    assert cold.sum() > 3000
    assert (painted[cold] == before[cold]).all()
    assert (painted[~cold] != before[~cold]).any()
    assert (image == before).all()
    assert painted.flags.writeable


def test_blend_does_not_overflow_for_any_colour_and_level():
    image = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    heat = (np.arange(256, dtype=np.float32) / 255)[:, None]
    painted = paint_heat(image, heat, Box(0, 0, 256, 256), palette("turbo", 0.6))
    levels = np.tile(np.arange(256)[:, None], (1, 256))
    assert np.abs(painted - reference_blend(image, levels, "turbo", 0.6)).max() <= 1.0


@pytest.mark.parametrize("heat", [2.0, -1.0])
def test_heat_outside_its_range_is_clipped(heat):
    levels = heat_levels(np.full((2, 2), heat, np.float32), Box(0, 0, 4, 4), 4, 4)
    assert (levels == (255 if heat > 1 else 0)).all()


def test_colormap_colours_are_the_published_ones_in_rgb_order():
    assert palette("inferno", 1.0).colours[[0, 255]].tolist() == [[0, 0, 4], [252, 255, 164]]
    assert palette("viridis", 1.0).colours[0].tolist() == [68, 1, 84]


def test_unknown_colormap_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'virids' is unknown.*Did you mean 'viridis'"):
        palette("virids", 0.6)


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_opacity_outside_its_range_is_refused(opacity):
    with pytest.raises(ConfigError, match="outside"):
        palette("inferno", opacity)


def test_hottest_box_contains_the_peak_and_its_hot_neighbours_only():
    heat = np.zeros((6, 8), np.float32)
    heat[1, 2], heat[1, 3], heat[2, 2] = 1.0, 0.6, 0.4
    heat[4, 6] = 0.9  # hot too, but elsewhere
    assert hottest_box(heat, Box(10, 20, 90, 80)) == Box(30, 30, 50, 40)
    assert hottest_box(np.zeros((3, 3), np.float32), Box(0, 0, 9, 9)) is None


def test_hottest_box_and_contour_enclose_the_peak_and_are_clipped_at_the_border():
    heat = np.zeros((5, 5), np.float32)
    heat[2, 2] = 1.0
    region = Box(0, 0, 100, 100)
    image = np.zeros((100, 100, 3), np.uint8)
    draw_contour(image, heat, region, (255, 255, 255), 1)
    ys, xs = np.nonzero(image[..., 0])
    assert 35 <= xs.min() < 45
    assert 55 < xs.max() <= 65
    assert (xs.min() + xs.max()) / 2 == pytest.approx((ys.min() + ys.max()) / 2)
    image = np.zeros((40, 40, 3), np.uint8)
    draw_box(image, Box(-10, 5, 200, 20), (255, 0, 0), 1)
    assert image[5, :, 0].all()
    assert image[19, :, 0].all()
    assert image[5:20, 0, 0].all()
    assert not image[..., 1:].any()
    draw_box(image, Box(100, 100, 120, 120), (0, 255, 0), 1)
    assert not image[..., 1].any()

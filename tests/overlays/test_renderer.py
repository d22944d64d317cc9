from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from overlays.render.heatmap import heat_levels
from overlays.render.renderer import COLORMAPS, HeatRenderer, legend_lines
from pipeline.errors import ConfigError
from pipeline.frames import Box, Explanation, Finding, GroundTruth
from pipeline.ports import Renderer


def texts(explanation, now=None, interval=None):
    now = explanation.frame.captured_at if now is None else now
    return [line.text for line in legend_lines(explanation, now, interval)]


def test_renderer_implements_the_interface():
    assert isinstance(HeatRenderer(), Renderer)
    assert "inferno" in COLORMAPS


@pytest.mark.parametrize("options", [{}, {"contour": True}, {"hottest_box": True}, {"smoothing_seconds": 1.0}])
def test_renderer_never_modifies_the_frame_and_returns_a_read_only_image(options, explained):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    before = image.copy()
    explanation = explained(image)
    overlay = HeatRenderer(**options).render(explanation)
    assert (image == before).all()
    assert overlay.image.shape == image.shape
    assert not overlay.image.flags.writeable
    assert not np.shares_memory(overlay.image, image)
    assert overlay.explanation is explanation


@pytest.mark.parametrize("region", [Box(20, 0, 100, 90), Box(0, -15, 120, 105), Box(10.5, 3.25, 77.7, 60.1)])
def test_heat_is_drawn_in_the_region_only(region, explained):
    image = np.full((90, 120, 3), 77, np.uint8)
    heat = np.ones((3, 3), np.float32)
    overlay = HeatRenderer(legend=False).render(explained(image, heat=heat, region=region))
    painted = (overlay.image != 77).any(axis=2)
    assert (painted == (heat_levels(heat, region, 90, 120) > 0)).all()
    assert painted.any()
    assert painted.all() == (region == Box(0, -15, 120, 105)), "the one region that covers the whole picture"


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (300, 40), (40, 300), (37, 53)])
def test_small_and_odd_frames_are_drawn_with_every_option_on(size, explained):
    explanation = explained(np.zeros((*size, 3), np.uint8), label="日本語 " * 50, truth=GroundTruth("x"))
    overlay = HeatRenderer(contour=True, hottest_box=True).render(explanation)
    assert overlay.image.shape == (*size, 3)


def test_options_draw_what_they_name(explained):
    explanation = explained(np.zeros((200, 300, 3), np.uint8), heat=np.eye(5, dtype=np.float32))
    plain = HeatRenderer(legend=False).render(explanation).image
    for option in ("legend", "contour", "hottest_box"):
        drawn = HeatRenderer(**{"legend": False, option: True}).render(explanation).image
        assert (drawn != plain).any(), option
    viridis = HeatRenderer(legend=False, colormap="viridis").render(explanation).image
    assert (viridis != plain).any()
    invisible = HeatRenderer(legend=False, opacity=0.0).render(explanation).image
    assert not invisible.any()


def test_wrong_options_are_refused_with_a_message():
    with pytest.raises(ConfigError, match="Did you mean 'magma'"):
        HeatRenderer(colormap="magam")
    with pytest.raises(ConfigError, match="opacity: 2"):
        HeatRenderer(opacity=2)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="smoothing_seconds"):
            HeatRenderer(smoothing_seconds=wrong)


def test_legend_shows_score_class_age_rate_and_camera(explained):
    explanation = explained(label="bottle", score=0.875, camera="door", taken_at=10.0)
    assert texts(explanation, 10.034, 1 / 29.9) == ["88%  bottle", "34 ms · 29.9/s · door"]
    assert texts(explanation, 12.5) == ["88%  bottle", "2.5 s · door"]


def test_legend_lists_other_findings_and_their_absence(explained):
    other = Finding("cat", 0.004, np.zeros((3, 4), np.float32))
    explanation = explained(others=(other,) * 5)
    assert texts(explanation)[2:] == ["<1%  cat"] * 3
    empty = Explanation(explanation.frame, (), "m", "l")
    assert texts(empty)[0] == "nothing found"
    assert HeatRenderer().render(empty).image.shape == empty.frame.image.shape


def test_legend_shows_whether_the_true_class_was_found(explained):
    assert texts(explained(label="dent", truth=GroundTruth("dent")))[1] == "✓ correct"
    assert "true class: scratch" in texts(explained(label="dent", truth=GroundTruth("scratch")))[1]


def test_legend_rate_is_the_rate_of_rendered_frames(explained):
    timestamp = [0.0]
    renderer = HeatRenderer(clock=lambda: timestamp[0])
    for index in range(60):
        timestamp[0] = index / 25
        # A file's frames are decoded in a burst: their own times are next to each other.
        renderer.render(explained(camera="fast", taken_at=index // 10 * 0.4 + index % 10 * 0.002))
        if index % 5 == 0:
            renderer.render(explained(camera="slow", taken_at=index / 25))
    assert 1 / renderer._cameras["fast"].frame_rate.interval_seconds == pytest.approx(25)
    assert 1 / renderer._cameras["slow"].frame_rate.interval_seconds == pytest.approx(5)
    timestamp[0] = 100.0
    renderer.render(explained(camera="fast", taken_at=100.0))
    assert renderer._cameras["fast"].frame_rate.interval_seconds == 0.0, "a pause starts anew"


def test_legend_shows_the_top_class_first_and_a_different_drawn_class(explained):
    other = Finding("van", 0.95, np.zeros((3, 4), np.float32), 4)
    explanation = explained(label="minivan", score=0.005, others=(other,), truth=GroundTruth("van"))
    assert texts(explanation)[:3] == ["95%  van", "✓ correct", "heat map of: <1%  minivan"]
    assert len(texts(explanation)) == 4


def heat_of(value):
    return np.full((2, 2), value, np.float32)


def shown(renderer, explanation):
    return renderer.render(explanation).image


def test_frames_are_independent_without_smoothing(explained):
    renderer = HeatRenderer(clock=lambda: 0.0, legend=False)
    for value in (0.0, 1.0, 0.5):
        alone = HeatRenderer(legend=False).render(explained(heat=heat_of(value), taken_at=0.0)).image
        assert (shown(renderer, explained(heat=heat_of(value), taken_at=value)) == alone).all()


def test_smoothing_follows_its_time_constant_on_the_streams_clock(explained):
    renderer = HeatRenderer(smoothing_seconds=0.5, legend=False)
    renderer.render(explained(heat=heat_of(1.0), taken_at=0.0, pts_seconds=0.0))
    # Taken a millisecond later (a file is read fast), but half a second later in the film.
    smoothed = shown(renderer, explained(heat=heat_of(0.0), taken_at=0.001, pts_seconds=0.5))
    alone = HeatRenderer(legend=False).render(explained(heat=heat_of(math.exp(-1)))).image
    assert (smoothed == alone).all()


@pytest.mark.parametrize(
    "change", [{"label": "other"}, {"camera": "other"}, {"taken_at": 50.0}, {"heat": np.zeros((3, 3), np.float32)}]
)
def test_smoothing_restarts_for_another_class_camera_grid_or_after_a_pause(change, explained):
    renderer = HeatRenderer(smoothing_seconds=5.0, legend=False)
    renderer.render(explained(heat=heat_of(1.0), taken_at=0.0))
    facts = {"heat": heat_of(0.0), "taken_at": 0.1} | change
    assert (shown(renderer, explained(**facts)) == 100).all()


def test_cold_half_of_a_photo_is_unchanged(shared_data, explained):
    image = cv2.imread(str(shared_data / "photos" / "both_dog_cat.png"), cv2.IMREAD_COLOR_RGB)
    heat = np.zeros((7, 7), np.float32)
    heat[2:5, 4:7] = 1.0
    drawn = HeatRenderer(legend=False).render(explained(image, heat=heat)).image
    half = image.shape[1] // 2
    assert (drawn[:, :half] == image[:, :half]).all()
    y, x = (round(fraction * side) for fraction, side in zip((3.5 / 7, 5.5 / 7), image.shape, strict=False))
    # The hottest pixel is 60 % inferno's (252, 255, 164).
    assert np.abs(drawn[y, x] - (0.4 * image[y, x] + 0.6 * np.array([252, 255, 164]))).max() <= 1

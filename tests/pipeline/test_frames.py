"""Frames, findings and explanations are frozen values."""

import math

import numpy as np
import pytest

from pipeline.finite import find_non_finite
from pipeline.frames import NO_HEAT, Box, BoxMap, Explanation, Finding, Frame


def pixels(height=4, width=6):
    return np.zeros((height, width, 3), np.uint8)


def test_frame_is_read_only_while_its_array_stays_writeable():
    image = pixels()
    frame = Frame(image, "a", 0, 0.0)
    with pytest.raises(ValueError, match="read-only"):
        frame.image[0, 0] = 1
    image[0, 0] = 9
    assert frame.image[0, 0, 0] == 9


@pytest.mark.parametrize("image", [pixels().astype(np.float32), pixels()[..., 0], np.zeros((0, 4, 3), np.uint8)])
def test_frame_refuses_an_array_that_is_no_rgb_image(image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        Frame(image, "a", 0, 0.0)


def test_explanation_grid_covers_the_whole_frame_by_default():
    frame = Frame(pixels(), "a", 0, 0.0)
    finding = Finding("x", 0.5, np.zeros((2, 2), np.float32))
    assert Explanation(frame, (finding,), "m", "l").region == Box(0, 0, 6, 4)


def test_finding_peak_is_the_centre_of_the_hottest_cell_in_pixels():
    heat = np.array([[0, 0, 0], [0, 0, 1]], np.float32)
    assert Finding("x", 0.5, heat).peak(Box(0, 0, 30, 20)) == (25.0, 15.0)
    assert Finding("x", 0.5, heat).peak(Box(-15, 10, 45, 30)) == (35.0, 25.0)


def test_finding_has_no_peak_on_a_flat_map():
    assert Finding("x", 0.5, np.zeros((2, 2), np.float32)).peak(Box(0, 0, 6, 4)) is None


def test_explanation_timings_are_read_only():
    explanation = Explanation(Frame(pixels(), "a", 0, 0.0), (), "m", "l", {"explain": 1.0})
    with pytest.raises(TypeError):
        explanation.timings["explain"] = 2.0


def box_finding(**fields):
    box_map = BoxMap(mode="drop", cut="complete", **{"region": Box(0, 0, 3, 2), "scale": 0.5, **fields})
    return Finding("car", 0.5, np.zeros((2, 2), np.float32), box=Box(0, 0, 1, 1), box_map=box_map)


def test_explanation_region_of_a_box_is_that_of_its_map():
    frame = Frame(pixels(), "a", 0, 0.0)
    with_map, without_map = box_finding(), Finding("car", 0.5, NO_HEAT, box=Box(0, 0, 1, 1))
    explanation = Explanation(frame, (with_map, without_map), "m", "l")
    assert explanation.region_of(with_map) == Box(0, 0, 3, 2)
    assert explanation.region_of(without_map) == Box(0, 0, 6, 4)


def test_box_map_is_read_only():
    against = np.zeros((2, 2), np.float32)
    box_map = box_finding(against=against).box_map
    with pytest.raises(ValueError, match="read-only"):
        box_map.against[0, 0] = 1


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": math.nan},
        {"lowest_score": math.inf},
        {"age_seconds": math.nan},
        {"region": Box(0, 0, math.nan, 1)},
        {"against": np.full((2, 2), np.nan, np.float32)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_find_non_finite_names_a_number_of_a_box_map(fields):
    frame = Frame(pixels(), "a", 0, 0.0)
    assert "'car'" in find_non_finite(Explanation(frame, (box_finding(**fields),), "m", "l"))
    assert find_non_finite(Explanation(frame, (box_finding(),), "m", "l")) == ""


def test_box_iou_of_known_boxes():
    box = Box(0, 0, 10, 10)
    assert box.iou(box) == 1.0
    assert box.iou(Box(5, 0, 15, 10)) == pytest.approx(1.0 / 3.0)
    assert box.iou(Box(10, 0, 20, 10)) == box.iou(Box(3, 3, 3, 3)) == 0.0

"""Frames, findings and explanations are frozen values."""

import numpy as np
import pytest

from pipeline.frames import Box, Explanation, Finding, Frame


def picture(height=4, width=6):
    return np.zeros((height, width, 3), np.uint8)


def test_frame_is_read_only_while_its_array_stays_writeable():
    image = picture()
    frame = Frame(image, "a", 0, 0.0)
    with pytest.raises(ValueError, match="read-only"):
        frame.image[0, 0] = 1
    image[0, 0] = 9
    assert frame.image[0, 0, 0] == 9


@pytest.mark.parametrize("image", [picture().astype(np.float32), picture()[..., 0], np.zeros((0, 4, 3), np.uint8)])
def test_frame_refuses_an_array_that_is_no_rgb_image(image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        Frame(image, "a", 0, 0.0)


def test_explanation_grid_covers_the_whole_frame_by_default():
    frame = Frame(picture(), "a", 0, 0.0)
    finding = Finding("x", 0.5, np.zeros((2, 2), np.float32))
    assert Explanation(frame, (finding,), "m", "l").region == Box(0, 0, 6, 4)


def test_finding_peak_is_the_centre_of_the_hottest_cell_in_pixels():
    heat = np.array([[0, 0, 0], [0, 0, 1]], np.float32)
    assert Finding("x", 0.5, heat).peak(Box(0, 0, 30, 20)) == (25.0, 15.0)
    assert Finding("x", 0.5, heat).peak(Box(-15, 10, 45, 30)) == (35.0, 25.0)


def test_finding_has_no_peak_on_a_flat_map():
    assert Finding("x", 0.5, np.zeros((2, 2), np.float32)).peak(Box(0, 0, 6, 4)) is None


def test_explanation_timings_are_read_only():
    explanation = Explanation(Frame(picture(), "a", 0, 0.0), (), "m", "l", {"explain": 1.0})
    with pytest.raises(TypeError):
        explanation.timings["explain"] = 2.0

"""Fitting frames to the network's input, and the region of the frame that the input covers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.models.preprocess import BORDER, Preprocessing, fit_geometry, fit_image
from pipeline.frames import Box, Frame

sides = st.integers(8, 400)


def frame_of(height, width, colour=(0, 0, 0)):
    return Frame(np.full((height, width, 3), colour, np.uint8), "a", 0, 0.0)


@given(sides, sides, sides, sides)
def test_stretch_covers_the_whole_frame(height, width, rows, columns):
    placement = fit_geometry((height, width), (rows, columns), "stretch")
    assert placement.region == Box(0, 0, width, height)
    assert placement.size == (rows, columns)


@given(sides, sides, sides, sides)
def test_crop_is_centred_and_keeps_the_aspect_ratio(height, width, rows, columns):
    region = fit_geometry((height, width), (rows, columns), "crop").region
    assert region.left >= 0
    assert region.top >= 0
    assert region.right <= width
    assert region.bottom <= height
    assert abs(region.left - (width - region.right)) <= 1
    assert abs(region.top - (height - region.bottom)) <= 1
    assert min(width - region.width, height - region.height) < 1
    # A pixel's error at most in either side.
    assert abs(region.width * rows - region.height * columns) <= max(rows, columns)


@given(sides, sides, sides, sides)
def test_letterbox_contains_the_whole_frame(height, width, rows, columns):
    placement = fit_geometry((height, width), (rows, columns), "letterbox")
    region = placement.region
    top, left = placement.offset
    # The frame's own corners, seen in input pixels, are where the resized frame lies.
    across, down = columns / region.width, rows / region.height
    assert (0 - region.left) * across == pytest.approx(left, abs=1e-6)
    assert (0 - region.top) * down == pytest.approx(top, abs=1e-6)
    assert (width - region.left) * across == pytest.approx(left + placement.size[1], abs=1e-6)
    assert (height - region.top) * down == pytest.approx(top + placement.size[0], abs=1e-6)
    assert placement.size[0] == rows or placement.size[1] == columns


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
def test_region_maps_the_frame_to_the_input(fit):
    image = np.zeros((120, 200, 3), np.uint8)
    image[60:68, 100:108] = 255
    region = fit_geometry((120, 200), (64, 48), fit).region
    seen = fit_image(image, (64, 48), fit)[0, 0].float()
    seen[seen == BORDER] = 0
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    x = float((seen * columns).sum() / seen.sum()) * region.width / 48 + region.left
    y = float((seen * rows).sum() / seen.sum()) * region.height / 64 + region.top
    assert (x, y) == (pytest.approx(104, abs=1), pytest.approx(64, abs=1))


def test_letterbox_border_is_grey():
    seen = fit_image(np.zeros((10, 100, 3), np.uint8), (50, 50), "letterbox")
    assert set(seen[0, :, 0, 0].tolist()) == {BORDER}
    assert int(seen[0, :, 25].max()) == 0


def test_normalised_is_rgb_over_255_minus_mean_over_std():
    preprocessing = Preprocessing((8, 8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    seen = preprocessing.normalised(preprocessing.pixels([frame_of(20, 30, (255, 0, 51))]))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(seen[0, :, 3, 3], torch.tensor(expected), atol=1e-5, rtol=0)


def test_pixels_accepts_frames_of_different_sizes():
    preprocessing = Preprocessing((16, 24), (0.5,) * 3, (0.5,) * 3)
    pixels = preprocessing.pixels([frame_of(10, 10), frame_of(300, 200), frame_of(16, 24)])
    assert pixels.shape == (3, 3, 16, 24)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_fit_image_does_not_change_the_frame():
    frame = frame_of(16, 24, (7, 8, 9))
    Preprocessing((16, 24), (0.5,) * 3, (0.5,) * 3).pixels([frame]).fill_(0)
    assert frame.image[0, 0].tolist() == [7, 8, 9]

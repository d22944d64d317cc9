"""Preparation of images for a detector, and boxes in pixels of image and input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.detectors.input_format import InputFormat

IMAGE = np.zeros((60, 100, 3), np.uint8)
IMAGE[..., 0] = 200  # red


def test_input_format_puts_the_image_in_the_upper_left_corner():
    prepared = InputFormat((96, 128), "bgr").prepare([IMAGE])
    assert prepared.shape == (1, 3, 96, 128)
    assert prepared[0, :, 0, 0].tolist() == [0, 0, 200]
    assert prepared[0, :, 76, 127].tolist() == [114] * 3
    assert prepared[0, :, 75, 127].tolist() == [0, 0, 200]


def test_input_format_normalises_in_the_networks_order():
    prepared = InputFormat((60, 100), "rgb", (100, 0, 0), (50, 1, 1), "stretch").prepare([IMAGE])
    assert prepared[0, :, 3, 3].tolist() == [2, 0, 0]


@pytest.mark.parametrize(("width", "height"), [(640, 360), (1920, 1080), (1281, 721), (333, 999)])
def test_input_format_fills_one_side(width, height):
    placed = InputFormat((416, 416), fit="corner").place(height, width).size
    assert max(placed) == 416
    assert abs(placed[0] - height * 416 / max(height, width)) <= 1


@pytest.mark.parametrize("fit", ["corner", "centre", "stretch"])
def test_placement_maps_boxes_there_and_back(fit):
    placement = InputFormat((128, 96), fit=fit).place(60, 100)
    boxes = torch.tensor([[10.0, 5.0, 60.0, 50.0]])
    torch.testing.assert_close(placement.to_image(placement.to_input(boxes)), boxes)
    corner = placement.to_input(torch.tensor([0.0, 0.0, 100.0, 60.0])).tolist()
    expected = {"corner": [0, 0, 96, 57.6], "centre": [0, 35, 96, 92.6], "stretch": [0, 0, 96, 128]}[fit]
    assert corner == pytest.approx(expected)

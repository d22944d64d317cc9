"""Images in messages of ROS: every encoding becomes RGB, and impossible sizes are refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from stream.pixels import ImageMessage, PixelConverter


def encoded(image, encoding):
    """Return an image in an encoding of ROS."""
    if encoding.startswith("bayer"):
        rows = {"rggb": (0, 1, 1, 2), "bggr": (2, 1, 1, 0), "gbrg": (1, 2, 0, 1), "grbg": (1, 0, 2, 1)}
        mosaic = np.empty(image.shape[:2], np.uint8)
        for position, channel in enumerate(rows[encoding.removeprefix("bayer_").rstrip("0168")]):
            row, column = divmod(position, 2)
            mosaic[row::2, column::2] = image[row::2, column::2, channel]
        return mosaic.astype(np.uint16) << 4 if encoding.endswith("16") else mosaic
    if encoding in {"yuv422", "yuv422_yuy2"}:
        code = cv2.COLOR_RGB2YUV_UYVY if encoding == "yuv422" else cv2.COLOR_RGB2YUV_YUY2
        return cv2.cvtColor(image, code)
    pixels = image[:, :, ::-1] if encoding.startswith("bgr") else image
    if encoding.startswith("mono"):
        pixels = image[:, :, 1]
    if "a8" in encoding:
        pixels = np.dstack([pixels, np.full(image.shape[:2], 7, np.uint8)])
    return pixels.astype(np.uint16) << 4 if encoding.endswith("16") else pixels


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(
    ("encoding", "tolerance"),
    [
        ("rgb8", 0), ("bgr8", 0), ("rgba8", 0), ("bgra8", 0), ("8UC3", 0), ("mono8", 0), ("8UC1", 0), ("mono16", 0),
        ("16UC1", 0), ("rgb16", 0), ("bgr16", 0), ("yuv422", 6), ("yuv422_yuy2", 6),
        *((f"bayer_{pattern}{bits}", 0) for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)),
    ],
)  # fmt: skip
def test_pixels_of_every_encoding_are_rgb(encoding, tolerance, big_endian):
    image = np.empty((8, 12, 3), np.uint8)
    image[:] = (250, 120, 30)  # flat, so that demosaicing is exact
    name = {"8UC3": "bgr8", "8UC1": "mono8", "16UC1": "mono16"}.get(encoding, encoding)
    pixels = encoded(image, name)
    if pixels.dtype == np.uint16 and big_endian:
        pixels = pixels.astype(">u2")
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(8, -1)
    padded = np.pad(rows, ((0, 0), (0, 3)))
    message = ImageMessage("raw", 0, encoding, padded.tobytes(), 12, 8, padded.shape[1], big_endian)
    expected = np.repeat(image[:, :, 1:2], 3, axis=2) if "mono" in name else image
    read = PixelConverter().convert(message)
    assert read.shape == (8, 12, 3)
    assert np.abs(read.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 11}, "are too few for an image"),
        ({"height": 9}, "are too few for an image"),
        ({"width": 0}, "are too few for an image"),
        ({"encoding": "16SC1"}, "is not supported"),
        ({"width": 1 << 20, "height": 1 << 20}, "exceeds max_pixels"),
    ],
)
def test_impossible_image_is_refused_before_memory_is_taken(fields, message):
    values = {"encoding": "mono8", "width": 12, "height": 8, "step": 12, **fields}
    with pytest.raises(SourceError, match=message):
        PixelConverter(1_000_000).convert(ImageMessage("raw", 0, data=bytes(96), **values))


def test_single_row_with_a_huge_step_takes_no_memory():
    message = ImageMessage("raw", 0, "mono8", bytes(12), width=12, height=1, step=0xFFFFFFFF)
    assert PixelConverter().convert(message).shape == (1, 12, 3)


@pytest.mark.parametrize("encoding", ["yuv422", "yuv422_yuy2"])
def test_odd_width_is_refused_where_two_pixels_share_a_colour(encoding):
    message = ImageMessage("raw", 0, encoding, bytes(4 * 7 * 2), 7, 4, 14)
    with pytest.raises(SourceError, match=f"7x4 {encoding}: the width should be even"):
        PixelConverter().convert(message)

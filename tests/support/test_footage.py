"""Tests of footage: an image gives its own number, or none."""

import io
import time

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.footage import Mark, blocks, millis_now, paint, read

SIZES = [(160, 120), (176, 144), (320, 240), (333, 217), (640, 480), (1280, 720)]


def blank(width, height):
    return np.zeros((height, width, 3), np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(160, 500), st.integers(120, 400), st.integers(0, 2**24 - 1), st.integers(0, 2**40 - 1))
def test_painted_values_are_read_back(width, height, number, millis):
    assert read(paint(blank(width, height), number, millis)) == (number, millis)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("quality", [10, 80])
def test_painted_values_survive_jpeg(size, quality):
    painted = paint(blank(*size), 123456, 9_876_543_210)
    _, packed = cv2.imencode(".jpg", painted, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert read(cv2.imdecode(packed, cv2.IMREAD_COLOR)) == (123456, 9_876_543_210)


@pytest.mark.parametrize("size", [(160, 120), (320, 240), (640, 480)], ids=str)
@pytest.mark.parametrize("bit_rate", [60_000, 400_000])
def test_painted_values_survive_h264_at_a_low_bit_rate(size, bit_rate):
    file = io.BytesIO()
    start = millis_now()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", bit_rate
        for number in range(40):
            image = av.VideoFrame.from_ndarray(paint(blank(*size), number, start + 100 * number))
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        marks = [read(image.to_ndarray(format="rgb24")) for image in container.decode(video=0)]
    assert marks == [(number, start + 100 * number) for number in range(40)]


def test_painted_values_survive_scaling_to_half_and_double():
    painted = paint(blank(640, 480), 7, 8)
    for size in [(320, 240), (1280, 960), (200, 150)]:
        assert read(cv2.resize(painted, size, interpolation=cv2.INTER_AREA)) == (7, 8)


@pytest.mark.parametrize("level", [0, 16, 127, 235, 255])
def test_uniform_image_has_no_values(level):
    assert read(np.full((240, 320, 3), level, np.uint8)) is None


def test_noise_and_photos_have_no_values():
    chance = np.random.default_rng(0)
    assert all(read(chance.integers(0, 256, (120, 160, 3), np.uint8)) is None for _ in range(50))


def test_blend_of_two_images_has_no_values():
    first, other = paint(blank(320, 240), 1000, 5_000_000), paint(blank(320, 240), 1007, 5_000_700)
    wrong = set()
    for row in range(1, 240):
        mixed = np.concatenate([first[:row], other[row:]])
        wrong.add(read(mixed))
    assert wrong <= {None, (1000, 5_000_000), (1007, 5_000_700)}
    assert None in wrong


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="160x120"):
        paint(blank(159, 120), 0, 0)
    with pytest.raises(ValueError, match="24 and 40 bits"):
        blocks(160, 120, 1 << 24, 0)


def test_age_is_counted_from_the_painted_time():
    assert Mark(0, 2_000).age_seconds(2.5) == 0.5
    assert 0 <= Mark(0, millis_now()).age_seconds(time.monotonic()) < 1

"""Tests of small inputs that would take very long to read."""

import time

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from stream.failures import FailureError
from stream.image_file import ImageReader
from stream.mjpeg import images
from stream.playlist import best_variant, parse_playlist

CPU_SECONDS = 20.0
"""Far above what a limited reader takes on a slow machine (0.1 s), far below what an unlimited one does."""
JPEG = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
PARTS = {
    "fill bytes": b"\xff" * (16 << 20),
    "comments": b"\xff\xfe\x00\x02" * (4 << 20),
    "scans": b"\xff\xda\x00\x02" * (4 << 20),
    "segments without a length": b"\xff\xfe\x00\x00" * (4 << 20),
    "bare markers": b"\xff\x01" * (8 << 20),
    "rubbish": b"\x12" * (16 << 20),
    "a scan of fill bytes": b"\xff\xda\x00\x02" + b"\xff" * (1 << 20) + b"\x00",
}


def reader_of(content):
    places = iter(range(0, len(content), 1 << 16))

    def read(size):
        assert size >= 1 << 16
        part = next(places, None)
        return b"" if part is None else content[part : part + (1 << 16)]

    return read


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_jpeg_of_very_many_parts_is_given_up_soon(parts):
    started_at = time.thread_time()
    with pytest.raises(SourceError):
        ImageReader().decode(JPEG[:2] + parts + JPEG[2:-2])
    assert time.thread_time() - started_at < CPU_SECONDS


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_motion_jpeg_of_very_many_parts_is_given_up_soon(parts):
    started_at = time.thread_time()
    try:
        items = list(images(reader_of(JPEG[:2] + parts)))
    except FailureError as error:
        assert "segments" in str(error)  # noqa: PT017 - where the limit is met; else the decoder judges what there is
    else:
        assert sum(map(len, items)) < 1 << 20
    assert time.thread_time() - started_at < CPU_SECONDS


def test_motion_jpeg_with_a_stated_length_may_not_have_thousands_of_scans_either():
    image = JPEG[:-2] + b"\xff\xda\x00\x02" * 1000 + JPEG[-2:]
    text = b"--b\r\nContent-Length: %d\r\n\r\n" % len(image)
    with pytest.raises(FailureError, match="segments"):
        list(images(reader_of(text + image)))


@pytest.mark.parametrize("fill", [1, 3, 200])
def test_fill_bytes_before_a_marker_are_passed_over(fill):
    filled = JPEG[:2] + b"\xff" * fill + JPEG[2:]
    assert list(images(reader_of(filled))) == [filled]
    assert ImageReader().decode(filled).shape == (48, 64, 3)


@pytest.mark.parametrize("line", ["a", "#EXTINF:1,", "#EXT-X-BYTERANGE:1@0\na", "#EXT-X-DISCONTINUITY"])
def test_playlist_of_very_many_lines_is_refused_in_words(line):
    text = "#EXTM3U\n" + f"{line}\n" * 400_000
    started_at = time.thread_time()
    with pytest.raises(FailureError, match="100000 segments"):
        parse_playlist(text, "http://camera/live.m3u8")
    assert time.thread_time() - started_at < CPU_SECONDS


@pytest.mark.slow
def test_playlist_of_a_whole_day_is_read():
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n" + "".join(f"#EXTINF:1,\n{n}.ts\n" for n in range(86_400))
    assert len(parse_playlist(f"{text}#EXT-X-ENDLIST\n", "http://camera/day.m3u8").segments) == 86_400


def test_list_of_very_many_variants_is_refused_in_words():
    text = "#EXTM3U\n" + "#EXT-X-STREAM-INF:BANDWIDTH=1\na\n" * 200_000
    with pytest.raises(FailureError, match="100000 segments"):
        best_variant(text, "http://camera/live.m3u8")

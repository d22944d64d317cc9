"""Tests of motion JPEG in the forms that cameras send."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.failures import FailureError
from stream.mjpeg import MAX_IMAGE_BYTES, MotionJpeg, images


def encoded(number, *options):
    noise = np.random.default_rng(number).integers(0, 255, (32, 48, 3), np.uint8)
    return cv2.imencode(".jpg", noise, list(options))[1].tobytes()


def with_thumbnail(image):
    """Return an image whose EXIF segment contains a whole JPEG with its markers."""
    inner = b"Exif\0\0" + encoded(99)
    return image[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + image[2:]


PICTURES = [encoded(0), encoded(1, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), with_thumbnail(encoded(2)),
            encoded(3, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)]  # fmt: skip
HEAD = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
FORMS = {
    "regular": lambda p: b"--frame\r\n" + HEAD % len(p) + p + b"\r\n",
    "boundary behind each picture": lambda p: HEAD % len(p) + p + b"\r\n--frame\r\n",
    "no length": lambda p: b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + p + b"\r\n",
    "length of zero": lambda p: b"--frame\r\n" + HEAD % 0 + p + b"\r\n",
    "lower case, line feeds": lambda p: b"--frame\ncontent-length:%d\n\n" % len(p) + p + b"\n",
    "pictures alone": lambda p: p,
    "rubbish between": lambda p: p + bytes(range(200)),
}


def reader(content, size):
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    return lambda _: parts.pop(0) if parts else b""


@pytest.mark.parametrize("form", FORMS)
@given(size=st.integers(1, 4000))
@settings(max_examples=25, deadline=None)
def test_mjpeg_finds_every_image_in_any_chunks(form, size):
    content = b"".join(map(FORMS[form], PICTURES))
    assert list(images(reader(content, size))) == PICTURES


def test_picture_is_returned_as_soon_as_it_is_complete():
    content, requests = FORMS["no length"](PICTURES[0]), []

    def read(size):
        requests.append(size)
        assert len(requests) == 1, "waits for the picture behind it"
        return content

    assert next(images(read)) == PICTURES[0]


def test_regular_stream_is_made_of_an_irregular_one():
    data, source = b"", MotionJpeg(reader(b"".join(map(FORMS["pictures alone"], PICTURES)), 777))
    while part := source.read(100):
        data += part
    assert data == b"".join(b"--picture\r\n" + HEAD % len(p) + p + b"\r\n" for p in PICTURES)


@pytest.mark.parametrize("length", [MAX_IMAGE_BYTES + 1, 10**17])
def test_length_beyond_the_limit_is_refused_before_it_arrives(length):
    with pytest.raises(FailureError, match=f"{length} bytes; at most 64 MiB"):
        list(images(reader(b"--frame\r\n" + HEAD % length + PICTURES[0], 1000)))


def test_picture_without_an_end_is_refused_at_the_limit():
    started = [PICTURES[0][:-2]]
    with pytest.raises(FailureError, match="without an end"):
        list(images(lambda _: started.pop() if started else bytes(1 << 22)))


def test_stream_without_pictures_is_not_kept():
    left = [64]

    def read(_):
        left[0] -= 1
        return b"junk" * (1 << 18) if left[0] else b""

    assert list(images(read)) == []

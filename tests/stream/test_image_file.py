"""Tests of image files: completeness, pages, depth, size and orientation."""

import base64
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from pipeline.errors import SourceError
from stream.bit_depth import DEPTHS, eight_bits, value_bits
from stream.image_file import ImageReader, jpeg_is_whole, read_image

HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAHsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5j"
    "bHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBp"
    "eGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAINtZGF0AAAAdygBrxOA5fxPLed7rpeGFf//BO4qB14v//4AHWUF"
    "TFAdXeFfsQT+HUxTf2rZ9gqPwhHMarok7GP/o6VzTqUX+asLkA6ZdWTmya6+GVYni5rZ6HywBcGWAdLNIYOensrYovgIiS6Cxi7u"
    "uiFODv1aBNbRAAF+FiL6"
)
"""64x48: light at the upper left, red at the lower right, dark elsewhere."""


def pixels(size=(48, 64)):
    """Light at the upper left, red at the lower left, dark at the right."""
    image = np.full((*size, 3), 20, np.uint8)
    image[: size[0] // 2, : size[1] // 2] = 220
    image[size[0] // 2 :, : size[1] // 2] = (200, 30, 30)
    return image


def saved(kind, image=None, **options):
    buffer = io.BytesIO()
    Pillow.fromarray(pixels() if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def turned():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return exif


JPEG = saved("JPEG")
PROGRESSIVE = saved("JPEG", progressive=True, image=np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
MPO = saved("MPO", save_all=True, append_images=[Pillow.fromarray(pixels())])
THUMBNAIL = b"\xff\xe1" + struct.pack(">H", len(JPEG) + 2) + JPEG  # what a camera puts into EXIF: a whole small JPEG


@pytest.mark.parametrize("content", [JPEG, PROGRESSIVE, MPO, JPEG[:2] + THUMBNAIL + JPEG[2:]])
@pytest.mark.parametrize(
    "behind", [b"", bytes(200_000), bytes(range(256)) * 800, b"\0\0\0\x18ftypmp42" + bytes(300_000), JPEG[:100]]
)
def test_jpeg_with_any_bytes_behind_it_is_complete(content, behind):
    """Motion photos contain a video, MPO files further images, and some cameras add padding."""
    assert jpeg_is_whole(content + behind)
    assert ImageReader().decode(content + behind, lambda *_: None).shape == (48, 64, 3)


@pytest.mark.parametrize("content", [JPEG, PROGRESSIVE, JPEG[:2] + THUMBNAIL + JPEG[2:]])
@pytest.mark.parametrize("behind", [b"", bytes(70_000)])
def test_jpeg_that_is_cut_off_at_any_place_is_detected(content, behind):
    for end in range(len(content) - 2, 3, -max(1, len(content) // 40)):
        with pytest.raises(SourceError, match=r"cut off|not an image that can be read"):
            ImageReader().decode(content[:end] + behind)


@given(st.binary(max_size=200))
def test_jpeg_check_ends_for_any_bytes(noise):
    assert jpeg_is_whole(b"\xff\xd8" + noise) in {True, False}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_photo_of_each_format_is_read_and_one_cut_off_is_not(kind):
    content = saved(kind)
    assert np.abs(ImageReader().decode(content)[8, 8].astype(int) - 220).max() < 12
    with pytest.raises(SourceError):
        ImageReader().decode(content[: len(content) * 8 // 10])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_photo_is_oriented_by_its_metadata(kind):
    image = ImageReader().decode(saved(kind, exif=turned()))
    assert image.shape == (64, 48, 3)
    assert image[8, 40].min() > 200
    assert image[56].max() < 60


def test_heic_is_read_and_one_cut_off_is_not():
    image = ImageReader().decode(HEIC)
    assert image.shape == (48, 64, 3)
    assert np.abs(image[8, 8].astype(int) - 220).max() < 12
    assert np.abs(image[40, 56].astype(int) - (200, 30, 30)).max() < 16
    with pytest.raises(SourceError):
        ImageReader().decode(HEIC[:-60])


def test_picture_of_tiles_comes_whole(shared_data):
    path = shared_data.parent / "faults" / "open" / "tiles_2x2.avif"
    if not path.exists():
        pytest.skip("needs a tiled picture: avifenc --grid 2x2")
    image = read_image(path)
    assert image.shape == (640, 640, 3)
    assert image[:, -8:, 2].mean() > 240  # blue grows from left to right over all tiles, green from top to bottom
    assert image[-8:, :, 1].mean() > 240


@pytest.mark.parametrize(
    "content",
    [
        MPO,
        saved("TIFF", save_all=True, append_images=[Pillow.fromarray(pixels())]),
        saved("WEBP", save_all=True, append_images=[Pillow.fromarray(255 - pixels())]),
        saved("PNG", save_all=True, append_images=[Pillow.fromarray(255 - pixels())]),
    ],
)
def test_first_of_several_pages_is_read_with_one_warning(tmp_path, content, caplog):
    reader = ImageReader()
    for number in range(2):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(content)
        assert np.abs(reader.read(path)[8, 8].astype(int) - 220).max() < 12
    assert caplog.text.count("several images or pages: the first is read") == 1
    assert "0.tif" in caplog.text


def deep(bits, kind=".png", fraction=1.0):
    values = np.linspace(0, ((1 << bits) - 1) * fraction, 48 * 64).reshape(48, 64).astype(np.uint16)
    return cv2.imencode(kind, values)[1].tobytes()


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", [".png", ".tif", ".jp2"])
def test_values_in_a_file_of_sixteen_bits_are_read_at_their_depth_with_one_warning(bits, kind, caplog):
    reader = ImageReader()
    for _ in range(2):
        image = reader.decode(deep(bits, kind))
        assert (image.min(), image.max()) == (0, 255)
        assert image.mean() == pytest.approx(127.5, abs=1.0)
    assert caplog.text.count(f"read with {bits} bits") == 1
    assert f"?bits={bits}" in caplog.text


def test_values_that_fill_sixteen_bits_give_no_warning(caplog):
    assert ImageReader().decode(deep(16)).mean() == pytest.approx(127.5, abs=1.0)
    assert ImageReader().decode(cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes()).max() == 0
    assert not caplog.text


def test_stated_depth_is_taken_for_all_pictures_alike(caplog):
    reader = ImageReader(bits=12)
    assert reader.decode(deep(12)).max() == 255
    assert reader.decode(deep(12, fraction=0.1)).max() == 25
    assert not caplog.text


def test_depth_that_a_pnm_states_is_believed(caplog):
    values = np.full((48, 64), 1000, ">u2").tobytes()
    assert ImageReader().decode(b"P5\n# a camera\n64 48\n4095\n" + values).max() == 1000 >> 4
    assert not caplog.text


def test_values_of_thirty_two_bits_are_refused_in_words():
    with pytest.raises(SourceError, match="32 bits; save it with 8 or 16"):
        ImageReader().decode(cv2.imencode(".tif", np.full((8, 8), 0.5, np.float32))[1].tobytes())


@given(st.integers(0, 65535))
def test_depth_is_the_smallest_that_holds_the_largest_value(largest):
    values = np.array([[0, largest]], np.uint16)
    bits = value_bits(values)
    assert bits in DEPTHS
    assert largest < 1 << bits
    assert all(largest >= 1 << fewer for fewer in DEPTHS if fewer < bits)
    assert eight_bits(values, bits)[0, 1] == largest >> (bits - 8)


def png_of(width, height):
    """Return a PNG that declares this size; only its header is read before it is refused."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + saved("PNG")[33:]


@pytest.mark.parametrize("content", [png_of(40_000, 30_000), png_of(30_000, 30_000)])
def test_picture_beyond_the_limit_is_refused_by_its_header_with_its_size(tmp_path, content):
    path = tmp_path / "huge.png"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"huge\.png: an image of \d+x30000 pixels exceeds max_pixels"):
        read_image(path)


@pytest.mark.parametrize("content", [HEIC, saved("AVIF")])
def test_size_that_heic_and_avif_state_is_held_against_the_limit_though_no_library_opens_it(content):
    at = content.index(b"ispe") + 8
    huge = content[:at] + struct.pack(">II", 40_000, 30_000) + content[at + 8 :]
    with pytest.raises(SourceError, match="an image of 40000x30000 pixels"):
        ImageReader().decode(huge)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIC"])
def test_image_file_ignores_data_after_image(kind):
    content = HEIC if kind == "HEIC" else saved(kind)
    for behind in (bytes(9000), bytes(range(256)) * 20, b"\0\0\0\x18ftypmp42" + bytes(9000)):
        assert ImageReader().decode(content + behind).shape == (48, 64, 3)


def test_limit_of_pixels_can_be_set():
    content = saved("PNG")
    assert ImageReader(max_pixels=48 * 64).decode(content).shape == (48, 64, 3)
    with pytest.raises(SourceError, match="max_pixels=3071"):
        ImageReader(max_pixels=48 * 64 - 1).decode(content)


def test_file_too_large_for_any_picture_is_not_read(tmp_path):
    path = tmp_path / "endless.jpg"
    path.write_bytes(JPEG)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(SourceError, match=r"has \d+ bytes; max_pixels="):
        read_image(path)


@pytest.mark.parametrize(("content", "message"), [(b"a shopping list", "not an image"), (b"", r"is empty \(0 bytes\)")])
def test_image_file_that_is_no_image_is_refused_with_path(tmp_path, content, message):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"x\.jpg: .*{message}"):
        read_image(path)


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "SGI"])
def test_image_file_of_another_format_is_not_parsed(kind):
    content = saved(kind)
    assert Pillow.open(io.BytesIO(content)).format == kind
    with pytest.raises(SourceError, match="is not an image that can be read"):
        ImageReader().decode(content)

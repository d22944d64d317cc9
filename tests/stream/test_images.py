import threading

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from stream.images import found_images, read_image
from stream.sources import build_source


def save(path, brightness, size=(12, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), brightness, np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


def frames_of(uri, **options):
    with build_source(str(uri), **options) as source:
        return list(source.frames(threading.Event())), source


def test_folder_is_read_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        save(tmp_path / f"part{number}.png", number)
    (tmp_path / "notes.txt").write_text("no picture")
    frames, source = frames_of(tmp_path)
    assert [int(f.image[0, 0, 0]) for f in frames] == [1, 2, 10]
    assert [f.index for f in frames] == [0, 1, 2]
    assert source.frames_total == 3
    assert source.camera == tmp_path.name
    assert source.health.state == "ended"


def test_glob_reads_matching_files(tmp_path):
    save(tmp_path / "a" / "one.png", 5)
    save(tmp_path / "b" / "two.png", 6)
    frames, _ = frames_of(tmp_path / "*" / "*.png")
    assert [int(f.image[0, 0, 0]) for f in frames] == [5, 6]


def test_times_follow_the_assumed_rate(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", number)
    frames, source = frames_of(tmp_path, images_per_second=4.0)
    assert [f.pts_seconds for f in frames] == [0.0, 0.25, 0.5]
    assert source.rate == 4.0


def test_exif_orientation_is_honoured(shared_data):
    path = shared_data / "photos" / "odd" / "n02951585_can_opener.JPEG"  # orientation 6: turn right to see it
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    frames, _ = frames_of(path)
    assert np.array_equal(frames[0].image, np.rot90(stored, -1))


def test_image_with_invalid_exif_orientation_is_read(shared_data):
    frames, _ = frames_of(shared_data / "photos" / "odd" / "n01728572_thunder_snake.JPEG")
    assert len(frames) == 1


@pytest.mark.parametrize("name", ["n02692877_airship.JPEG", "n04254680_soccer_ball.JPEG"])
def test_greyscale_becomes_rgb_with_equal_channels(shared_data, name):
    frames, _ = frames_of(shared_data / "photos" / "odd" / name)
    image = frames[0].image
    assert image.shape[2] == 3
    assert np.array_equal(image[..., 0], image[..., 2])


def test_colours_come_in_the_order_red_green_blue(tmp_path):
    blue_green_red = np.zeros((8, 8, 3), np.uint8)
    blue_green_red[..., 2] = 200
    cv2.imwrite(str(tmp_path / "red.png"), blue_green_red)
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [200, 0, 0]


def test_deep_and_transparent_pictures_become_eight_bit_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8), 0x8000, np.uint16))
    cv2.imwrite(str(tmp_path / "clear.png"), np.full((8, 8, 4), 100, np.uint8))
    assert [f.image.shape for f in frames_of(tmp_path)[0]] == [(8, 8, 3), (8, 8, 3)]
    assert read_image(tmp_path / "deep.png")[0, 0, 0] == 128


def test_single_truncated_jpeg_is_refused(shared_data):
    path = shared_data / "photos" / "odd" / "truncated_00090.jpg"
    with pytest.raises(SourceError, match="the JPEG is cut off"), build_source(str(path)):
        pass


def test_in_a_folder_broken_pictures_are_left_out_named_and_counted(tmp_path, shared_data, caplog):
    save(tmp_path / "1.png", 1)
    (tmp_path / "2.jpg").write_bytes((shared_data / "photos" / "odd" / "truncated_00090.jpg").read_bytes())
    (tmp_path / "3.png").write_text("a shopping list")
    (tmp_path / "4.jpg").write_bytes(b"")
    save(tmp_path / "5.png", 5)
    frames, source = frames_of(tmp_path)
    assert [(f.index, f.pts_seconds) for f in frames] == [(0, 0.0), (1, 4.0)]
    assert source.health.corrupt == 3
    assert "4.jpg" in source.health.reason
    assert all(name in caplog.text for name in ("2.jpg", "3.png", "4.jpg"))


def test_folder_of_corrupt_images_is_refused(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_text("a shopping list")
    with build_source(str(tmp_path)) as source, pytest.raises(SourceError, match="none of its 2 images can be decoded"):
        list(source.frames(threading.Event()))


def test_folder_without_images_names_suffixes(tmp_path):
    with pytest.raises(SourceError, match=r"contains no image.*\.jpg"), build_source(str(tmp_path)):
        pass


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"nope\.png: no such file or folder"):
        found_images(str(tmp_path / "nope.png"), frozenset({".png"}))
    with pytest.raises(SourceError, match="contains no image"):
        found_images(str(tmp_path / "*.png"), frozenset({".png"}))


def test_stop_ends_a_folder(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", number)
    stop = threading.Event()
    with build_source(str(tmp_path)) as source:
        frames = source.frames(stop)
        next(frames)
        stop.set()
        assert list(frames) == []

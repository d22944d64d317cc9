"""Tests of local paths: options, patterns, and one-line errors."""

import os
import threading

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from stream.images import found_images, natural
from stream.local_uri import split_options
from stream.paths import kind_of, shown
from stream.sources import IMAGE_SUFFIXES, build_source, path_of


def save(path, brightness=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((12, 16, 3), brightness, np.uint8))[1].tobytes())
    return path


def frames_of(uri):
    with build_source(str(uri)) as source:
        return list(source.frames(threading.Event()))


def test_options_are_split_from_a_path(tmp_path):
    assert split_options(f"{tmp_path}?watch=1") == (str(tmp_path), {"watch": "1"})
    assert split_options(f"{tmp_path}?watch=all&bits=12") == (str(tmp_path), {"watch": "all", "bits": "12"})
    assert split_options(f"{tmp_path}?loop=0") == (str(tmp_path), {"loop": "0"})
    assert split_options(str(tmp_path)) == (str(tmp_path), {})


@pytest.mark.parametrize("name", ["what?.png", "a?loop=1", "?watch=1", "part?.png?bits=12"])
def test_file_whose_name_holds_a_question_mark_is_that_file(tmp_path, name):
    path = save(tmp_path / name)
    assert split_options(str(path)) == (str(path), {})


def test_question_mark_of_a_glob_stays_one(tmp_path):
    for name in ("a1.png", "a2.png", "a10.png"):
        save(tmp_path / name)
    assert [path.name for path in found_images(f"{tmp_path}/a?.png", IMAGE_SUFFIXES)] == ["a1.png", "a2.png"]
    assert len(frames_of(f"{tmp_path}/a?.png?bits=12")) == 2


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("lop=1", "lop: unknown key. Did you mean"),
        ("watch=maybe", "watch='maybe': Input should be 'no', 'new' or 'all'"),
        ("bits=11", "bits=11: Input should be 8, 10, 12, 14 or 16"),
        ("loop=1", "loop: is not an option of a folder of images (FOLDER, IMAGE, GLOB); VIDEO have it"),
    ],
)
def test_option_that_is_wrong_is_refused_with_what_is_right(tmp_path, tail, message):
    save(tmp_path / "a.png")
    with pytest.raises(SourceError) as caught:
        build_source(f"{tmp_path}?{tail}")
    assert message in str(caught.value)


def test_video_takes_loop_and_no_option_of_pictures(make_clip):
    clip = make_clip(frame_count=2)
    assert not build_source(f"{clip}?loop=1").live
    with pytest.raises(SourceError, match="watch: is not an option of a video file"):
        build_source(f"{clip}?watch=1")
    with build_source(f"file://{clip}?loop=1") as source:
        assert source.frames_total is None


def test_video_that_is_not_there_is_named_without_its_options(make_clip):
    clip = make_clip("bottles.mp4", frame_count=1)
    with pytest.raises(SourceError, match=r"botles\.mp4: no such file or folder\. Did you mean 'bottles\.mp4'"):
        build_source(f"{clip.with_name('botles.mp4')}?loop=1")


@pytest.mark.parametrize("folder", ["b [1]", "b{2}", "100%", "a*b", "x [a-z] y/[2026]"])
def test_brackets_in_the_names_of_folders_are_letters(tmp_path, folder):
    save(tmp_path / folder / "a1.png")
    save(tmp_path / folder / "sub" / "b2.png")
    assert [f.source_name for f in frames_of(tmp_path / folder)] == ["a1.png"]
    assert [f.source_name for f in frames_of(f"{tmp_path}/{folder}/*.png")] == ["a1.png"]
    assert [f.source_name for f in frames_of(f"{tmp_path}/{folder}/a[0-9].png")] == ["a1.png"]
    assert [f.source_name for f in frames_of(f"{tmp_path}/{folder}/**/*")] == ["a1.png", "sub/b2.png"]


def test_numbered_name_stands_for_its_pictures_in_order(tmp_path):
    for name in ("seq_0002.png", "seq_0010.png", "seq_0001.png", "seq_12345.png", "seq_7.png", "seq_abcd.png"):
        save(tmp_path / name)
    names = ["seq_0001.png", "seq_0002.png", "seq_0010.png", "seq_12345.png"]
    assert [f.source_name for f in frames_of(tmp_path / "seq_%04d.png")] == names
    assert len(found_images(f"{tmp_path}/seq_%d.png", IMAGE_SUFFIXES)) == 5


def test_picture_of_every_kind_in_a_folder_is_read_and_others_are_counted_and_named(tmp_path, caplog):
    for name in ("a.png", "b.AVIF", "c.heic", "d.jfif"):
        save(tmp_path / name)  # the format follows from the content, not from the suffix
    for name in ("e.dng", "f.dng", "g.txt", "h", ".hidden"):
        (tmp_path / name).write_text("no picture")
    assert [f.source_name for f in frames_of(tmp_path)] == ["a.png", "b.AVIF", "c.heic", "d.jfif"]
    assert "4 files skipped because of the suffix: .dng (2)" in caplog.text
    assert ".txt (1)" in caplog.text
    assert "none (1)" in caplog.text


def test_still_picture_without_a_suffix_is_no_video(tmp_path):
    from PIL import Image

    path = tmp_path / "IMG_0001"
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(path, "AVIF")
    assert len(frames_of(path)) == 1
    assert build_source(str(path)).frames_total is None


def test_names_are_told_from_what_the_user_named(tmp_path):
    path = save(tmp_path / "day" / "one.png")
    assert frames_of(path)[0].source_name == "one.png"
    assert frames_of(tmp_path / "day")[0].source_name == "one.png"
    assert frames_of(f"{tmp_path}/*/*.png")[0].source_name == "day/one.png"


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 300 + ".png", "y" * 300 + "/*.png", "a\0b.mp4", "file://" + "x" * 300 + "?loop=1"]
)
def test_name_that_the_system_refuses_is_an_error_in_one_line(name):
    with pytest.raises(SourceError) as caught, build_source(name) as source:
        list(source.frames(threading.Event()))
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.fixture
def nobody_after(tmp_path):
    """Run as a user without rights from now on, because root may enter every folder."""
    was = os.geteuid()

    def become(*folders):
        for folder in folders:
            for folder_or_parent in (folder, *folder.parents):
                if (
                    folder_or_parent != folder_or_parent.parent
                    and folder_or_parent.stat().st_uid == was
                    and folder_or_parent.name.startswith(("pytest-", "test_"))
                ):
                    folder_or_parent.chmod(0o755)
        if was == 0:
            os.seteuid(65534)

    yield become
    os.seteuid(was)
    for path in tmp_path.rglob("*"):
        path.chmod(0o700)


@pytest.mark.parametrize("uri", ["{}/a.png", "{}/a.mp4", "{}", "{}/*.png", "{}?watch=1", "file://{}/a.png"])
def test_folder_that_may_not_be_entered_is_an_error_in_one_line(tmp_path, uri, nobody_after):
    folder = tmp_path / "locked"
    save(folder / "a.png")
    folder.chmod(0)
    nobody_after()
    with (
        pytest.raises(SourceError, match=r"cannot be read: Permission denied; .*chmod") as caught,
        build_source(uri.format(folder)) as source,
    ):
        list(source.frames(threading.Event()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_file_that_may_not_be_read_is_an_error_in_one_line(tmp_path, name, nobody_after):
    path = save(tmp_path / name)
    path.chmod(0)
    nobody_after(tmp_path)
    with pytest.raises(SourceError, match=r"cannot be read: Permission denied; .*chmod"), build_source(str(path)):
        pass


def test_refusal_of_the_system_is_reported_with_path_rule_and_remedy(monkeypatch):
    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuses)
    with pytest.raises(SourceError, match=r"/locked/a\.png: cannot be read: Permission denied; give this user"):
        kind_of("/locked/a.png")


def test_address_longer_than_a_file_name_is_an_address():
    assert build_source("rtsp://camera/" + "x" * 400).live
    assert build_source("http://camera/live?token=" + "x" * 5000).live


def test_path_of_a_source_is_returned_without_its_options(tmp_path):
    path = str(save(tmp_path / "a?b.png"))
    assert path_of(path) == path_of(f"file://{path.replace('?', '%3F')}") == path
    assert path_of(f"{tmp_path}?watch=1") == str(tmp_path)
    assert path_of("rtsp://camera/live?loop=1") == "rtsp://camera/live?loop=1"


def test_name_of_any_bytes_is_shown_as_text(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    os.rename(save(tmp_path / "a.png"), odd)  # noqa: PTH104 - a name that is not utf-8
    [frame] = frames_of(tmp_path)
    assert frame.source_name == r"caf\xe9.png"
    assert shown(odd).encode()


def test_numbers_sort_by_value():
    names = ["a10b", "a9b", "a009b", "A1", "b", "a", "a2b10", "a2b9"]
    assert sorted(sorted(names), key=natural) == ["a", "A1", "a2b9", "a2b10", "a009b", "a9b", "a10b", "b"]

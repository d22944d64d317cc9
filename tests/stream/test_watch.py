"""Tests of watched folders: each complete image once, in order of appearance."""

import os
import threading
from itertools import pairwise

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from stream.folder_watch import NewFileTracker, WatchedFolder
from stream.sources import build_source

SUFFIXES = frozenset({".png", ".jpg"})


def png(brightness):
    return cv2.imencode(".png", np.full((12, 16, 3), brightness, np.uint8))[1].tobytes()


def test_file_arrives_when_it_has_not_changed_between_two_looks(tmp_path):
    path = tmp_path / "a.png"
    tracker = NewFileTracker([])
    path.write_bytes(b"begun")
    assert tracker.update([str(path)], 0.0) == []
    path.write_bytes(b"begun and gone on")
    assert tracker.update([str(path)], 1.0) == []
    assert tracker.update([str(path)], 2.0) == [str(path)]
    assert tracker.record_read(str(path), is_whole=True, now=2.0)
    assert tracker.update([str(path)], 3.0) == []


def test_empty_file_has_not_been_written_yet(tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    tracker = NewFileTracker([])
    assert [tracker.update([str(path)], float(now)) for now in range(3)] == [[], [], []]


def test_files_arrive_in_the_order_they_appeared(tmp_path):
    late, early = tmp_path / "1.png", tmp_path / "2.png"
    tracker = NewFileTracker([])
    early.write_bytes(b"x")
    tracker.update([str(early)], 0.0)
    late.write_bytes(b"x")
    os.utime(late, (0, 0))  # whatever its own clock says
    assert tracker.update([str(late), str(early)], 1.0) == [str(early)]
    assert tracker.update([str(late), str(early)], 2.0) == [str(early), str(late)]


def test_file_that_is_replaced_is_new_again_and_one_that_was_there_is_not(tmp_path):
    path = tmp_path / "latest.jpg"
    path.write_bytes(b"one")
    tracker = NewFileTracker([str(path)])
    assert [tracker.update([str(path)], float(now)) for now in range(3)] == [[], [], []]
    path.write_bytes(b"another")
    assert tracker.update([str(path)], 3.0) == []
    assert tracker.update([str(path)], 4.0) == [str(path)]


def test_files_that_were_away_for_a_moment_are_not_read_again_unless_they_changed(tmp_path):
    paths = [tmp_path / f"{name}.jpg" for name in ("before", "read", "changed")]
    for path in paths:
        path.write_bytes(b"a picture")
    names = [str(path) for path in paths]
    tracker = NewFileTracker(names[:1])
    tracker.update(names, 0.0)
    for path in tracker.update(names, 1.0):
        tracker.record_read(path, is_whole=True, now=1.0)
    assert tracker.update([], 2.0) == []
    paths[2].write_bytes(b"another picture")
    assert [tracker.update(names, now) for now in (3.0, 4.0)] == [[], [names[2]]]


def test_torn_file_is_tried_until_it_has_not_changed_for_long(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"half a picture")
    tracker = NewFileTracker([])
    tracker.update([str(path)], 0.0)
    assert tracker.update([str(path)], 1.0) == [str(path)]
    assert not tracker.record_read(str(path), is_whole=False, now=1.0)
    assert tracker.update([str(path)], 60.0) == [str(path)]
    assert tracker.record_read(str(path), is_whole=False, now=60.0)
    assert tracker.update([str(path)], 61.0) == []


def watched(folder, **options):
    return WatchedFolder(str(folder), suffixes=SUFFIXES, camera="cell", scan_seconds=0.01, **options)


def test_pictures_that_appear_are_given_once_and_those_before_are_not(tmp_path):
    (tmp_path / "0.png").write_bytes(png(10))
    stop, frames = threading.Event(), []
    with watched(tmp_path) as source:
        (tmp_path / "1.png").write_bytes(png(20))
        (tmp_path / "notes.txt").write_text("no picture")
        for frame in source.frames(stop):
            frames.append(frame)
            if len(frames) == 1:
                (tmp_path / "sub").mkdir()
                (tmp_path / "part.tmp").write_bytes(png(30))
                (tmp_path / "part.tmp").rename(tmp_path / "2.png")
            if len(frames) == 2:
                (tmp_path / "1.png").write_bytes(png(40) + bytes(3))
            if len(frames) == 3:
                stop.set()
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [20, 30, 40]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.source_name for frame in frames] == ["1.png", "2.png", "1.png"]
    assert all(later.pts_seconds > earlier.pts_seconds for earlier, later in pairwise(frames))


def test_all_pictures_are_given_where_that_is_asked(tmp_path):
    for number in (10, 2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        os.utime(tmp_path / f"{number}.png", (0, 0))
    stop, got = threading.Event(), []
    with watched(tmp_path, begin="all") as source:
        for frame in source.frames(stop):
            got.append(int(frame.image[0, 0, 0]))
            if len(got) == 2:
                stop.set()
    assert got == [2, 10]


def test_removed_folder_is_reported_and_watched_again(tmp_path, caplog):
    folder = tmp_path / "share"
    folder.mkdir()
    stop = threading.Event()
    got = []
    with watched(folder) as source:
        folder.rmdir()
        reader = threading.Thread(target=lambda: got.extend(source.frames(stop)))
        reader.start()
        while source.health.state != "waiting":
            assert not stop.wait(0.005)
        assert "no longer exists" in source.health.reason
        folder.mkdir()
        (folder / "1.png").write_bytes(png(20))
        while not got:
            assert not stop.wait(0.005)
        stop.set()
        reader.join()
        assert source.health.state == "live"
    assert caplog.text.count("waiting until the folder can be read") == 1


def test_watched_folder_is_live_and_loses_nothing_to_a_slow_reader(tmp_path):
    uri = f"{tmp_path}?watch=1"
    source = build_source(uri)
    assert source.live
    assert source.overflow == "wait"
    assert source.camera == tmp_path.name


def test_only_a_folder_or_a_glob_in_one_can_be_watched(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(SourceError, match="is not a folder that can be watched"):
        build_source(f"{tmp_path / 'a.png'}?watch=1").__enter__()
    with build_source(f"{tmp_path}/*.png?watch=1"):
        pass

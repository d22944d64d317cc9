"""Tests of named pipes, loops, file names and the limit of the image size."""

import os
import threading
from contextlib import suppress
from itertools import islice

import cv2
import numpy as np
import pytest

from pipeline.errors import ConnectionLostError, SourceError
from stream.file import FileSource
from stream.sources import build_source
from tests.stream.test_file_whole import numbers
from tests.support.limits import LIMIT_SECONDS


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe.ts"
    os.mkfifo(path)
    return path


def test_pipe_without_a_writer_delays_neither_entering_nor_stopping(pipe):
    stop = threading.Event()
    with build_source(str(pipe)) as source:
        thread = threading.Thread(target=lambda: list(source.frames(stop)))
        thread.start()
        stop.set()
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()


def test_pipe_is_read_to_the_end_its_writer_makes(pipe, make_clip):
    content = make_clip("clip.ts", frame_count=20, codec="mpeg2video").read_bytes()
    writer = threading.Thread(target=lambda: pipe.write_bytes(content))
    with build_source(str(pipe)) as source:
        writer.start()
        frames = list(source.frames(threading.Event()))
        writer.join()
    assert numbers(frames) == list(range(20))
    assert frames[0].source_name == "pipe.ts"


def test_pipe_left_in_mid_stream_stops(pipe, make_clip):
    content = make_clip("clip.ts", frame_count=60, codec="mpeg2video").read_bytes()
    stop, finish = threading.Event(), threading.Event()

    def write():
        with pipe.open("wb", buffering=0) as file:
            with suppress(BrokenPipeError):  # its reader stopped first
                file.write(content)
            finish.wait()

    writer = threading.Thread(target=write)
    with build_source(str(pipe)) as source:
        writer.start()
        got = []
        reader = threading.Thread(target=lambda: got.extend(source.frames(stop)))
        reader.start()
        stop.set()
        reader.join(LIMIT_SECONDS)
        assert not reader.is_alive()
    finish.set()
    writer.join()


def test_device_that_is_named_as_a_file_is_refused_in_words():
    with pytest.raises(SourceError, match="is a device"), build_source("/dev/zero"):
        pass


def test_looped_video_begins_anew_and_its_clock_goes_on(make_clip):
    clip = make_clip(frame_count=5)
    with build_source(f"{clip}?loop=1") as source:
        frames = list(islice(source.frames(threading.Event()), 12))
        assert source.frames_total is None
        assert not source.live
    assert numbers(frames) == [0, 1, 2, 3, 4] * 2 + [0, 1]
    assert [frame.index for frame in frames] == list(range(12))
    times = [frame.pts_seconds for frame in frames]
    assert np.diff(times) == pytest.approx(0.1, abs=0.01)
    assert {frame.source_name for frame in frames} == {"clip.mp4"}


def test_looped_video_is_live_between_its_repetitions(make_clip, monkeypatch):
    states = []
    opened = FileSource._open

    def record(source, threads):
        states.append(source.health.state)
        opened(source, threads)

    monkeypatch.setattr(FileSource, "_open", record)
    with build_source(f"{make_clip(frame_count=2)}?loop=1") as source:
        list(islice(source.frames(threading.Event()), 6))
    assert states[1:] == ["live", "live"]


def test_looped_video_that_is_damaged_ends_as_such(make_clip):
    clip = make_clip(frame_count=40, options={"movflags": "faststart"})
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 7 // 10])
    with build_source(f"{clip}?loop=1") as source, pytest.raises(SourceError, match="cut off"):
        list(source.frames(threading.Event()))


def test_video_larger_than_the_limit_is_refused_on_entering(make_clip):
    clip = make_clip(frame_count=2)
    with build_source(str(clip), max_pixels=64 * 48) as source:
        assert len(list(source.frames(threading.Event()))) == 2
    with (
        pytest.raises(SourceError, match=r"clip\.mp4: an image of 64x48 pixels .*max_pixels=3071"),
        build_source(str(clip), max_pixels=64 * 48 - 1),
    ):
        pass


def jpeg(side):
    return cv2.imencode(".jpg", np.full((side, side, 3), 90, np.uint8))[1].tobytes()


def test_video_that_grows_beyond_the_limit_ends_in_words_behind_its_good_pictures(tmp_path):
    path = tmp_path / "grows.mjpeg"
    path.write_bytes(jpeg(64) * 3 + jpeg(640) * 2 + jpeg(64))
    frames = []
    with build_source(str(path), max_pixels=64 * 64) as source:
        with pytest.raises(SourceError, match=r"grows\.mjpeg: an image.*max_pixels=4096"):
            frames.extend(source.frames(threading.Event()))
        assert source.health.state == "failed"
    assert len(frames) == 3


def test_stream_beyond_the_limit_is_given_up_in_words(web_server):
    image = jpeg(640)

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=f")
        handler.end_headers()
        for _ in range(4):
            head = f"--f\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
            handler.wfile.write(head.encode() + image + b"\r\n")

    options = {"max_pixels": 64 * 64, "attempts": 1}
    with (
        build_source(web_server(answer) + "/live", **options) as source,
        pytest.raises(ConnectionLostError, match=r"an image .*max_pixels=4096"),
    ):
        list(source.frames(threading.Event()))

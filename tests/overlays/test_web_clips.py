"""Clips of the page: the buffer, the file and its byte ranges."""

from __future__ import annotations

import socket

import av
import numpy as np
import pytest

from overlays.web.clip import PacketBuffer
from overlays.web.ranges import requested_range
from tests.support.page import connect_viewer, fetch, page


def test_clip_buffer_keeps_the_last_half_minute_within_bounds():
    ring = PacketBuffer(limit_bytes=10_000)
    for step in range(1000):
        ring.add("a", step / 30, b"x" * 10)
    assert 290 <= len(ring.packets("a")) <= 301, "ten a second, thirty seconds"
    for step in range(100):
        ring.add("b", 33 + step / 5, b"y" * 1000)
        assert ring.total_bytes <= 10_000
    assert len(ring.packets("b")) == 5
    ring.add("b", 0.0, b"z")
    assert ring.packets("b") == [b"z"], "a clock that went back starts anew"


def test_clip_contains_the_sent_frames_with_their_times(overlaid, wait_until):
    with page() as sink, connect_viewer(sink):
        wait_until(lambda: sink._broadcaster.clients)
        sink._broadcaster.clients[0]._in_flight = {"line": -100}
        assert fetch(sink, "/clip/line.mp4")[0] == 404
        for index in range(8):
            sink.put(overlaid(np.full((48, 64, 3), 30 * index, np.uint8), index=index, taken_at=50 + index / 5))
        code, headers, packed = fetch(sink, "/clip/line.mp4?opacity=0")
        assert (code, headers["content-type"]) == (200, "video/mp4")
        assert fetch(sink, "/clip/line.mp4?opacity=x")[0] == 400
        assert fetch(sink, "/clip/door.mp4")[0] == 404
    import io

    with av.open(io.BytesIO(packed)) as clip:
        frames = list(clip.decode(video=0))
    assert len(frames) == 8
    assert abs(float(frames[-1].time - frames[0].time) - 1.4) < 0.02


def test_clip_is_streamed_with_its_index_first(overlaid, wait_until):
    with page() as sink, connect_viewer(sink):
        wait_until(lambda: sink._broadcaster.clients)
        sink._broadcaster.clients[0]._in_flight = {"line": -100}
        for index in range(8):
            sink.put(overlaid(np.full((48, 64, 3), 30 * index, np.uint8), index=index, taken_at=50 + index / 5))
        code, headers, start = fetch(sink, "/clip/line.mp4", Range="bytes=0-1")
        size = int(headers["content-range"].rpartition("/")[2])
        assert (code, headers["content-range"], len(start)) == (206, f"bytes 0-1/{size}", 2)
        sink.put(overlaid(index=20, taken_at=60.0))
        tag = headers["etag"]
        code, headers, rest = fetch(sink, "/clip/line.mp4", Range="bytes=2-", If_Range=tag)
        assert (code, headers["etag"], len(rest)) == (206, tag, size - 2), "nothing is made anew"
        film = start + rest
        assert 0 < film.index(b"moov") < film.index(b"mdat")
        assert fetch(sink, "/clip/line.mp4", Range="bytes=-5")[2] == film[-5:]
        assert fetch(sink, "/clip/line.mp4", Range=f"bytes={size}-")[0] == 416
        assert fetch(sink, "/clip/line.mp4", Range="bytes=2-", If_Range='"other"')[0] == 200
        code, headers, none = fetch(sink, "/clip/line.mp4", "HEAD")
        assert (code, headers["accept-ranges"], int(headers["content-length"]), none) == (200, "bytes", size, b"")
        assert fetch(sink, "/clip/line.mp4")[1]["etag"] != tag, "whoever asks for all gets the newest"


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None), ("bytes=0-", range(10)), ("bytes=3-4", range(3, 5)), ("bytes=3-99", range(3, 10)),
        ("bytes=-4", range(6, 10)), ("bytes=-99", range(10)), ("bytes=-", None), ("bytes=4-3", None),
        ("bytes=0-1,4-5", None), ("items=0-1", None), ("bytes=a-b", None), ("bytes=9-9", range(9, 10)),
    ],
)  # fmt: skip
def test_asked_range_reads_one_range_and_ignores_the_rest(header, part):
    assert requested_range(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_asked_range_refuses_bytes_that_do_not_exist(header):
    with pytest.raises(ValueError, match="bytes"):
        requested_range(header, 10)


def test_clip_is_available_with_only_an_mjpeg_client(overlaid, wait_until):
    with page() as sink, socket.create_connection(sink._page.access.address) as mjpeg:
        mjpeg.sendall(b"GET /stream/line.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: sink.needs_image("line"))
        for index in range(4):
            sink.put(overlaid(index=index, taken_at=50 + index / 5))
            wait_until(lambda: sink.idle() or sink._broadcaster.is_wanted("line", -1, "painted"))
        code, headers, packed = fetch(sink, "/clip/line.mp4")
    assert (code, headers["content-type"], packed[4:8]) == (200, "video/mp4", b"ftyp")

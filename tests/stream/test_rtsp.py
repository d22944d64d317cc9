"""Tests of RTSP sources, with a GStreamer server on the loopback interface."""

import threading

import pytest

from pipeline.errors import ConnectionLostError
from stream.sources import build_source
from tests.support.limits import WAITS
from tests.support.reader import Reader

pytestmark = pytest.mark.rtsp

QUICK = {"read_timeout_seconds": 1.0, "open_timeout_seconds": 3.0}
ONCE = {**WAITS, "attempts": 1}


def test_frames_come_over_tcp_with_their_times(rtsp_server):
    source = build_source(rtsp_server().url(), **WAITS)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= 25)
    frame = reader.frames[24]
    assert (frame.width, frame.height, frame.index) == (320, 240, 24)
    assert frame.pts_seconds == pytest.approx(24 / 25, abs=0.3)
    assert frame.image.max() > 200  # a white ball on black
    assert source.rate == 25.0
    assert source.health.corrupt == 0


def test_rtsp_reconnects_to_restarted_camera(rtsp_server):
    server = rtsp_server()
    source = build_source(server.url(), **WAITS)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= 5)
        server.close()
        reader.until(lambda: source.health.state == "waiting" and "refused" in source.health.reason)
        seen = len(reader.frames)
        rtsp_server("--port", str(server.port), "--size", "160x120")
        reader.until(lambda: len(reader.frames) >= seen + 10)
        assert source.health.state == "live"
        assert source.health.reconnects == 1
        assert source.health.reason == ""
    assert [f.index for f in reader.frames] == list(range(len(reader.frames)))
    assert (reader.frames[0].width, reader.frames[-1].width) == (320, 160)
    times = [f.pts_seconds for f in reader.frames]
    assert times == sorted(set(times))


def test_rtsp_wrong_password_is_reported_without_secret(rtsp_server):
    server = rtsp_server("--user", "me", "--password", "right")
    source = build_source(server.url(credentials="me:wr0ng@"), **ONCE)
    with source, pytest.raises(ConnectionLostError, match="wrong or missing user name or password") as caught:
        list(source.frames(threading.Event()))
    assert "wr0ng" not in f"{caught.value} {source.health} {source.uri} {source.camera}"


@pytest.mark.parametrize("how", ["--digest", "--user"], ids=["digest", "basic"])
def test_rtsp_right_password_connects(rtsp_server, how):
    server = rtsp_server("--user", "me", "--password", "right", *([how] if how == "--digest" else []))
    source = build_source(server.url(credentials="me:right@"), **ONCE)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= 3)


def test_rtsp_wrong_password_is_reported_without_status(rtsp_server):
    server = rtsp_server("--user", "me", "--password", "right", "--digest")
    for credentials in ("me:wr0ng@", ""):
        source = build_source(server.url(credentials=credentials), **ONCE)
        with source, pytest.raises(ConnectionLostError, match="wrong or missing user name or password") as caught:
            list(source.frames(threading.Event()))
        assert "wr0ng" not in f"{caught.value} {source.health}"


def test_frames_come_over_udp_and_a_camera_that_falls_silent_there_is_noticed(rtsp_server):
    options = {"read_timeout_seconds": 1.0, "open_timeout_seconds": 3.0, "transport": "udp"}
    source = build_source(rtsp_server("--stall-after", "1.5").url(), **options)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= 10)
        reader.until(lambda: source.health.state == "waiting")
        assert source.health.reason == "no frame for 1 s"
    assert reader.frames[0].width == 320


def test_rtsp_over_udp_reconnects_to_restarted_camera(rtsp_server):
    options = {"read_timeout_seconds": 1.0, "open_timeout_seconds": 3.0, "transport": "udp"}
    server = rtsp_server()
    source = build_source(server.url(), **options)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= 5)
        server.close()
        reader.until(lambda: source.health.state != "live")
        seen = len(reader.frames)
        rtsp_server("--port", str(server.port))
        reader.until(lambda: len(reader.frames) >= seen + 10)
        assert source.health.reconnects >= 1


def test_rtsp_wrong_path_is_reported(rtsp_server):
    source = build_source(rtsp_server().url("/nothing"), **ONCE)
    with source, pytest.raises(ConnectionLostError, match=r"check the path \(404"):
        list(source.frames(threading.Event()))


def test_closed_port_is_reported_in_words(rtsp_server):
    server = rtsp_server()
    server.close()
    source = build_source(server.url(), **ONCE)
    with source, pytest.raises(ConnectionLostError, match="connection refused"):
        list(source.frames(threading.Event()))


def test_rtsp_stall_is_detected_within_read_timeout(rtsp_server):
    source = build_source(rtsp_server("--stall-after", "1").url(), **QUICK)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) > 10)
        reader.until(lambda: source.health.state == "waiting")
        assert source.health.reason == "no frame for 1 s"


def test_rtsp_stop_during_stall_ends_reader(rtsp_server):
    source = build_source(rtsp_server("--stall-after", "0.5").url(), **QUICK)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= 5)
    assert reader.error is None


def test_rtsp_stop_while_waiting_ends_reader(rtsp_server):
    server = rtsp_server()
    server.close()
    source = build_source(server.url(), **QUICK)
    with source, Reader(source) as reader:
        reader.until(lambda: source.health.state == "waiting")
    assert reader.error is None

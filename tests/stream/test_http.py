"""Tests of HTTP sources, with a web server on the loopback interface."""

import base64
import socket
import threading
import time

import cv2
import numpy as np
import pytest

from pipeline.errors import ConnectionLostError, CorruptMediaError, SourceError
from stream.sources import build_source
from tests.support.limits import WAITS

ONCE = {**WAITS, "attempts": 1}


def jpeg(brightness):
    return cv2.imencode(".jpg", np.full((48, 64, 3), brightness, np.uint8))[1].tobytes()


def motion_jpeg(handler, images, pause=0.02):
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    handler.end_headers()
    for image in images:
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
        handler.wfile.write(head.encode() + image + b"\r\n")
        handler.wfile.flush()
        time.sleep(pause)  # a camera's own pace


def send_file(handler, content, *, part=1.0):
    """Answer as a web server with range support; after ``part`` of the content, the connection stalls."""
    start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
    handler.send_response(206 if handler.headers.get("Range") else 200)
    handler.send_header("Content-Type", "video/mp4")
    handler.send_header("Accept-Ranges", "bytes")
    handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start : int(len(content) * part)])


def test_http_motion_jpeg_is_live_and_reconnects(web_server):
    address = web_server(lambda handler: motion_jpeg(handler, [jpeg(10 * k) for k in range(1, 16)]))
    source = build_source(f"{address}/video", **WAITS)
    stop, frames = threading.Event(), []
    with source:
        for frame in source.frames(stop):
            frames.append(frame)
            if source.health.reconnects == 1:
                stop.set()
    assert source.live
    assert [round(float(f.image.mean()) / 10) for f in frames[:3]] == [1, 2, 3]
    assert len(frames) > 10
    assert [f.index for f in frames] == list(range(len(frames)))


def test_http_recording_is_read_once_like_file(web_server, make_clip):
    content = make_clip(frame_count=30).read_bytes()
    source = build_source(f"{web_server(lambda handler: send_file(handler, content))}/film.mp4", **ONCE)
    with source:
        frames = list(source.frames(threading.Event()))
    assert not source.live
    assert [round((f.image.mean() - 16) / 8) for f in frames] == [k % 25 for k in range(30)]
    assert source.frames_total == 30
    assert source.health.state == "ended"


def test_http_live_address_that_is_finite_ends(web_server, make_clip):
    content = make_clip(frame_count=30).read_bytes()
    source = build_source(f"{web_server(lambda handler: send_file(handler, content))}/film", **ONCE)
    with source:
        assert len(list(source.frames(threading.Event()))) == 30
    assert source.health.state == "ended"


def test_http_recording_interrupted_gives_frames_then_error(web_server, make_clip):
    content = make_clip(frame_count=60, options={"movflags": "faststart"}).read_bytes()
    address = web_server(lambda handler: send_file(handler, content, part=0.6))
    frames = []
    with build_source(f"{address}/film.mp4", **ONCE) as source, pytest.raises(CorruptMediaError):
        frames.extend(source.frames(threading.Event()))
    assert source.health.state == "failed"


def test_http_refusal_is_reported(web_server):
    for code, arguments in {404: "check the path", 401: "user name or password", 503: "5xx"}.items():
        address = web_server(lambda handler, code=code: handler.send_error(code))
        with build_source(f"{address}/live", **ONCE) as source, pytest.raises(ConnectionLostError, match=arguments):
            list(source.frames(threading.Event()))
        with build_source(f"{address}/film.mp4", **ONCE) as source, pytest.raises(SourceError, match=arguments):
            list(source.frames(threading.Event()))


def test_credentials_in_the_address_are_used_and_not_shown(web_server):
    expected = "Basic " + base64.b64encode(b"me:s3cret").decode()

    def answer(handler):
        if handler.headers.get("Authorization") != expected:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="camera"')
            handler.end_headers()
        else:
            motion_jpeg(handler, [jpeg(50)] * 20, pause=0.005)

    address = web_server(answer).replace("http://", "http://me:s3cret@")
    with build_source(f"{address}/video", **ONCE) as source:
        frames = source.frames(threading.Event())
        assert next(frames).image.mean() == pytest.approx(50, abs=2)
        frames.close()
    assert "s3cret" not in f"{source.uri} {source.camera} {source.health}"


def test_http_web_page_is_refused(web_server):
    def page(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        handler.wfile.write(b"<html><body>It works!</body></html>" * 50)

    with (
        build_source(f"{web_server(page)}/", **ONCE) as source,
        pytest.raises(ConnectionLostError, match="a web page"),
    ):
        list(source.frames(threading.Event()))


def test_http_silent_server_fails_after_open_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/live"
        options = {"open_timeout_seconds": 0.5, "attempts": 1}
        with build_source(address, **options) as source, pytest.raises(ConnectionLostError, match="no answer"):
            list(source.frames(threading.Event()))

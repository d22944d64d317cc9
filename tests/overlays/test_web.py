"""The page's server over real sockets: frames, status, readiness and its end."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import replace

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from overlays.web.broadcast import MAX_IN_FLIGHT
from overlays.web.status import StatusBoard, readiness
from pipeline.frames import Box, SignalLoss
from tests.overlays.conftest import figures
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import connect_viewer, fetch, frame, page, status


def test_image_and_explanation_belong_to_the_same_frame_and_the_image_is_plain(overlaid, wait_until):
    plain = np.full((48, 64, 3), (10, 200, 30), np.uint8)
    with page() as sink, connect_viewer(sink) as link:
        hello = json.loads(link.recv(timeout=LIMIT_SECONDS))
        assert (hello["kind"], hello["painted"], hello["token"]) == ("hello", False, False)
        wait_until(lambda: sink._broadcaster.has_viewers("line", "plain"))
        painted = overlaid(plain, index=7, label="cat")
        painted = replace(painted, pixels=np.zeros_like(plain))
        sink.put(painted)
        header, image = frame(link)
    from overlays.render.jpeg import decode_image

    assert (header.index, header.findings[0].label, header.grid) == (7, "cat", (3, 4))
    assert np.abs(decode_image(image)[24, 32].astype(int) - (10, 200, 30)).max() <= 4


def test_no_image_is_compressed_without_viewers_nor_drawn_for_the_page(overlaid, wait_until):
    with page() as sink:
        for index in range(5):
            sink.put(overlaid(index=index))
        assert sink.encoded == 0
        with connect_viewer(sink) as first, connect_viewer(sink) as other:
            wait_until(lambda: len(sink._broadcaster.clients) == 2)
            assert not sink.needs_image("line"), "the browser paints"
            sink.put(overlaid(index=5))
            assert frame(first)[0].index == frame(other)[0].index == 5
            assert sink.encoded == 1, "one JPEG for all"
        wait_until(lambda: not sink._broadcaster.clients)
        sink.put(overlaid(index=6))
        assert sink.encoded == 1


def test_late_client_gets_the_last_frame(overlaid, wait_until):
    with page() as sink:
        sink.put(overlaid(index=3))
        with connect_viewer(sink) as link:
            wait_until(lambda: sink._broadcaster.has_viewers("line", "plain"))
            sink.idle()
            assert frame(link)[0].index == 3


def test_client_without_acknowledgement_gets_two_frames_then_the_newest(overlaid, wait_until):
    with page() as sink, connect_viewer(sink) as link, connect_viewer(sink) as other:
        wait_until(lambda: len(sink._broadcaster.clients) == 2)
        for index in range(50):
            sink.put(overlaid(index=index))
            seen = frame(other)[0].index
            assert seen == index, "the other one is not held up"
            other.send(json.dumps({"shown": "line"}))
            wait_until(lambda: any(c.can_accept("line", -1, "plain") for c in sink._broadcaster.clients))
        assert [frame(link)[0].index for _ in range(MAX_IN_FLIGHT)] == [0, 1]
        link.send(json.dumps({"shown": "line"}))
        assert frame(link)[0].index == 49
        assert dict(figures(sink))["recipro_page_skipped_total"] == 47


def test_client_with_small_images_gets_them_small_and_the_enlarged_one_large(overlaid, wait_until):
    image = np.full((720, 1280, 3), 90, np.uint8)
    with page(cameras=("a", "b")) as sink, connect_viewer(sink) as link:
        link.send(json.dumps({"small": True, "large": "b"}))
        wait_until(lambda: sink._broadcaster.has_viewers("a", "small") and sink._broadcaster.has_viewers("b", "plain"))
        for camera in "ab":
            sink.put(overlaid(image, camera=camera, region=Box(0, 0, 1280, 720)))
        got = {header.camera: (header, image) for header, image in (frame(link), frame(link))}
        small, large = got["a"][0], got["b"][0]
        assert (small.width, small.height, small.frame_width, small.frame_height) == (640, 360, 1280, 720)
        assert small.heat_region == Box(0, 0, 1280, 720)
        assert (large.width, large.frame_width) == (1280, 1280)
        assert len(got["a"][1]) < len(got["b"][1]) / 2
        for camera in "ab":
            link.send(json.dumps({"shown": camera}))
        link.send(json.dumps({"small": True, "large": "a"}))
        wait_until(lambda: sink.idle() or sink._broadcaster.has_viewers("a", "plain"))
        sink.idle()
        again = {header.camera: header.width for header, _ in (frame(link), frame(link))}
        assert again == {"a": 1280, "b": 640}, "what stands still comes again in its new size"


def test_small_image_is_compressed_once_for_both_sizes(overlaid, wait_until):
    with page() as sink, connect_viewer(sink) as first, connect_viewer(sink) as other:
        other.send(json.dumps({"small": True, "large": ""}))
        wait_until(
            lambda: sink._broadcaster.has_viewers("line", "small") and sink._broadcaster.has_viewers("line", "plain")
        )
        sink.put(overlaid())
        assert frame(first)[1] == frame(other)[1]
        assert sink.encoded == 1


def test_mjpeg_is_drawn_and_requests_the_renderer(overlaid, wait_until):
    painted = np.full((48, 64, 3), (200, 30, 60), np.uint8)
    with page() as sink:
        sink.put(overlaid(painted, index=0))
        link = http.client.HTTPConnection(sink.endpoint.removeprefix("http://"), timeout=LIMIT_SECONDS)
        link.request("GET", "/stream/line.mjpg")
        answer = link.getresponse()
        assert answer.getheader("Content-Type") == "multipart/x-mixed-replace; boundary=frame"
        wait_until(lambda: sink.needs_image("line"))
        assert not sink.needs_image("door")
        sink.put(overlaid(painted, index=1))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += answer.read(1)
        size = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        image = answer.read(size)
        assert image[:2] == b"\xff\xd8"
        assert answer.read(9) == b"\r\n--frame", "the end of a part comes with it"
        answer.close()
        link.close()

        def left():
            sink.put(overlaid(painted))
            return not sink.needs_image("line")

        wait_until(left)
        assert fetch(sink, "/stream/door.mjpg")[0] == 404


def test_server_ends_while_clients_are_connected(overlaid, wait_until):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with page() as sink, connect_viewer(sink) as link, socket.create_connection(sink._page.access.address) as mjpeg:
        mjpeg.sendall(b"GET /stream/line.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: len(sink._broadcaster.clients) == 2)
        for index in range(20):
            sink.put(overlaid(noise, index=index))
        sink.__exit__(None, None, None)
        with pytest.raises(ConnectionClosed):
            _ = [link.recv(timeout=LIMIT_SECONDS) for _ in range(1000)]


def test_signal_loss_and_its_end_are_sent(overlaid):
    with page() as sink, connect_viewer(sink) as link:
        for index in range(5):
            sink.put(overlaid(index=index))
        state = status(link, lambda camera: camera["silent"])
        assert (state["state"], state["index"]) == ("silent", 4)
        sink.put(replace(overlaid(index=4), signal_loss=SignalLoss(3.0, "waiting", "refused the connection")))
        assert status(link, lambda camera: camera["reason"])["reason"] == "refused the connection"
        sink.put(overlaid(index=9))
        state = status(link, lambda camera: not camera["silent"])
        assert (state["state"], state["missed"]) == ("live", 4)


def test_readyz_requires_fresh_frames_of_every_camera(overlaid):
    now = [100.0]
    board = StatusBoard(("a", "b"), lambda: now[0])
    assert readiness(board.snapshot(), 5.0) == (False, dict.fromkeys("ab", "no frame yet, waiting"))
    for camera in "ab":
        board.update(overlaid(camera=camera, taken_at=99.9))
    assert readiness(board.snapshot(), 5.0) == (True, {"a": "fresh", "b": "fresh"})
    now[0] = 106.0
    board.update(overlaid(camera="a", taken_at=105.9))
    assert readiness(board.snapshot(), 5.0) == (False, {"a": "fresh", "b": "the last frame is 6.1 s old, silent"})
    assert readiness([], 5.0) == (False, {})


def test_slow_camera_is_not_reported_as_lost(overlaid):
    now = [0.0]
    board = StatusBoard((), lambda: now[0])
    for index in range(5):
        now[0] = 2.0 * index
        board.update(overlaid(index=index, taken_at=now[0]))
    now[0] += 3.0
    assert not board.snapshot()[0]["silent"]
    now[0] += 4.0
    assert board.snapshot()[0]["silent"]
    assert board.snapshot()[0]["rate"] == 0


def test_rate_of_an_image_every_ten_seconds_is_shown(overlaid):
    now = [0.0]
    board = StatusBoard((), lambda: now[0])
    for index, timestamp in enumerate((0.0, 10.1, 20.3, 30.2)):
        now[0] = timestamp
        board.update(overlaid(index=index, taken_at=timestamp))
    now[0] += 11.0
    text = board.snapshot()[0]
    assert (text["state"], text["rate"]) == ("live", pytest.approx(0.1, abs=0.01))


def test_number_outside_json_skips_the_frame_and_keeps_the_page(overlaid, wait_until, caplog):
    with page(cameras=()) as sink, connect_viewer(sink) as link:
        wait_until(lambda: sink._broadcaster.clients)
        for index in range(3):
            sink.put(overlaid(index=index, score=float("nan"), camera="odd \udcff"))
        sink.put(overlaid(index=3, camera="odd \udcff"))
        assert frame(link)[0].index == 3
        assert status(link, lambda camera: camera["frames"] == 4)["camera"] == "odd ?"
    assert len([r for r in caplog.records if "left out" in r.message]) == 1


def test_request_with_an_invalid_number_is_refused_with_a_message(overlaid, wait_until):
    with page() as sink, connect_viewer(sink) as link:
        wait_until(lambda: sink._broadcaster.has_viewers("line", "plain"))
        sink.put(overlaid())
        frame(link)
        for path in ("/readyz?within=nan", "/clip/line.mp4?opacity=nan"):
            code, _, body = fetch(sink, path)
            assert (code, b"Traceback" in body) == (400, False)

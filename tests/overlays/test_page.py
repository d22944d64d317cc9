"""The page's server over real sockets: who may look, what is sent, what is said of the run, and how it ends."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from overlays.page import server
from overlays.page.board import Board, readiness
from overlays.page.clip import Ring
from overlays.page.guard import COOKIE_SECONDS, Guard, PageAddress, check_token, is_loopback, parse_page_address
from overlays.page.hub import WINDOW
from overlays.page.packet import unpack
from overlays.sinks.options import SinkOptions
from overlays.sinks.page import PageSink
from overlays.sinks.table import build_sink
from overlays.wire import decode_header
from pipeline.errors import SinkError
from pipeline.frames import Box, Silence
from tests.overlays.conftest import figures

ROOT = Path(__file__).resolve().parents[2]
ANY = "http://127.0.0.1:0"
TOKEN = "correct-horse-battery"  # noqa: S105 - of no page
OPEN = SinkOptions()
LOCKED = SinkOptions(token=TOKEN)


@contextmanager
def page(options=OPEN, cameras=("line",)):
    with PageSink(ANY, cameras=cameras, options=options) as sink:
        yield sink


def asked(sink, path, method="GET", body=None, **headers):
    """(status, headers, body) of one request; underscores in names stand for dashes."""
    host = sink.endpoint.removeprefix("http://")
    link = http.client.HTTPConnection(host, timeout=10)
    try:
        link.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = link.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        link.close()


@contextmanager
def looking(sink, **headers):
    address = sink.endpoint.replace("http://", "ws://") + "/frames"
    with connect(address, additional_headers=headers, compression=None, max_size=None, proxy=None) as link:
        yield link


def frame(link, seconds=5.0):
    """The next frame's header and JPEG; what else is said is passed over."""
    deadline = time.monotonic() + seconds
    while True:
        said = link.recv(timeout=deadline - time.monotonic())
        if isinstance(said, bytes):
            packed, picture = unpack(said)
            return decode_header(packed), picture


def status(link, wanted, seconds=5.0):
    """The first status that satisfies."""
    deadline = time.monotonic() + seconds
    while True:
        said = link.recv(timeout=deadline - time.monotonic())
        if isinstance(said, str):
            told = json.loads(said)
            if told["kind"] == "status":
                link.send('{"heard": true}')
                if told["cameras"] and wanted(told["cameras"][0]):
                    return told["cameras"][0]


def test_picture_and_reason_belong_to_the_same_frame_and_the_picture_is_plain(overlaid, until):
    plain = np.full((48, 64, 3), (10, 200, 30), np.uint8)
    with page() as sink, looking(sink) as link:
        hello = json.loads(link.recv(timeout=5))
        assert (hello["kind"], hello["painted"], hello["token"]) == ("hello", False, False)
        until(lambda: sink._hub.looked_at("line", "plain"))
        painted = overlaid(plain, index=7, label="cat")
        painted = replace(painted, image=np.zeros_like(plain))
        sink.put(painted)
        header, picture = frame(link)
    from overlays.jpeg import decode_picture

    assert (header.index, header.findings[0].label, header.grid) == (7, "cat", (3, 4))
    assert np.abs(decode_picture(picture)[24, 32].astype(int) - (10, 200, 30)).max() <= 4


def test_nothing_is_compressed_while_nobody_looks_and_no_picture_is_painted_for_the_page(overlaid, until):
    with page() as sink:
        for index in range(5):
            sink.put(overlaid(index=index))
        assert sink.encoded == 0
        with looking(sink) as one, looking(sink) as other:
            until(lambda: len(sink._hub.clients) == 2)
            assert not sink.needs_picture("line"), "the browser paints"
            sink.put(overlaid(index=5))
            assert frame(one)[0].index == frame(other)[0].index == 5
            assert sink.encoded == 1, "one JPEG for all"
        until(lambda: not sink._hub.clients)
        sink.put(overlaid(index=6))
        assert sink.encoded == 1


def test_a_late_joiner_gets_the_last_frame_though_nothing_new_comes(overlaid, until):
    with page() as sink:
        sink.put(overlaid(index=3))
        with looking(sink) as link:
            until(lambda: sink._hub.looked_at("line", "plain"))
            sink.idle()
            assert frame(link)[0].index == 3


def test_who_does_not_say_that_it_has_shown_them_gets_two_frames_and_then_the_newest(overlaid, until):
    with page() as sink, looking(sink) as link, looking(sink) as other:
        until(lambda: len(sink._hub.clients) == 2)
        for index in range(50):
            sink.put(overlaid(index=index))
            seen = frame(other)[0].index
            assert seen == index, "the other one is not held up"
            other.send(json.dumps({"shown": "line"}))
            until(lambda: any(c.takes("line", -1, "plain") for c in sink._hub.clients))
        assert [frame(link)[0].index for _ in range(WINDOW)] == [0, 1]
        link.send(json.dumps({"shown": "line"}))
        assert frame(link)[0].index == 49
        assert dict(figures(sink))["recipro_page_skipped_total"] == 47


def test_who_shows_pictures_small_gets_them_small_and_large_the_one_it_enlarges(overlaid, until):
    image = np.full((720, 1280, 3), 90, np.uint8)
    with page(cameras=("a", "b")) as sink, looking(sink) as link:
        link.send(json.dumps({"small": True, "large": "b"}))
        until(lambda: sink._hub.looked_at("a", "small") and sink._hub.looked_at("b", "plain"))
        for camera in "ab":
            sink.put(overlaid(image, camera=camera, region=Box(0, 0, 1280, 720)))
        got = {header.camera: (header, picture) for header, picture in (frame(link), frame(link))}
        small, large = got["a"][0], got["b"][0]
        assert (small.width, small.height, small.frame_width, small.frame_height) == (640, 360, 1280, 720)
        assert small.heat_region == Box(0, 0, 1280, 720)
        assert (large.width, large.frame_width) == (1280, 1280)
        assert len(got["a"][1]) < len(got["b"][1]) / 2
        for camera in "ab":
            link.send(json.dumps({"shown": camera}))
        link.send(json.dumps({"small": True, "large": "a"}))
        until(lambda: sink.idle() or sink._hub.looked_at("a", "plain"))
        sink.idle()
        again = {header.camera: header.width for header, _ in (frame(link), frame(link))}
        assert again == {"a": 1280, "b": 640}, "what stands still comes again in its new size"


def test_a_picture_that_is_small_already_is_compressed_once_for_both(overlaid, until):
    with page() as sink, looking(sink) as one, looking(sink) as other:
        other.send(json.dumps({"small": True, "large": ""}))
        until(lambda: sink._hub.looked_at("line", "small") and sink._hub.looked_at("line", "plain"))
        sink.put(overlaid())
        assert frame(one)[1] == frame(other)[1]
        assert sink.encoded == 1


def test_mjpeg_is_painted_and_asks_the_renderer_for_it(overlaid, until):
    painted = np.full((48, 64, 3), (200, 30, 60), np.uint8)
    with page() as sink:
        sink.put(overlaid(painted, index=0))
        link = http.client.HTTPConnection(sink.endpoint.removeprefix("http://"), timeout=10)
        link.request("GET", "/stream/line.mjpg")
        answer = link.getresponse()
        assert answer.getheader("Content-Type") == "multipart/x-mixed-replace; boundary=frame"
        until(lambda: sink.needs_picture("line"))
        assert not sink.needs_picture("door")
        sink.put(overlaid(painted, index=1))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += answer.read(1)
        size = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        picture = answer.read(size)
        assert picture[:2] == b"\xff\xd8"
        assert answer.read(9) == b"\r\n--frame", "the end of a part comes with it"
        answer.close()
        link.close()

        def left():
            sink.put(overlaid(painted))
            return not sink.needs_picture("line")

        until(left)
        assert asked(sink, "/stream/door.mjpg")[0] == 404


def test_the_end_comes_though_people_look_on(overlaid, until):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with page() as sink, looking(sink) as link, socket.create_connection(sink._page.guard.address) as mjpeg:
        mjpeg.sendall(b"GET /stream/line.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: len(sink._hub.clients) == 2)
        for index in range(20):
            sink.put(overlaid(noise, index=index))
        sink.__exit__(None, None, None)
        with pytest.raises(ConnectionClosed):
            _ = [link.recv(timeout=5) for _ in range(1000)]


def test_a_silent_camera_is_told_and_its_return_too(overlaid):
    with page() as sink, looking(sink) as link:
        for index in range(5):
            sink.put(overlaid(index=index))
        said = status(link, lambda camera: camera["silent"])
        assert (said["state"], said["index"]) == ("silent", 4)
        sink.put(replace(overlaid(index=4), silence=Silence(3.0, "waiting", "refused the connection")))
        assert status(link, lambda camera: camera["reason"])["reason"] == "refused the connection"
        sink.put(overlaid(index=9))
        said = status(link, lambda camera: not camera["silent"])
        assert (said["state"], said["missed"]) == ("live", 4)


# Who may look


def test_without_the_token_nothing_is_seen_but_the_sign_in_and_the_pulse(overlaid):
    with page(LOCKED) as sink:
        sink.put(overlaid())
        for path in ("/", "/frames", "/metrics", "/stream/line.mjpg", "/clip/line.mp4", "/static/page.js"):
            assert asked(sink, path)[0] == 401, path
            assert asked(sink, path, Authorization=f"Bearer {TOKEN}x")[0] == 401, path
        assert asked(sink, "/metrics?token=" + TOKEN)[0] == 401, "not in URLs"
        code, headers, _ = asked(sink, "/", Accept="text/html")
        assert (code, headers["location"]) == (303, "/login")
        assert asked(sink, "/login")[0] == asked(sink, "/static/page.css")[0] == asked(sink, "/healthz")[0] == 200
        code, _, told = asked(sink, "/readyz")
        assert (code, json.loads(told)) == (200, {"ready": True, "within_seconds": 5.0}), "no camera is named"
        with pytest.raises(InvalidStatus, match="401"), looking(sink):
            pass
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert asked(sink, "/metrics", **good)[0] == 200
        assert json.loads(asked(sink, "/readyz", **good)[2])["cameras"] == {"line": "fresh"}
        with looking(sink, **good) as link:
            assert json.loads(link.recv(timeout=5))["token"]


def test_signing_in_gives_a_cookie_that_scripts_and_other_sites_do_not_get(caplog):
    caplog.set_level("DEBUG")
    with page(LOCKED) as sink:
        code, headers, told = asked(sink, "/login", "POST", "token=wrong-but-long-enough")
        assert (code, "set-cookie" in headers) == (401, False)
        assert b"not the token" in told
        code, headers, _ = asked(sink, "/login", "POST", f"token={TOKEN}")
        assert (code, headers["location"]) == (303, "/")
        cookie, *kept = headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(kept)
        assert TOKEN not in cookie
        assert asked(sink, "/", Cookie=cookie)[0] == 200
        assert asked(sink, "/", Cookie=cookie[:-1] + "0")[0] in {200, 401}
        with looking(sink, Cookie=cookie):
            pass
        assert asked(sink, "/login", "POST", "token=" + "x" * 5000)[0] == 413
        code, headers, _ = asked(sink, "/logout", "POST", Cookie=cookie)
        assert "Max-Age=0" in headers["set-cookie"]
        secure = asked(sink, "/login", "POST", f"token={TOKEN}", X_Forwarded_Proto="https")[1]["set-cookie"]
        assert "Secure" in secure, "behind a proxy that speaks TLS"
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(LOCKED)


def test_a_foreign_name_and_a_foreign_site_are_turned_away(overlaid):
    with page() as sink:
        port = sink.endpoint.rpartition(":")[2]
        sink.put(overlaid())
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.5", ""):
            assert asked(sink, "/", Host=host)[0] == 421, host
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
            assert asked(sink, "/", Host=host)[0] == 200, host
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{port}", "file://"):
            with pytest.raises(InvalidStatus, match="403"), looking(sink, Origin=origin):
                pass
            assert asked(sink, "/login", "POST", "token=x", Origin=origin)[0] == 403
        with looking(sink, Origin=sink.endpoint):
            pass
        refused = dict(figures(sink))["recipro_page_refused_total"]
        assert refused >= 10


def test_names_may_be_added_for_a_proxy():
    with page(replace(OPEN, hosts=("cams.example.com",))) as sink:
        assert asked(sink, "/", Host="cams.example.com")[0] == 200
        assert asked(sink, "/", Host="other.example.com")[0] == 421


def test_every_answer_forbids_what_the_page_does_not_need():
    with page() as sink:
        for path in ("/", "/static/page.js", "/nothing", "/metrics", "/static/../guard.py", "/static/guard.py"):
            code, headers, _ = asked(sink, path)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "server" not in headers
            assert code == (404 if "guard" in path or "nothing" in path else 200)


@pytest.mark.parametrize("uri", ["http://0.0.0.0:0", "http://[::]:0", "http://192.0.2.1:8000"])
def test_beyond_this_machine_a_token_is_asked_for_or_said_to_be_waived(uri):
    with pytest.raises(SinkError, match=r"--page-token-file page.token.*http://127.0.0.1:.*insecure: true"):
        PageSink(uri).__enter__()


def test_waived_or_with_a_token_it_serves_others():
    for options in (LOCKED, replace(OPEN, insecure=True)):
        with PageSink("http://0.0.0.0:0", options=options) as sink:
            at = PageSink.__new__(PageSink)
            at.endpoint = sink.endpoint.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
            assert asked(at, "/healthz")[0] == 200
            assert asked(at, "/healthz", Host="192.168.1.7:8000")[0] == 200
            assert asked(at, "/healthz", Host="evil.example")[0] == (200 if options.token else 421)


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "ünïcödé-ünïcödé-ünïcödé"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token):
    with pytest.raises(SinkError, match="openssl rand"):
        PageSink(ANY, options=SinkOptions(token=token))
    assert check_token(f" {TOKEN}\n") == TOKEN


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1", "http://:80", "http://h:99999", "http://u:p@h:1", "http://h:1/path", "http://h:1?x"]
)
def test_an_address_that_is_written_wrong_is_refused(uri):
    with pytest.raises(SinkError, match=r"http://127\.0\.0\.1:8000"):
        PageSink(uri)


def test_a_port_in_use_is_refused_with_the_cure():
    with page() as sink, pytest.raises(SinkError, match="is in use; choose another port"):
        PageSink(sink.endpoint).__enter__()


def test_a_cookie_runs_out_and_another_token_breaks_it():
    guard = Guard(PageAddress("127.0.0.1", 1), TOKEN)
    cookie = guard.cookie(1000.0)
    assert guard.admits(None, cookie, 1000.0)
    assert not guard.admits(None, cookie, 1001.0 + COOKIE_SECONDS)
    later = f"{int(cookie.partition('.')[0]) + 9}.{cookie.partition('.')[2]}"
    assert not guard.admits(None, later, 1000.0), "who changes the time breaks the seal"
    assert not Guard(guard.address, TOKEN + "x").admits(None, cookie, 1000.0)
    for junk in ("", ".", "9" * 30 + ".x", "²³.x", "1.ü"):
        assert not guard.admits("Bearer ü", junk, 1000.0)


def test_loopback_is_told_from_the_world():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "no-such.invalid"))  # noqa: S104
    assert parse_page_address("http://[::1]:80/") == PageAddress("::1", 80)


# Health, clips


def test_ready_means_that_every_camera_is_fresh(overlaid):
    now = [100.0]
    board = Board(("a", "b"), lambda: now[0])
    assert readiness(board.told(), 5.0) == (False, dict.fromkeys("ab", "no frame yet, waiting"))
    for camera in "ab":
        board.note(overlaid(camera=camera, taken_at=99.9))
    assert readiness(board.told(), 5.0) == (True, {"a": "fresh", "b": "fresh"})
    now[0] = 106.0
    board.note(overlaid(camera="a", taken_at=105.9))
    assert readiness(board.told(), 5.0) == (False, {"a": "fresh", "b": "the last frame is 6.1 s old, silent"})
    assert readiness([], 5.0) == (False, {})


def test_a_camera_that_is_slow_by_nature_is_not_called_silent(overlaid):
    now = [0.0]
    board = Board((), lambda: now[0])
    for index in range(5):
        now[0] = 2.0 * index
        board.note(overlaid(index=index, taken_at=now[0]))
    now[0] += 3.0
    assert not board.told()[0]["silent"]
    now[0] += 4.0
    assert board.told()[0]["silent"]
    assert board.told()[0]["rate"] == 0


def test_a_picture_every_ten_seconds_is_a_rate_too(overlaid):
    now = [0.0]
    board = Board((), lambda: now[0])
    for index, moment in enumerate((0.0, 10.1, 20.3, 30.2)):
        now[0] = moment
        board.note(overlaid(index=index, taken_at=moment))
    now[0] += 11.0
    told = board.told()[0]
    assert (told["state"], told["rate"]) == ("live", pytest.approx(0.1, abs=0.01))


def test_the_last_half_minute_is_kept_within_its_bounds():
    ring = Ring(limit_bytes=10_000)
    for step in range(1000):
        ring.add("a", step / 30, b"x" * 10)
    assert 290 <= len(ring.packets("a")) <= 301, "ten a second, thirty seconds"
    for step in range(100):
        ring.add("b", 33 + step / 5, b"y" * 1000)
        assert ring.total_bytes <= 10_000
    assert len(ring.packets("b")) == 5
    ring.add("b", 0.0, b"z")
    assert ring.packets("b") == [b"z"], "a clock that went back starts anew"


def test_a_clip_shows_what_was_sent_timed_as_it_was(overlaid, until):
    with page() as sink, looking(sink):
        until(lambda: sink._hub.clients)
        sink._hub.clients[0]._flying = {"line": -100}
        assert asked(sink, "/clip/line.mp4")[0] == 404
        for index in range(8):
            sink.put(overlaid(np.full((48, 64, 3), 30 * index, np.uint8), index=index, taken_at=50 + index / 5))
        code, headers, packed = asked(sink, "/clip/line.mp4?opacity=0")
        assert (code, headers["content-type"]) == (200, "video/mp4")
        assert asked(sink, "/clip/line.mp4?opacity=x")[0] == 400
        assert asked(sink, "/clip/door.mp4")[0] == 404
    import io

    with av.open(io.BytesIO(packed)) as clip:
        frames = list(clip.decode(video=0))
    assert len(frames) == 8
    assert abs(float(frames[-1].time - frames[0].time) - 1.4) < 0.02


def test_a_number_that_json_cannot_say_leaves_the_frame_out_and_the_page_alive(overlaid, until, caplog):
    with page(cameras=()) as sink, looking(sink) as link:
        until(lambda: sink._hub.clients)
        for index in range(3):
            sink.put(overlaid(index=index, score=float("nan"), camera="odd \udcff"))
        sink.put(overlaid(index=3, camera="odd \udcff"))
        assert frame(link)[0].index == 3
        assert status(link, lambda camera: camera["frames"] == 4)["camera"] == "odd ?"
    assert len([r for r in caplog.records if "left out" in r.message]) == 1


def test_a_number_that_is_none_is_refused_in_words(overlaid, until):
    with page() as sink, looking(sink) as link:
        until(lambda: sink._hub.looked_at("line", "plain"))
        sink.put(overlaid())
        frame(link)
        for path in ("/readyz?within=nan", "/clip/line.mp4?opacity=nan"):
            code, _, said = asked(sink, path)
            assert (code, b"Traceback" in said) == (400, False)


def test_a_user_and_a_password_in_a_door_s_address_are_not_said_again():
    for address in ("http://ada:canary@127.0.0.1:8000", "tcp://ada:canary@127.0.0.1:5555"):
        with pytest.raises(SinkError, match="is not written like") as refused:
            build_sink(address)
        assert "canary" not in str(refused.value)


def test_nonsense_that_is_sent_again_and_again_is_said_once_a_minute(caplog):
    now = [0.0]
    log = logging.getLogger("somebody")
    log.addFilter(server.OnceAMinute(lambda: now[0]))
    for second in range(100):
        now[0] = second
        log.warning("Invalid HTTP request received.")
    log.warning("something else")
    assert [record.getMessage()[:7] for record in caplog.records] == ["Invalid", "Invalid", "somethi"]


def test_who_keeps_a_place_and_says_nothing_is_hung_up_on_and_who_asks_is_answered(until):
    with page() as sink:
        host, port = sink.endpoint.removeprefix("http://").split(":")
        with ExitStack() as stack:
            mute = [stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(300)]
            for number, one in enumerate(mute):
                if number % 2:
                    one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Never-Ends: ")
            until(lambda: asked(sink, "/healthz")[0] == 200)
            for one in mute:
                with suppress(ConnectionError):
                    assert one.recv(1) == b""


def test_who_asks_again_and_again_on_one_connection_is_not_taken_for_mute(monkeypatch):
    monkeypatch.setattr(server, "MUTE_SECONDS", 0.5)
    with page() as sink:
        link = http.client.HTTPConnection(sink.endpoint.removeprefix("http://"), timeout=10)
        with closing(link):
            link.connect()
            door, ended = link.sock, time.monotonic() + 1.5
            while time.monotonic() < ended:
                link.request("GET", "/healthz")
                assert link.getresponse().read() == b"alive\n"
            assert link.sock is door

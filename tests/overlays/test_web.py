"""The page's server over real sockets: who may look, what is sent, what is said of the run, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import re
import socket
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from itsdangerous import TimestampSigner
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from commands.wiring.sinks import ChangingFile
from overlays import file_limits
from overlays.sinks.registry import build_sink
from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from overlays.web import middleware, server
from overlays.web import rate_limit as pace_of_page
from overlays.web.auth import (
    COOKIE_SECONDS,
    AccessPolicy,
    Credentials,
    PageAddress,
    check_origin,
    check_prefix,
    check_token,
    is_loopback,
    parse_page_address,
)
from overlays.web.broadcast import MAX_IN_FLIGHT
from overlays.web.clip import PacketBuffer
from overlays.web.clips import requested_range
from overlays.web.framing import unpack
from overlays.web.rate_limit import UNAUTHENTICATED, WRONG_TOKEN_COST, Rate, RequestRateLimiter
from overlays.web.status import StatusBoard, readiness
from overlays.wire.header import decode_header
from pipeline.errors import SinkError
from pipeline.frames import Box, SignalLoss
from pipeline.settings import Secret, SinkContext
from tests.overlays.conftest import figures
from tests.support.limits import LIMIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]
ANY = "http://127.0.0.1:0"
TOKEN = "correct-horse-battery"  # noqa: S105 - of no page
LOCKED = {"token_file": Secret(TOKEN)}


@contextmanager
def page(secrets=None, cameras=("line",), **options):
    settings = WebSettings(uri=ANY, **options)
    with WebSink(settings, SinkContext(tuple(cameras), secrets or {})) as sink:
        yield sink


def fetch(sink, path, method="GET", body=None, **headers):
    """(status, headers, body) of one request; underscores in names stand for dashes."""
    host = sink.endpoint.removeprefix("http://")
    link = http.client.HTTPConnection(host, timeout=LIMIT_SECONDS)
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


def frame(link, seconds=LIMIT_SECONDS):
    """The next frame's header and JPEG; what else is said is passed over."""
    deadline = time.monotonic() + seconds
    while True:
        received = link.recv(timeout=deadline - time.monotonic())
        if isinstance(received, bytes):
            packed, image = unpack(received)
            return decode_header(packed), image


def status(link, expected, seconds=LIMIT_SECONDS):
    """The first status that satisfies."""
    deadline = time.monotonic() + seconds
    while True:
        received = link.recv(timeout=deadline - time.monotonic())
        if isinstance(received, str):
            record = json.loads(received)
            if record["kind"] == "status":
                link.send('{"heard": true}')
                if record["cameras"] and expected(record["cameras"][0]):
                    return record["cameras"][0]


def test_image_and_explanation_belong_to_the_same_frame_and_the_image_is_plain(overlaid, wait_until):
    plain = np.full((48, 64, 3), (10, 200, 30), np.uint8)
    with page() as sink, looking(sink) as link:
        hello = json.loads(link.recv(timeout=LIMIT_SECONDS))
        assert (hello["kind"], hello["painted"], hello["token"]) == ("hello", False, False)
        wait_until(lambda: sink._broadcaster.has_viewers("line", "plain"))
        painted = overlaid(plain, index=7, label="cat")
        painted = replace(painted, image=np.zeros_like(plain))
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
        with looking(sink) as first, looking(sink) as other:
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
        with looking(sink) as link:
            wait_until(lambda: sink._broadcaster.has_viewers("line", "plain"))
            sink.idle()
            assert frame(link)[0].index == 3


def test_client_without_acknowledgement_gets_two_frames_then_the_newest(overlaid, wait_until):
    with page() as sink, looking(sink) as link, looking(sink) as other:
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
    with page(cameras=("a", "b")) as sink, looking(sink) as link:
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
    with page() as sink, looking(sink) as first, looking(sink) as other:
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
    with page() as sink, looking(sink) as link, socket.create_connection(sink._page.access.address) as mjpeg:
        mjpeg.sendall(b"GET /stream/line.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: len(sink._broadcaster.clients) == 2)
        for index in range(20):
            sink.put(overlaid(noise, index=index))
        sink.__exit__(None, None, None)
        with pytest.raises(ConnectionClosed):
            _ = [link.recv(timeout=LIMIT_SECONDS) for _ in range(1000)]


def test_signal_loss_and_its_end_are_sent(overlaid):
    with page() as sink, looking(sink) as link:
        for index in range(5):
            sink.put(overlaid(index=index))
        state = status(link, lambda camera: camera["silent"])
        assert (state["state"], state["index"]) == ("silent", 4)
        sink.put(replace(overlaid(index=4), signal_loss=SignalLoss(3.0, "waiting", "refused the connection")))
        assert status(link, lambda camera: camera["reason"])["reason"] == "refused the connection"
        sink.put(overlaid(index=9))
        state = status(link, lambda camera: not camera["silent"])
        assert (state["state"], state["missed"]) == ("live", 4)


# Who may look


def test_only_login_and_health_are_served_without_the_token(overlaid):
    with page(LOCKED) as sink:
        sink.put(overlaid())
        for path in ("/", "/frames", "/metrics", "/stream/line.mjpg", "/clip/line.mp4", "/static/page.js"):
            assert fetch(sink, path)[0] == 401, path
            assert fetch(sink, path, Authorization=f"Bearer {TOKEN}x")[0] == 401, path
        assert fetch(sink, "/metrics?token=" + TOKEN)[0] == 401, "not in URLs"
        code, headers, _ = fetch(sink, "/", Accept="text/html")
        assert (code, headers["location"]) == (303, "login")
        assert fetch(sink, "/login")[0] == fetch(sink, "/static/page.css")[0] == fetch(sink, "/healthz")[0] == 200
        code, _, body = fetch(sink, "/readyz")
        assert (code, json.loads(body)) == (200, {"ready": True, "within_seconds": 5.0}), "no camera is named"
        with pytest.raises(InvalidStatus, match="401"), looking(sink):
            pass
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert fetch(sink, "/metrics", **good)[0] == 200
        assert json.loads(fetch(sink, "/readyz", **good)[2])["cameras"] == {"line": "fresh"}
        with looking(sink, **good) as link:
            assert json.loads(link.recv(timeout=LIMIT_SECONDS))["token"]


def test_login_cookie_is_not_readable_by_scripts_and_other_sites(caplog):
    caplog.set_level("DEBUG")
    with page(LOCKED) as sink:
        code, headers, body = fetch(sink, "/login", "POST", "token=wrong-but-long-enough")
        assert (code, "set-cookie" in headers) == (401, False)
        assert b"The token is wrong" in body
        code, headers, _ = fetch(sink, "/login", "POST", f"token={TOKEN}")
        assert (code, headers["location"]) == (303, "./")
        cookie, *attributes = headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(attributes)
        assert TOKEN not in cookie
        assert fetch(sink, "/", Cookie=cookie)[0] == 200
        assert fetch(sink, "/", Cookie=cookie[:-1] + "0")[0] in {200, 401}
        with looking(sink, Cookie=cookie):
            pass
        assert fetch(sink, "/login", "POST", "token=" + "x" * 5000)[0] == 413
        code, headers, _ = fetch(sink, "/logout", "POST", Cookie=cookie)
        assert "Max-Age=0" in headers["set-cookie"]
        secure = fetch(sink, "/login", "POST", f"token={TOKEN}", X_Forwarded_Proto="https")[1]["set-cookie"]
        assert "Secure" in secure, "behind a proxy that speaks TLS"
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(LOCKED)


def test_unknown_host_and_origin_are_refused(overlaid):
    with page() as sink:
        port = sink.endpoint.rpartition(":")[2]
        sink.put(overlaid())
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.5", ""):
            assert fetch(sink, "/", Host=host)[0] == 421, host
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
            assert fetch(sink, "/", Host=host)[0] == 200, host
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{port}", "file://"):
            with pytest.raises(InvalidStatus, match="403"), looking(sink, Origin=origin):
                pass
            assert fetch(sink, "/login", "POST", "token=x", Origin=origin)[0] == 403
        with looking(sink, Origin=sink.endpoint):
            pass
        refused = dict(figures(sink))["recipro_page_refused_total"]
        assert refused >= 10


def test_allowed_hosts_are_accepted_for_a_proxy():
    with page(allowed_hosts=("cams.example.com",)) as sink:
        assert fetch(sink, "/", Host="cams.example.com")[0] == 200
        assert fetch(sink, "/", Host="other.example.com")[0] == 421


def test_responses_forbid_unused_browser_features():
    with page() as sink:
        for path in ("/", "/static/page.js", "/nothing", "/metrics", "/static/../guard.py", "/static/guard.py"):
            code, headers, _ = fetch(sink, path)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "server" not in headers
            assert code == (404 if "guard" in path or "nothing" in path else 200)


@pytest.mark.parametrize("uri", ["http://0.0.0.0:0", "http://[::]:0", "http://192.0.2.1:8000"])
def test_public_address_requires_a_token_or_insecure(uri):
    with pytest.raises(SinkError, match=r"--page-token-file page.token.*http://127.0.0.1:.*insecure: true"):
        WebSink(uri).__enter__()


def test_public_address_serves_with_token_or_insecure():
    for secrets, insecure in ((LOCKED, False), ({}, True)):
        settings = WebSettings(uri="http://0.0.0.0:0", insecure=insecure)
        with WebSink(settings, SinkContext(secrets=secrets)) as sink:
            at = WebSink.__new__(WebSink)
            at.endpoint = sink.endpoint.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
            assert fetch(at, "/healthz")[0] == 200
            assert fetch(at, "/healthz", Host="192.168.1.7:8000")[0] == 200
            assert fetch(at, "/healthz", Host="evil.example")[0] == (200 if secrets else 421)


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "ünïcödé-ünïcödé-ünïcödé"])
def test_weak_or_unsendable_token_is_refused(token):
    with pytest.raises(SinkError, match="openssl rand"):
        WebSink(ANY, SinkContext(secrets={"token_file": Secret(token)}))
    assert check_token(f" {TOKEN}\n") == TOKEN


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1", "http://:80", "http://h:99999", "http://u:p@h:1", "http://h:1/path", "http://h:1?x"]
)
def test_misspelled_address_is_refused(uri):
    with pytest.raises(SinkError, match=r"http://127\.0\.0\.1:8000"):
        WebSink(uri)


def test_port_in_use_is_refused_with_the_remedy():
    with page() as sink, pytest.raises(SinkError, match="is in use; choose another port"):
        WebSink(sink.endpoint).__enter__()


def test_cookie_is_invalid_after_expiry_and_with_another_token(monkeypatch):
    clock = SimpleNamespace(now=1000)
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: clock.now)
    policy = AccessPolicy(PageAddress("127.0.0.1", 1), TOKEN)
    cookie = policy.issue_cookie()
    assert policy.is_authenticated(Credentials(cookie=cookie))
    clock.now += COOKIE_SECONDS
    assert policy.is_authenticated(Credentials(cookie=cookie))
    clock.now += 1
    assert not policy.is_authenticated(Credentials(cookie=cookie))
    later = policy.issue_cookie()
    session, issued, signature = cookie.split(".")
    altered = (f"{session}.{later.split('.')[1]}.{signature}", f"{'0' * len(session)}.{issued}.{signature}")
    clock.now = 1000
    for changed in altered:
        assert not policy.is_authenticated(Credentials(cookie=changed)), "the signature covers session and time"
    assert not AccessPolicy(policy.address, TOKEN + "x").is_authenticated(Credentials(cookie=cookie))
    for junk in ("", ".", "..", "9" * 30 + ".x", "²³.x", "1.ü", "x\udce9.y.z", f"a.{'_' * 4000}.b"):
        assert not policy.is_authenticated(Credentials("Bearer ü", junk, junk))


def test_signature_of_another_purpose_is_no_cookie():
    policy = AccessPolicy(PageAddress("127.0.0.1", 1), TOKEN)
    assert not policy.is_authenticated(Credentials(cookie=TimestampSigner(TOKEN).sign("session").decode()))


def test_loopback_addresses_are_recognised():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "no-such.invalid"))  # noqa: S104
    assert parse_page_address("http://[::1]:80/") == PageAddress("::1", 80)


# Health, clips


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
    with page() as sink, looking(sink):
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


def test_number_outside_json_skips_the_frame_and_keeps_the_page(overlaid, wait_until, caplog):
    with page(cameras=()) as sink, looking(sink) as link:
        wait_until(lambda: sink._broadcaster.clients)
        for index in range(3):
            sink.put(overlaid(index=index, score=float("nan"), camera="odd \udcff"))
        sink.put(overlaid(index=3, camera="odd \udcff"))
        assert frame(link)[0].index == 3
        assert status(link, lambda camera: camera["frames"] == 4)["camera"] == "odd ?"
    assert len([r for r in caplog.records if "left out" in r.message]) == 1


def test_request_with_an_invalid_number_is_refused_with_a_message(overlaid, wait_until):
    with page() as sink, looking(sink) as link:
        wait_until(lambda: sink._broadcaster.has_viewers("line", "plain"))
        sink.put(overlaid())
        frame(link)
        for path in ("/readyz?within=nan", "/clip/line.mp4?opacity=nan"):
            code, _, body = fetch(sink, path)
            assert (code, b"Traceback" in body) == (400, False)


def test_credentials_in_the_sink_address_are_not_repeated():
    for address in ("http://ada:canary@127.0.0.1:8000", "tcp://ada:canary@127.0.0.1:5555"):
        with pytest.raises(SinkError, match="write the address as") as refused:
            build_sink(address)
        assert "canary" not in str(refused.value)


def test_request_interrupted_by_shutdown_is_not_logged():
    cut_short = asyncio.CancelledError("Task cancelled, timeout graceful shutdown exceeded")
    for error, is_said in ((cut_short, False), (ValueError("a mistake"), True)):
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception", (), (type(error), error, None))
        assert server.RepeatFilter().filter(record) is is_said


def test_repeated_invalid_requests_are_logged_once_a_minute(caplog):
    now = [0.0]
    log = logging.getLogger("somebody")
    log.addFilter(server.RepeatFilter(lambda: now[0]))
    for second in range(100):
        now[0] = second
        log.warning("Invalid HTTP request received.")
    log.warning("something else")
    assert [record.getMessage()[:7] for record in caplog.records] == ["Invalid", "Invalid", "somethi"]


def test_idle_connections_are_closed_and_active_ones_answered(wait_until):
    with page() as sink:
        host, port = sink.endpoint.removeprefix("http://").split(":")
        with ExitStack() as stack:
            mute = [stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(300)]
            for number, connection in enumerate(mute):
                if number % 2:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Never-Ends: ")
            wait_until(lambda: fetch(sink, "/healthz")[0] == 200)
            for connection in mute:
                with suppress(ConnectionError):
                    assert connection.recv(1) == b""


def test_connection_with_repeated_requests_is_not_idle(monkeypatch):
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_SECONDS", 0.5)
    with page() as sink:
        link = http.client.HTTPConnection(sink.endpoint.removeprefix("http://"), timeout=LIMIT_SECONDS)
        with closing(link):
            link.connect()
            door, ended = link.sock, time.monotonic() + 1.5
            while time.monotonic() < ended:
                link.request("GET", "/healthz")
                assert link.getresponse().read() == b"alive\n"
            assert link.sock is door


# Other sites, proxies, players


def test_clip_is_streamed_with_its_index_first(overlaid, wait_until):
    with page() as sink, looking(sink):
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


def test_token_in_the_address_is_accepted_for_mjpeg_only(overlaid):
    with page(LOCKED) as sink:
        sink.put(overlaid())
        own = sink._page.access.stream_token("line")
        assert fetch(sink, f"/stream/line.mjpg?token={TOKEN}", "HEAD")[0] == 200
        assert fetch(sink, f"/stream/line.mjpg?token={own}", "HEAD")[0] == 200
        for path in (f"/stream/door.mjpg?token={own}", "/stream/line.mjpg?token=x", f"/clip/line.mp4?token={TOKEN}"):
            assert fetch(sink, path)[0] == 401, path
        assert "Basic" in fetch(sink, "/stream/line.mjpg")[1]["www-authenticate"]
        assert "Basic" not in fetch(sink, "/metrics")[1]["www-authenticate"], "browsers would ask for a password"
        for user in (f"vlc:{TOKEN}", f":{TOKEN}", f"{TOKEN}:"):
            basic = "Basic " + base64.b64encode(user.encode()).decode()
            assert fetch(sink, "/stream/line.mjpg", "HEAD", Authorization=basic)[0] == 200
        assert fetch(sink, "/stream/line.mjpg", Authorization="Basic !")[0] == 401


def test_other_sites_cannot_act_and_embed_streams_only_if_allowed(overlaid):
    dashboard = "https://dashboard.example"
    with page(embed_origins=(dashboard + "/",)) as sink:
        sink.put(overlaid())
        cross = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}
        for path in ("/clip/line.mp4", "/metrics", "/static/page.js", "/stream/line.mjpg"):
            for site in ("cross-site", "same-site"):
                assert fetch(sink, path, "HEAD", **cross | {"Sec_Fetch_Site": site})[0] == 403, path
            assert fetch(sink, path, "HEAD", Sec_Fetch_Site="same-origin")[0] in {200, 404}, path
        assert fetch(sink, "/clip/line.mp4", Referer="http://evil.example/")[0] == 403
        assert fetch(sink, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200, "a link to it"
        code, headers, _ = fetch(sink, "/stream/line.mjpg", "HEAD", Referer=f"{dashboard}/wall", **cross)
        assert (code, headers["cross-origin-resource-policy"]) == (200, "cross-origin")
        assert fetch(sink, "/stream/line.mjpg", "HEAD", Referer="https://other.example/", **cross)[0] == 403
        assert fetch(sink, "/clip/line.mp4", "HEAD", Referer=f"{dashboard}/wall", **cross)[0] == 403


@pytest.mark.parametrize("arguments", [{"embed_origins": ("dashboard.example",)}, {"root_path": "cams"}])
def test_invalid_origin_or_path_is_refused_with_an_example(arguments):
    with pytest.raises(SinkError, match=r"write (SCHEME|for instance)"):
        WebSink(WebSettings(uri=ANY, **arguments))
    assert check_origin("HTTPS://Dash.example:443/") == "https://dash.example"
    assert check_prefix("/cams/") == "/cams"


def test_page_below_a_path_links_only_below_it(overlaid):
    """Whatever a proxy puts before the path: links and redirects are relative."""
    with page(LOCKED) as sink:
        assert fetch(sink, "/", Accept="text/html")[1]["location"] == "login"
        assert fetch(sink, "/stream/line.mjpg", Accept="text/html")[1]["location"] == "../login"
        code, headers, _ = fetch(sink, "/cams/", Accept="text/html", X_Forwarded_Prefix="/cams")
        assert (code, headers["location"]) == (303, "login"), "a proxy that leaves it there"
        signed = fetch(sink, "/login", "POST", f"token={TOKEN}", X_Forwarded_Prefix="/cams")[1]
        assert signed["location"] == "./"
        assert "Path=/cams/" in signed["set-cookie"]
        assert fetch(sink, "/login", X_Forwarded_Prefix="/x\u00ff;Path=/")[0] == 200
        for name, content in sink._page.files.items():
            if name.endswith((".html", ".js")):
                match = re.findall(
                    rb"""(?:href|src|action)="/|["'`]/(?:static|stream|clip|frames|login|metrics)""", content
                )
                assert match == [], name
    with page(root_path="/cams") as sink:
        assert fetch(sink, "/cams/healthz")[0] == fetch(sink, "/healthz")[0] == 200
        code, headers, _ = fetch(sink, "/cams")
        assert (code, headers["location"]) == (307, "cams/")


def test_own_origin_is_accepted_behind_a_proxy_that_drops_the_port():
    guard = AccessPolicy(PageAddress("127.0.0.1", 8000), TOKEN)
    origin = "http://cams.example:8080"
    assert guard.is_allowed_origin(origin, "cams.example:8080")
    assert not guard.is_allowed_origin(origin, "cams.example"), "no proxy says that it is one"
    assert guard.is_allowed_origin(origin, "cams.example", "")
    assert guard.is_allowed_origin(origin, "127.0.0.1:8000", "cams.example:8080")
    assert not guard.is_allowed_origin(origin, "cams.example:9090", "")
    assert not guard.is_allowed_origin("http://evil.example:8080", "cams.example", "")
    assert not guard.is_allowed_origin("http://cams.example:x", "cams.example", "")


# Tokens


def test_logout_ends_the_session_for_all_copies_of_its_cookie(overlaid):
    with page(LOCKED) as sink:
        cookie = fetch(sink, "/login", "POST", f"token={TOKEN}")[1]["set-cookie"].partition(";")[0]
        other = fetch(sink, "/login", "POST", f"token={TOKEN}")[1]["set-cookie"].partition(";")[0]
        with looking(sink, Cookie=cookie) as copied:
            assert fetch(sink, "/logout", "POST", Cookie=cookie)[0] == 303
            with pytest.raises(ConnectionClosed):
                _ = [copied.recv(timeout=LIMIT_SECONDS) for _ in range(1000)]
        assert fetch(sink, "/", Cookie=cookie)[0] == 401
        assert fetch(sink, "/", Cookie=other)[0] == 200


def test_changed_token_applies_at_once_and_an_unreadable_one_is_ignored(tmp_path, caplog, wait_until):
    file = tmp_path / "page.token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    secrets = {"token_file": Secret(TOKEN, str(file), ChangingFile(file))}
    with page(secrets) as sink:
        old, new = {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"Bearer {TOKEN[::-1]}"}
        with looking(sink, **old) as link:
            file.write_text("short")
            wait_until(lambda: "the last token stays" in caplog.text)
            file.unlink()
            wait_until(lambda: "No such file" in caplog.text)
            assert fetch(sink, "/metrics", **old)[0] == 200
            file.write_text(TOKEN[::-1])
            with pytest.raises(ConnectionClosed):
                _ = [link.recv(timeout=LIMIT_SECONDS) for _ in range(1000)]
        assert fetch(sink, "/metrics", **old)[0] == 401
        assert fetch(sink, "/metrics", **new)[0] == 200


# Limits


def test_rate_limit_allows_a_burst_then_delays_then_refuses():
    pace = RequestRateLimiter()
    waits = [pace.delay("192.0.2.1", 100.0, is_unauthenticated=True) for _ in range(200)]
    assert waits[: UNAUTHENTICATED.burst] == [0.0] * UNAUTHENTICATED.burst
    spaced = [wait for wait in waits if wait]
    assert spaced == sorted(spaced)
    assert spaced[0] == pytest.approx(1 / UNAUTHENTICATED.per_second)
    assert waits[-1] is None
    assert pace.delay("192.0.2.2", 100.0, is_unauthenticated=True) == 0.0, "others are not held up"
    assert pace.delay("192.0.2.1", 200.0, is_unauthenticated=True) == 0.0, "later it is forgotten"
    guesses = [pace.delay("192.0.2.3", 300.0, is_unauthenticated=True, cost=WRONG_TOKEN_COST) for _ in range(20)]
    assert guesses.count(0.0) == UNAUTHENTICATED.burst // WRONG_TOKEN_COST


def test_rate_limit_of_unknown_clients_is_bounded_in_total_and_memory():
    pace = RequestRateLimiter()
    waits = [pace.delay(f"192.0.{k // 250}.{k % 250}", 100.0, is_unauthenticated=True) for k in range(9000)]
    assert None in waits
    assert len(pace._due) <= 4096
    assert pace.delay("198.51.100.1", 100.0, is_unauthenticated=False) == 0.0, (
        "visitors of an open page do not wait for them"
    )


def test_client_that_never_reads_is_disconnected_and_frees_its_slot(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(server, "READ_SECONDS", 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with page() as sink, socket.socket() as mute:
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.connect(sink._page.access.address)
        mute.sendall(b"GET /stream/line.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: sink._broadcaster.clients)
        index = [0]

        def gone():
            index[0] += 1
            sink.put(overlaid(noise, index=index[0]))
            return not sink._broadcaster.clients

        wait_until(gone)


def test_connection_limit_drops_unauthenticated_before_authenticated_clients(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 16)
    asking = b"GET /static/page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 200  # more than the kernel holds
    with page(LOCKED) as sink, looking(sink, Authorization=f"Bearer {TOKEN}") as link, ExitStack() as stack:
        for number in range(40):
            connection = stack.enter_context(socket.create_connection(sink._page.access.address, 10))
            if number % 2:
                with suppress(ConnectionError):
                    connection.sendall(asking)

        def answered():  # in a burst a newcomer may be turned away too, and comes again
            with suppress(ConnectionError, http.client.BadStatusLine):
                return fetch(sink, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200

        wait_until(answered)
        sink.put(overlaid(index=5))
        assert frame(link)[0].index == 5


def test_page_waits_while_no_file_handle_is_free_and_logs_once(overlaid, wait_until, caplog):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with page() as sink, ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        assert fetch(sink, "/healthz")[0] == 200
        waiting = [stack.enter_context(socket.socket()) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (waiting[0].fileno(), before[1]))
        for connection in waiting:
            connection.connect(sink._page.access.address)
        wait_until(lambda: "no connection can be accepted" in caplog.text)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert fetch(sink, "/healthz")[0] == 200
    assert len([record for record in caplog.records if "can be accepted" in record.message]) == 1
    assert "asyncio" not in {record.name for record in caplog.records}


@pytest.mark.parametrize(("soft", "limit"), [(None, 256), (1024, 256), (512, 85), (256, 42), (64, 16), (1 << 20, 256)])
def test_connection_limit_leaves_handles_for_recording(soft, limit, monkeypatch):
    monkeypatch.setattr(file_limits, "_soft_limit", lambda: None)
    assert file_limits.connection_limit(256, soft) == limit


def test_client_key_groups_an_ipv6_network():
    assert (
        file_limits.shared_address("2001:db8::1") == file_limits.shared_address("2001:db8::ffff:1") == "2001:db8::/64"
    )
    assert file_limits.shared_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert file_limits.is_loopback_address("::ffff:127.0.0.1")
    assert not file_limits.is_loopback_address("nonsense")


def test_forged_forwarded_address_cannot_write_into_the_log(caplog):
    with page(LOCKED) as sink:
        fetch(sink, "/metrics", X_Forwarded_For="1.2.3.4\x1b[2J fake")
    assert "an unknown address" in caplog.text
    assert "\x1b" not in caplog.text


def test_websockets_without_the_token_hold_no_slot(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 16)
    monkeypatch.setattr(pace_of_page, "UNAUTHENTICATED", Rate(0.1, 1))
    for module in (pace_of_page, middleware):  # each is kept waiting for its refusal
        monkeypatch.setattr(module, "MAX_WAIT_SECONDS", 3600.0)
    monkeypatch.setattr(server, "_UNADMITTED_SECONDS", 3600.0)
    upgrade = (
        b"GET /frames HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    with page(LOCKED) as sink, ExitStack() as stack:
        sink.put(overlaid())

        def answered():
            for _ in range(20):
                connection = stack.enter_context(socket.create_connection(sink._page.access.address, 10))
                with suppress(ConnectionError):
                    connection.sendall(upgrade)
            with suppress(ConnectionError, http.client.BadStatusLine):
                return fetch(sink, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200

        wait_until(answered)

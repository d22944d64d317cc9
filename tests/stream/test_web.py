"""Tests of web cameras on the loopback interface: live, finite, and redirecting ones."""

import base64
import contextlib
import gzip
import hashlib
import time
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from pipeline.errors import ConnectionLostError, SourceError
from pipeline.http_auth import challenges
from tests.support.web_camera import greys, jpeg, playlist, read, send


def fragmented(make_clip, count=20):
    options = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
    coding = {"g": "10", "tune": "zerolatency"}
    return make_clip("live.mp4", frame_count=count, codec="libx264", options=options, coding=coding).read_bytes()


def test_fragments_without_a_length_are_live_whatever_the_suffix_and_tried_again(web_server, make_clip):
    content = fragmented(make_clip)
    address = web_server(lambda request: send(request, content, "video/mp4", length=False))
    frames, source = read(f"{address}/api/stream.mp4?src=cam1", 50, attempts=None)
    assert source.live
    assert source.health.reconnects == 2
    assert greys(frames)[:20] == list(range(20))


@pytest.mark.parametrize("live", [True, False])
def test_key_says_whether_it_is_live_against_all_appearance(web_server, make_clip, live):
    content = fragmented(make_clip)
    address = web_server(lambda request: send(request, content, "video/mp4", length=live))
    frames, source = read(f"{address}/a.mp4", 30 if live else None, live=live, attempts=None)
    assert source.live == live
    assert (source.health.state, len(frames)) == (("live", 30) if live else ("ended", 20))


def test_motion_jpeg_that_ends_is_live_or_finite_as_the_key_says(web_server):
    parts = b"".join(b"Content-Length: %d\r\n\r\n%s\r\n--frame\r\n" % (len(p), p) for p in [jpeg(90)] * 5)
    kind = "multipart/x-mixed-replace; boundary=frame"
    address = web_server(lambda request: send(request, parts, kind, length=False))
    frames, source = read(f"{address}/nofirst", 8, attempts=None)
    assert (len(frames), source.live, source.health.reconnects) == (8, True, 1)
    frames, source = read(f"{address}/nofirst", live=False)
    assert (len(frames), source.live, source.health.state) == (5, False, "ended")


def test_still_is_asked_again_at_its_rate_and_given_where_it_changed(web_server):
    requests = []

    def answer(request):
        requests.append(request.headers.get("If-None-Match"))
        number = len(requests) // 2  # each picture twice
        if request.headers.get("If-None-Match") == f'"{number}"':
            send(request, b"", code=304, length=False)
        else:
            send(request, jpeg(40 * number + 10), "image/jpeg", headers=[("ETag", f'"{number}"')])

    frames, source = read(f"{web_server(answer)}/snapshot.jpg", 4, still_rate=50.0)
    assert [round((frame.image.mean() - 10) / 40) for frame in frames] == [0, 1, 2, 3]
    assert source.live
    assert requests[0] is None
    assert '"1"' in requests
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))


def test_still_that_is_not_live_is_given_once(web_server):
    address = web_server(lambda request: send(request, jpeg(80), "image/jpeg"))
    frames, source = read(f"{address}/photo.jpg", live=False)
    assert (len(frames), source.live, source.health.state) == (1, False, "ended")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_stills_of_every_kind_are_read(web_server, suffix):
    content = cv2.imencode(suffix, np.full((48, 64, 3), 100, np.uint8))[1].tobytes()
    address = web_server(lambda request: send(request, content, f"image/{suffix[1:]}"))
    frames, _ = read(f"{address}/still{suffix}", 1)
    assert frames[0].image.mean() == pytest.approx(100, abs=2)


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256", "SHA-256-sess"])
def test_digest_camera_admits_a_client_with_the_password(web_server, algorithm):
    def answer(request):
        authorization = request.headers.get("Authorization", "")
        if not authorization:
            offer = f'Digest realm="cam", nonce="5eed", algorithm={algorithm}, qop="auth"'
            send(request, b"", code=401, headers=[("WWW-Authenticate", offer)])
            return
        got = challenges([authorization])[0].parameters
        digest = {"MD5": hashlib.md5}.get(algorithm, hashlib.sha256)

        def hashed(text):
            return digest(text.encode()).hexdigest()

        secret = hashed("me:cam:s3cr#t")
        if algorithm.endswith("-sess"):
            secret = hashed(f"{secret}:5eed:{got['cnonce']}")
        due = hashed(f"{secret}:5eed:{got['nc']}:{got['cnonce']}:auth:{hashed('GET:/snapshot.jpg?a=1')}")
        send(request, jpeg(80), "image/jpeg") if got["response"] == due else request.send_error(403)

    address = web_server(answer).replace("http://", "http://me:s3cr%23t@")
    frames, source = read(f"{address}/snapshot.jpg?a=1", 1)
    assert len(frames) == 1
    assert "s3cr" not in f"{source.uri}{source.camera}{source.health}"


def test_challenge_that_cannot_be_answered_is_named(web_server):
    offer = [("WWW-Authenticate", 'Digest realm="x", nonce="y", algorithm=NEW-512')]
    address = web_server(lambda request: send(request, b"", code=401, headers=offer))
    with pytest.raises(ConnectionLostError, match="requires Digest NEW-512, which is not supported"):
        read(address.replace("http://", "http://me:secret@"))


LEADS = {
    "redirect": lambda to: (302, b"", [("Location", f"{to}/admin")]),
    "permanent redirect": lambda to: (308, b"", [("Location", f"{to}/admin")]),
    "segment": lambda to: (200, playlist([f"{to}/a.ts"]), []),
    "variant": lambda to: (200, f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{to}/a.m3u8\n".encode(), []),
    "key": lambda to: (200, playlist(["a.ts"], head=f'#EXT-X-KEY:METHOD=AES-128,URI="{to}/k"'), []),
    "header": lambda to: (200, playlist(["a.m4s"], head=f'#EXT-X-MAP:URI="{to}/i"'), []),
    "list of files": lambda to: (200, f"ffconcat version 1.0\nfile {to}/a.mp4\n".encode(), []),
    "presentation": lambda to: (200, f'<?xml version="1.0"?><MPD><BaseURL>{to}/</BaseURL></MPD>'.encode(), []),
}


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("length", [True, False])
def test_camera_leads_its_readers_to_no_other_host_or_port(web_server, lead, length):
    visited = []
    other = web_server(lambda request: (visited.append(request.path), send(request, b"secret")))
    code, content, headers = LEADS[lead](other)
    camera = web_server(lambda request: send(request, content, "x/y", code=code, headers=headers, length=length))
    with pytest.raises(SourceError) as caught:
        read(f"{camera}/live.mpd")
    assert visited == []
    if lead not in {"list of files", "presentation"}:
        assert f"allowed_hosts: ['{other.removeprefix('http://')}']" in str(caught.value)


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "tcp://127.0.0.1:1", "gopher://x", "data:,x"]
)
def test_camera_leads_its_readers_to_no_other_protocol(web_server, to):
    for content, code, headers in ((b"", 302, [("Location", to)]), (playlist([to]), 200, [])):
        address = web_server(lambda request, c=content, k=code, h=headers: send(request, c, code=k, headers=h))
        with pytest.raises(SourceError, match=r"not http\(s\)"):
            read(f"{address}/live")


def test_allowed_host_is_followed_and_gets_no_credentials(web_server):
    seen = []

    def target(request):
        seen.append(request.headers.get("Authorization"))
        send(request, jpeg(70), "image/jpeg")

    other = web_server(target)
    camera = web_server(lambda request: send(request, b"", code=302, headers=[("Location", f"{other}/x")]))
    host = other.removeprefix("http://")
    frames, _ = read(camera.replace("http://", "http://me:secret@"), 1, allowed_hosts=(host,))
    assert len(frames) == 1
    assert seen == [None]


@pytest.mark.parametrize(
    "to", ["http://[", "http://a:99999/", "http://a:b/", "http:///x", "//", "http://%00/", "x" * 9000]
)
def test_redirect_to_no_address_ends_in_a_typed_error(web_server, to):
    address = web_server(lambda request: send(request, b"", code=302, headers=[("Location", to)]))
    with pytest.raises(SourceError):
        read(f"{address}/live")


@pytest.mark.parametrize("host", ["a" * 70, "a..b"])
def test_host_that_can_be_none_ends_in_a_typed_error(host):
    with pytest.raises(SourceError, match="host name"):
        read(f"http://{host}/live")


def test_names_and_passwords_of_any_script_are_sent(web_server):
    def answer(request):
        authorization = base64.b64decode(request.headers.get("Authorization", "Basic ").partition(" ")[2]).decode()
        if authorization == "ümläut:пароль":
            send(request, jpeg(80), "image/jpeg")
        else:
            send(request, b"", code=401, headers=[("WWW-Authenticate", 'Basic realm="x"')])

    address = web_server(answer).replace("http://", f"http://{quote('ümläut')}:{quote('пароль')}@")
    frames, _ = read(f"{address}/snapshot.jpg", 1)
    assert len(frames) == 1


def test_redirects_in_a_circle_end(web_server):
    address = web_server(lambda request: send(request, b"", code=302, headers=[("Location", "/again")]))
    with pytest.raises(ConnectionLostError, match="redirects more than 5 times"):
        read(f"{address}/live")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"--f\r\nContent-Length: 2000000000\r\n\r\n" + jpeg(9), "multipart/x-mixed-replace; boundary=f"),
        (b"#EXTM3U\n" + b"#" * (5 << 20), "application/vnd.apple.mpegurl"),
    ],
)
def test_answer_that_would_take_too_much_memory_is_refused(web_server, content, kind):
    address = web_server(lambda request: send(request, content, kind, length=False))
    with pytest.raises(ConnectionLostError, match="MiB"):
        read(f"{address}/live")


def test_picture_beyond_max_pixels_is_refused_live(web_server):
    big = jpeg(90, (1000, 1000))
    part = b"--f\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(big), big)
    kinds = {"live": (part * 3, "multipart/x-mixed-replace; boundary=f"), "still.jpg": (big, "image/jpeg")}
    for name, (content, kind) in kinds.items():
        address = web_server(lambda request, c=content, k=kind: send(request, c, k, length=k == "image/jpeg"))
        with pytest.raises(SourceError, match="max_pixels"):
            read(f"{address}/{name}", 1, max_pixels=10_000)


def test_colours_that_cannot_be_converted_are_named_live(web_server, make_clip):
    film = make_clip("live.ts", codec="libx264", coding={"colorspace": "ycgco"}).read_bytes()
    address = web_server(lambda request: send(request, film, "video/mp2t", length=False))
    with pytest.raises(SourceError, match=r"matrix 8 \(YCgCo\), which FFmpeg cannot convert to RGB; .*BT\.709"):
        read(f"{address}/live", 1)


def test_endless_rubbish_is_left_at_the_deadline(web_server):
    def answer(request):
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(b"junk" * 10_000)

    with pytest.raises(ConnectionLostError, match="no frame for"):
        read(f"{web_server(answer)}/live", read_timeout_seconds=0.2, open_timeout_seconds=0.5)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><form action=login>", "text/html; charset=utf-8"),
        (b"\n<HTML>", "text/plain"),
        (b'{"error": 401}', "application/json"),
    ],
)
@pytest.mark.parametrize("length", [True, False])
def test_web_page_in_place_of_pictures_is_called_one(web_server, content, kind, length):
    with pytest.raises(ConnectionLostError, match="a web page or JSON"):
        read(f"{web_server(lambda request: send(request, content, kind, length=length))}/snapshot")


def test_pictures_that_come_as_text_are_pictures(web_server):
    content = b"--f\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(90) + b"\r\n"
    server = web_server(lambda request: send(request, 3 * content, "text/html", length=False))
    assert len(read(f"{server}/video", 2)[0]) == 2


def test_compressed_answer_is_called_one_and_never_asked_for(web_server):
    requests = []

    def answer(request):
        requests.append(request.headers["Accept-Encoding"])
        send(request, gzip.compress(jpeg(90)), "image/jpeg", headers=[("Content-Encoding", "gzip")])

    with pytest.raises(ConnectionLostError, match=r"compresses its responses \(gzip\)"):
        read(f"{web_server(answer)}/snapshot.jpg")
    assert set(requests) == {"identity"}


def test_camera_slower_than_the_read_timeout_is_waited_for_after_two_losses(web_server, caplog):
    requests = []

    def answer(request):
        requests.append(request.path)
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=f")
        request.end_headers()
        for number in range(40):
            part = jpeg(5 * number)
            request.wfile.write(b"--f\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(part), part))
            time.sleep(0.3)  # the camera's own pace

    frames, source = read(f"{web_server(answer)}/slow", 9, attempts=None, read_timeout_seconds=0.2)
    assert source.health.reconnects <= 4, "a loss for each picture"
    assert len(frames) == 9
    assert "read_timeout_seconds sets it" in caplog.text

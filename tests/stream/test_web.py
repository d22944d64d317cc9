"""Tests of web cameras on the loopback interface: live, finite, and redirecting ones."""

import base64
import contextlib
import gzip
import hashlib
import itertools
import threading
import time
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from pipeline.errors import ConnectionLostError, CorruptMediaError, SourceError
from stream.http_auth import challenges
from stream.http_file import ends_with_its_index
from stream.sources import build_source

ONCE = {"read_timeout_seconds": 1.0, "open_timeout_seconds": 2.0, "attempts": 1}


def jpeg(brightness, size=(48, 64)):
    return cv2.imencode(".jpg", np.full((*size, 3), brightness, np.uint8))[1].tobytes()


def send(request, content, kind="application/octet-stream", *, code=200, length=True, headers=()):
    request.send_response(code)
    request.send_header("Content-Type", kind)
    for key, value in headers:
        request.send_header(key, value)
    if length:
        request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def read(url, count=None, **options):
    """Return the frames of a source, ``count`` of them or all, and the source."""
    stop, frames = threading.Event(), []
    with build_source(url, **{**ONCE, **options}) as source:
        for frame in source.frames(stop):
            frames.append(frame)
            if len(frames) == count:
                stop.set()
    return frames, source


def greys(frames):
    """The numbers of the pictures of a made clip."""
    return [round((frame.image.mean() - 16) / 8) for frame in frames]


class Files:
    """Serves files that a test may change, and keeps what was asked for."""

    def __init__(self, serve):
        self.content, self.asked = {}, []
        self.address = serve(self.answer)

    def answer(self, request):
        name = request.path.partition("?")[0].strip("/")
        self.asked.append(name)
        content = self.content.get(name)
        if content is None:
            request.send_error(404)
        elif request.headers.get("Range", "bytes=0-") != "bytes=0-":
            start, end = request.headers["Range"].removeprefix("bytes=").split("-")
            send(request, content[int(start) : int(end) + 1], code=206)
        else:
            send(request, content)


@pytest.fixture
def files(web_server):
    return Files(web_server)


@pytest.fixture
def segments(make_clip, tmp_path):
    """Six segments of ten pictures each, one second long: their names and bytes."""

    def make(kind="mpegts", **more):
        options = {"hls_time": "1", "hls_list_size": "0", "hls_segment_type": kind, **more}
        make_clip(
            "made.m3u8", frame_count=60, codec="libx264", options=options, coding={"g": "10", "tune": "zerolatency"}
        )
        names = [line for line in (tmp_path / "made.m3u8").read_text().splitlines() if line.startswith("made")]
        assert len(names) == 6
        return {name: (tmp_path / name).read_bytes() for name in names}

    return make


def playlist(names, *, first=0, end=True, before=None, head=""):
    """Return a playlist; ``before`` maps names to tags that stand before them."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{first}", head]
    for name in names:
        lines += [(before or {}).get(name, ""), "#EXTINF:1.0,", name]
    return "\n".join([*lines, "#EXT-X-ENDLIST" if end else ""]).encode()


def test_finished_playlist_ends_with_its_end_and_loses_nothing(files, segments):
    names = segments()
    files.content = {**names, "vod.m3u8": playlist(names)}
    frames, source = read(f"{files.address}/vod.m3u8")
    assert greys(frames) == [k % 25 for k in range(60)]
    assert (source.live, source.health.state, source.health.reconnects) == (False, "ended", 0)
    assert sorted(set(files.asked)) == sorted(files.asked), "nothing is fetched twice"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0]])
def test_discontinuities_break_off_nothing_and_time_goes_on(files, segments, order):
    segment_names = segments()
    names = [list(segment_names)[k] for k in order]
    files.content = {**segment_names, "vod.m3u8": playlist(names, before=dict.fromkeys(names, "#EXT-X-DISCONTINUITY"))}
    frames, source = read(f"{files.address}/vod.m3u8")
    assert greys(frames) == [(10 * k + n) % 25 for k in order for n in range(10)]
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))
    assert times[-1] == pytest.approx(len(order) - 0.1, abs=0.3)
    assert (source.health.state, source.health.reconnects) == ("ended", 0)


def test_variants_headers_and_byte_ranges_are_followed(files, segments, tmp_path):
    names = segments("fmp4")
    whole, tags, at = b"".join(names.values()), {}, 0
    for name, content in names.items():
        tags[name], at = f"#EXT-X-BYTERANGE:{len(content)}@{at}", at + len(content)
    lines = playlist(names, before=tags, head='#EXT-X-MAP:URI="init.mp4"').decode()
    for name in names:
        lines = lines.replace(f"\n{name}", "\nall.m4s")
    variants = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\nlow/none.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=90\nhigh.m3u8\n"
    files.content = {"all.m4s": whole, "init.mp4": (tmp_path / "init.mp4").read_bytes(), "high.m3u8": lines.encode()}
    files.content["all.m3u8"] = variants
    frames, _ = read(f"{files.address}/all.m3u8")
    assert greys(frames) == [k % 25 for k in range(60)]


def test_encrypted_segments_are_read_with_their_key(files, segments, tmp_path):
    names = segments(hls_enc="1")
    assert not any(content.startswith(b"G") for content in names.values()), "a segment is in plain MPEG-TS"
    files.content = {**names, "vod.m3u8": (tmp_path / "made.m3u8").read_bytes().replace(f"{tmp_path}/".encode(), b"")}
    files.content["made.m3u8.key"] = (tmp_path / "made.m3u8.key").read_bytes()
    frames, _ = read(f"{files.address}/vod.m3u8")
    assert greys(frames) == [k % 25 for k in range(60)]


def test_segments_that_are_missing_are_said_at_the_end(files, segments):
    names = segments()
    files.content = {**names, "vod.m3u8": playlist(names)}
    del files.content[list(names)[2]]
    frames = []
    with (
        build_source(f"{files.address}/vod.m3u8", **ONCE) as source,
        pytest.raises(ConnectionLostError, match="1 segments of its playlist"),
    ):
        frames.extend(source.frames(threading.Event()))
    assert greys(frames) == [k % 25 for k in range(60) if not 20 <= k < 30]


def test_live_playlist_is_paced_fetched_once_and_believed_when_it_ends(files, segments):
    segment_names = segments()
    names, loads = list(segment_names), itertools.count(3)

    class Window(dict):
        def get(self, name):
            if name != "live.m3u8":
                return segment_names.get(name)
            last = min(6, next(loads))  # one segment more with each request
            return playlist(names[last - 3 : last], first=last - 3, end=last == 6)

    files.content = Window()
    frames, source = read(f"{files.address}/live.m3u8")
    assert greys(frames) == [k % 25 for k in range(10, 60)], "from one segment behind the edge to the end"
    assert (source.live, source.health.reconnects, source.health.state) == (True, 0, "ended")
    fetched = [name for name in files.asked if name in segment_names]
    assert sorted(set(fetched)) == sorted(fetched), "no segment is fetched twice"
    first, last = frames[0], frames[-1]
    assert last.captured_at - first.captured_at > 3.0, "five seconds of pictures do not come in bursts"
    assert last.pts_seconds == pytest.approx(4.9, abs=0.5)


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
def test_digest_camera_admits_who_knows_the_password(web_server, algorithm):
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


def test_endless_rubbish_is_left_at_the_deadline(web_server):
    def answer(request):
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(b"junk" * 10_000)

    with pytest.raises(ConnectionLostError, match="no frame for"):
        read(f"{web_server(answer)}/live", read_timeout_seconds=0.2, open_timeout_seconds=0.5)


def test_recording_by_ranges_is_whole_though_the_server_breaks_off(web_server, make_clip):
    content = make_clip(frame_count=30, options={"movflags": "faststart"}).read_bytes()

    def answer(request):
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if "Range" in request.headers else 200)
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start : start + len(content) // 3])

    frames, source = read(f"{web_server(answer)}/film")
    assert greys(frames) == [k % 25 for k in range(30)]
    assert (source.live, source.health.state) == (False, "ended")


def test_recording_without_ranges_is_read_once_and_cut_off_it_is_damaged(web_server, make_clip):
    content = make_clip(frame_count=30, options={"movflags": "faststart"}).read_bytes()
    frames, _ = read(f"{web_server(lambda request: send(request, content))}/film.mp4")
    assert len(frames) == 30

    def cut(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: len(content) * 2 // 3])

    with pytest.raises(CorruptMediaError):
        read(f"{web_server(cut)}/film.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_recording_whose_index_stands_at_its_end_is_read_without_ranges(web_server, make_clip, suffix):
    content = make_clip(f"film{suffix}", frame_count=30).read_bytes()
    assert ends_with_its_index(content[:4096])
    frames, source = read(f"{web_server(lambda request: send(request, content))}/film{suffix}")
    assert greys(frames) == [k % 25 for k in range(30)]
    assert source.health.state == "ended"


def test_recording_too_large_to_be_kept_names_what_to_do(web_server, make_clip, monkeypatch):
    content = make_clip(frame_count=5).read_bytes()
    monkeypatch.setattr("stream.http_file._MAX_SPOOLED_BYTES", 100)
    with pytest.raises(SourceError, match="its index is at its end, and the server does not support range"):
        read(f"{web_server(lambda request: send(request, content))}/film.mp4")


@pytest.mark.parametrize("form", ["mpjpeg", "mjpeg", "yuv4mpegpipe"])
def test_file_of_many_pictures_ends_with_its_end(web_server, form):
    if form == "yuv4mpegpipe":
        content = b"YUV4MPEG2 W64 H48 F10:1 Ip A1:1 C420jpeg\n" + 3 * (b"FRAME\n" + bytes(64 * 48 * 3 // 2))
    else:
        head = b"--f\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
        parts = [jpeg(50 * k) for k in range(3)]
        content = b"".join(head % (len(part), part) if form == "mpjpeg" else part for part in parts)
    frames, source = read(f"{web_server(lambda request: send(request, content, 'video/mp4'))}/film")
    assert (len(frames), source.live, source.health.state) == (3, False, "ended")


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


def test_stop_ends_a_wait_for_a_segment_at_once(files, segments):
    segment_names = segments()
    names = list(segment_names)[:2]
    files.content = {**segment_names, "live.m3u8": playlist(names, end=False).replace(b"DURATION:1", b"DURATION:30")}
    stop, frames = threading.Event(), []
    with build_source(f"{files.address}/live.m3u8", **ONCE) as source:
        for frame in source.frames(stop):
            frames.append(frame)
            if len(frames) == 18:  # of 20: those that are still in the decoder wait for what follows
                started_at, timer = time.monotonic(), threading.Timer(1.0, stop.set)
                timer.start()
        timer.join()
    assert time.monotonic() - started_at < 60, "the playlist may be silent for 90 s"


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
    assert "set by read_timeout_seconds" in caplog.text

"""Tests of the support servers, and of sources with their faults and a bad network."""

import base64
import contextlib
import logging
import random
import re
import socketserver
import subprocess
import threading
import time
from fractions import Fraction
from urllib.parse import quote

import av
import pytest

from pipeline.errors import ConnectionLostError
from stream.sources import build_source
from tests.support.feed import Feed
from tests.support.footage import Mark, millis_now, read
from tests.support.limits import LIMIT_SECONDS
from tests.support.proxy import Proxy
from tests.support.reader import Reader
from tests.support.rtsp_server import RtspServer

QUICK = {"read_timeout_seconds": 1.0, "open_timeout_seconds": 2.0}
ONCE = {"read_timeout_seconds": 1.0, "open_timeout_seconds": 2.0, "attempts": 1}
LOST = ("waiting", "connecting")
RIGHT, WRONG = "c@nary-7f3a", "wr0ng-canary"


@pytest.fixture
def feed():
    with Feed((160, 120), rate=20) as feed:
        yield feed


@pytest.fixture
def server(feed):
    with RtspServer(feed) as server:
        yield server


@contextlib.contextmanager
def reading(url, options=QUICK):
    with build_source(url, **options) as source, Reader(source) as reader:
        yield reader


def failing(url):
    """Return the words of the typed error that one attempt ends in."""
    with build_source(url, **ONCE) as source, pytest.raises(ConnectionLostError) as caught:
        list(source.frames(threading.Event()))
    return str(caught.value)


def test_ffprobe_sees_h264_of_the_right_size(server):
    arguments = ["ffprobe", "-v", "error", "-rtsp_transport", "tcp", "-show_entries", "stream=codec_name,width,height"]
    done = subprocess.run(
        [*arguments, "-of", "csv=p=0", server.url()], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("h264,160,120", "")


def test_images_are_read_back_exactly_and_in_order(server):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 40)
    marks = reader.marks
    assert None not in marks
    numbers = [mark.number for mark in marks]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert [frame.index for frame in reader.frames] == list(range(len(numbers)))
    for mark, frame in zip(marks, reader.frames, strict=True):
        assert -0.001 <= mark.age_seconds(frame.captured_at) < 1.0
    values = [frame.pts_seconds - reader.frames[0].pts_seconds for frame in reader.frames]
    painted = [(mark.millis - marks[0].millis) / 1000 for mark in marks]
    assert values == pytest.approx(painted, abs=0.1)  # FFmpeg evens out the first few


def test_anamorphic_images_have_their_display_size():
    with Feed((160, 120), rate=20, aspect=Fraction(2)) as feed, RtspServer(feed) as server:
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 3)
        assert {(frame.width, frame.height) for frame in reader.frames} == {(320, 120)}


def test_images_larger_than_a_packet_are_reassembled():
    with Feed((640, 480), rate=10, bit_rate=4_000_000, grain=20) as feed, RtspServer(feed) as server:
        sizes = []
        feed.listen("sizes", lambda image: sizes.append(max(map(len, image.units))))
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 5)
        assert max(sizes) > 1200
        assert None not in reader.marks


def test_two_viewers_share_one_encoder_and_each_begins_with_a_keyframe(server):
    with reading(server.url()) as first:
        first.until(lambda: len(first.frames) >= 3)
        with reading(server.url()) as other:
            other.until(lambda: len(other.frames) >= 10)
    assert None not in first.marks + other.marks
    assert set(other.marks[:5]) <= set(first.marks)
    assert first.health.corrupt == other.health.corrupt == 0


def test_stall_is_detected_and_reported_and_fresh_images_follow(server, feed):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        server.faults.stalled = True
        reader.until(lambda: reader.health.state in LOST)
        assert reader.health.reason == "no frame for 1 s"
        back = feed.number
        server.faults.stalled = False
        reader.until_number(back)
        assert reader.last.age_seconds(reader.frames[-1].captured_at) < 2.0
        assert reader.health.reconnects == 1
    assert None not in reader.marks


def test_lost_camera_is_reported_and_fresh_images_follow_its_return(server, feed):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        port = server.port
        server.die()
        reader.until(lambda: "refused" in reader.health.reason)
        died, missed = len(reader.frames), feed.number
        reader.until(lambda: feed.number > missed + 5)
        server.come_back()
        assert server.port == port
        reader.until_number(feed.number)
        assert reader.health.state == "live"
        assert reader.health.reconnects == 1
    first = reader.frames[died]
    assert read(first.image).age_seconds(first.captured_at) < 2.0
    assert [frame.index for frame in reader.frames] == list(range(len(reader.frames)))


@pytest.mark.parametrize("how", ["close", "reset"])
def test_broken_connection_is_reopened(server, feed, how):
    with reading(server.url()) as reader:
        for times in (1, 2, 3):
            reader.until_number(feed.number)
            getattr(server, how)()
            reader.until(lambda times=times: reader.health.reconnects == times)
        reader.until_number(feed.number)
    assert None not in reader.marks
    numbers = [mark.number for mark in reader.marks]
    assert numbers == sorted(set(numbers))


def test_camera_may_return_with_another_size(server, feed):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        server.die()
        feed.size = (320, 240)
        started = feed.number
        reader.until(lambda: feed.number > started + 2)
        server.come_back()
        reader.until(lambda: reader.frames[-1].width == 320)
    assert {(frame.width, frame.height) for frame in reader.frames} == {(160, 120), (320, 240)}
    assert None not in reader.marks


def test_camera_may_change_its_size_without_notice(server, feed):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        feed.size = (240, 160)
        reader.until(lambda: reader.frames[-1].width == 240)
        reader.until_number(feed.number)
    assert None not in reader.marks


@pytest.mark.parametrize("shift", [-40_000.0, -5.0, 5.0, 47_000.0])
def test_time_increases_whatever_the_cameras_clock_does(server, feed, shift):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 5)
        server.faults.time_shift_seconds = shift
        reader.until_number(feed.number + 10)
    values = [frame.pts_seconds for frame in reader.frames]
    assert values == sorted(set(values))
    elapsed = reader.frames[-1].captured_at - reader.frames[0].captured_at
    assert values[-1] == pytest.approx(elapsed, abs=6.5)
    assert None not in reader.marks


def test_lost_images_corrupt_no_shown_image():
    with Feed((320, 240), rate=25, key_every=10) as feed, RtspServer(feed, seed=3) as server:
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 5)
            server.faults.drop_share = 0.1  # without grain a picture is one packet
            reader.until(lambda: server.counts.packets_dropped >= 6)
            server.faults.drop_share = 0.0
            reader.until_number(feed.number + 12)
        assert reader.health.corrupt > 0
    assert None not in reader.marks


def test_lost_packets_within_images_corrupt_hardly_any_shown_image():
    grainy = Feed((320, 240), rate=25, bit_rate=1_500_000, grain=20)  # five packets or more to a picture
    with grainy as feed, RtspServer(feed, seed=3) as server:
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 5)
            server.faults.drop_share = 0.03
            reader.until(lambda: server.counts.packets_dropped >= 15)
            server.faults.drop_share = 0.0
            reader.until_number(feed.number + 36)
        assert reader.health.corrupt > 0
    # A slice whose hole still makes sense to the decoder is rare; what hangs on it is wrong until the next key picture.
    assert reader.marks.count(None) <= len(reader.marks) / 10


@pytest.mark.parametrize("name", ["wrong password", "no password"])
def test_wrong_password_is_recognised_and_not_logged(feed, caplog, name):
    caplog.set_level(logging.DEBUG)
    with RtspServer(feed, user="eye", password=RIGHT) as server:
        wrong = name == "wrong password"
        url = server.url(password=WRONG) if wrong else server.url(credentials=False)
        av.logging.set_level(av.logging.DEBUG)
        try:
            message = failing(url)
        finally:
            av.logging.set_level(None)
        assert "wrong or missing user name or password (401" in message
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 2)
            text = f"{message} {reader.health} {reader.source.uri} {reader.source.camera}"
    assert "canary" not in text + caplog.text


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        (["Digest algorithm=NEW-512"], "requires Digest NEW-512, which is not supported: no password"),
        (["Negotiate"], "requires Negotiate, which is not supported: no password"),
        (["Digest algorithm=SHA-256"], "wrong or missing user name or password"),
        (["Digest algorithm=MD5, qop=auth-int"], "wrong or missing user name or password"),
        (["Digest algorithm=NEW-512", "Digest algorithm=MD5"], "wrong or missing user name or password"),
        (["Basic"], "wrong or missing user name or password"),
    ],
)
def test_challenge_that_cannot_be_answered_is_not_called_a_wrong_password(offered, message):
    heads = "".join(
        f'WWW-Authenticate: {challenge}{"," * (" " in challenge)} realm="x", nonce="y"\r\n' for challenge in offered
    )

    class Refusing(socketserver.StreamRequestHandler):
        def handle(self):
            head = ""
            while line := self.rfile.readline().decode():
                head += line
                if not line.strip():
                    number = re.search(r"(?i)cseq: *(\d+)", head)[1]
                    self.wfile.write(f"RTSP/1.0 401 Unauthorized\r\nCSeq: {number}\r\n{heads}\r\n".encode())
                    head = ""

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as door:
        thread = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        text = failing(f"rtsp://me:{quote(RIGHT)}@127.0.0.1:{door.server_address[1]}/live")
        door.shutdown()
        thread.join()
    assert message in text
    assert "canary" not in text


def test_wrong_path_is_recognised(server):
    assert "check the path (404" in failing(server.url("/nothing"))


def test_changed_password_is_reported_and_recovers(feed, monkeypatch):
    monkeypatch.setattr("stream.reconnect.Backoff.delay_seconds", lambda *_, **__: 0.1)
    with RtspServer(feed, user="eye", password=RIGHT) as server, reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 2)
        server.password = WRONG
        server.close()
        reader.until(lambda: "password" in reader.health.reason)
        server.password = RIGHT
        reader.until_number(feed.number)


DESCRIPTIONS = {
    "nothing": b"\r\n",
    "noise": random.Random(1).randbytes(400),
    "html": b"<html><body>It works!</body></html>",
    "sound only": b"v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=x\r\nt=0 0\r\nm=audio 0 RTP/AVP 0\r\na=control:track1\r\n",
    "unknown codec": b"v=0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H999/90000\r\na=control:track1\r\n",
    "wrong parameters": b"v=0\r\ns=x\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    b"a=fmtp:96 sprop-parameter-sets=AAAA,////;packetization-mode=7\r\na=control:track1\r\n",
    "endless line": b"v=0\r\na=" + b"x" * 50_000,
}


WRONG_SETS = {
    "noise as SPS": lambda sets: (b"B\x00\x29\xe2\x90", sets.pps),
    "PPS alone": lambda sets: (sets.pps,),
    "SPS alone": lambda sets: (sets.sps,),
    "noise as PPS": lambda sets: (sets.sps, b"\x68\xff\xff\xff"),
    "SPS cut short": lambda sets: (sets.sps[:6], sets.pps),
    "zeros": lambda _: (bytes(12), bytes(4)),
    "sets of another profile": lambda _: (
        bytes.fromhex("6764001facd9405005bb016c80000003008000001e078c18cb"),
        bytes.fromhex("68ebe3cb22c0"),
    ),
}


@pytest.mark.parametrize("name", WRONG_SETS)
def test_stream_decodes_by_its_own_parameter_sets_where_the_description_is_wrong(server, feed, name):
    sets = ",".join(base64.b64encode(unit).decode() for unit in WRONG_SETS[name](feed.parameters))
    wrong = re.sub(rb"sprop-parameter-sets=[^\r\n;]*", b"sprop-parameter-sets=" + sets.encode(), server.description())
    server.faults.description = wrong
    with reading(server.url(), ONCE) as reader:
        reader.until(lambda: len(reader.frames) >= 8)
    assert reader.error is None
    assert None not in reader.marks


@pytest.mark.parametrize("name", [name for name in DESCRIPTIONS if name != "wrong parameters"])
def test_description_without_video_ends_in_a_typed_error(server, name):
    server.faults.description = DESCRIPTIONS[name]
    assert server.url() in failing(server.url())


def test_description_with_invalid_parameters_gives_images(server):
    server.faults.description = DESCRIPTIONS["wrong parameters"]
    with reading(server.url(), ONCE) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
    assert None not in reader.marks


def test_unknown_codec_is_reported_at_once(server):
    server.faults.description = DESCRIPTIONS["unknown codec"]
    assert "codec of its video is unknown" in failing(server.url())


ANSWERS = {
    "nothing": b"\r\n\r\n",
    "noise": random.Random(2).randbytes(300),
    "http": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "a number too long": b"RTSP/1.0 99999999999 ?\r\nCSeq: 1\r\n\r\n",
    "a body that never comes": b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 999999\r\n\r\nv=0",
    "a negative length": b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: -5\r\n\r\n",
    "pictures before words": b"$\x00\xff\xff" + random.Random(3).randbytes(200),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_wrong_answer_ends_in_a_typed_error(server, name):
    server.faults.answer = ANSWERS[name]
    assert server.url() in failing(server.url())


def test_damaged_descriptions_and_answers_end_in_typed_errors_only(server):
    chance = random.Random(4)
    good = DESCRIPTIONS["sound only"]  # whatever is done to it, it never leads to pictures
    for _ in range(100):
        broken = bytearray(good)
        for _ in range(chance.randrange(1, 12)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        server.faults.description = bytes(broken[: chance.randrange(1, len(broken) + 1)])
        assert server.url() in failing(server.url())


def test_silent_camera_fails_after_the_open_timeout(server):
    server.faults.silent = True
    assert "no answer for 2 s" in failing(server.url())


def test_late_answer_is_reported_as_late(server):
    server.faults.answer_delay_seconds = 0.7  # four of them take longer than the open timeout
    assert "no answer for 2 s" in failing(server.url())


def test_name_in_another_encoding_is_accepted(server):
    server.faults.description = server.description().replace(b"s=ground", b"s=T\xfcr \xe3")
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 2)


def test_slow_camera_is_waited_for(server, feed):
    server.faults.answer_delay_seconds = 0.2
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 2)
        assert reader.health == reader.health.__class__("live")


def test_connection_without_data_is_detected_like_a_stall(server, feed):
    with Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            reader.until(lambda: len(reader.frames) >= 3)
            line.blackholed = True
            reader.until(lambda: reader.health.state in LOST)
            assert reader.health.reason == "no frame for 1 s"
            line.blackholed = False
            reader.until_number(feed.number)
        assert None not in reader.marks


def test_camera_that_closes_before_answering_is_retried_soon(server, feed):
    with Proxy(server.port) as line, reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        server.die()  # the line still takes connections, and drops them
        connections_before = line.connections
        reader.until(lambda: line.connections >= connections_before + 3)
        server.come_back()
        reader.until_number(feed.number, 8)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_broken_connection_is_resumed(server, feed, how):
    with Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            reader.until(lambda: len(reader.frames) >= 3)
            getattr(line, how)()
            reader.until(lambda: reader.health.reconnects == 1)
            reader.until_number(feed.number)
        assert None not in reader.marks


def test_connection_cut_within_an_image_shows_no_broken_image(server, feed):
    with Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            for cut in (100, 777, 2000):
                reader.until_number(feed.number)
                connections = line.connections
                line.truncate_after_bytes = cut
                reader.until(lambda connections=connections: line.connections > connections)
                line.truncate_after_bytes = None
        assert None not in reader.marks


def test_delayed_connection_delivers_everything_later(server, feed):
    with Proxy(server.port) as line:
        line.delay_seconds = 0.1
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            reader.until(lambda: len(reader.frames) >= 10)
        ages = [mark.age_seconds(f.captured_at) for mark, f in zip(reader.marks, reader.frames, strict=True)]
        assert min(ages[-5:]) > 0.09


def test_slow_connection_makes_the_camera_skip_images():
    grainy = Feed((320, 240), rate=25, bit_rate=6_000_000, grain=20)
    with grainy as feed, RtspServer(feed) as server, Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            reader.until(lambda: len(reader.frames) >= 3)
            line.bytes_per_second = 40_000
            started = len(reader.frames)
            reader.until(lambda: len(reader.frames) > started + 2)
        assert None not in reader.marks


def test_many_cameras_share_one_encoder():
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(Feed((160, 120), rate=10))
        servers = [stack.enter_context(RtspServer(feed)) for _ in range(4)]
        readers = [stack.enter_context(reading(server.url())) for server in servers]
        for reader in readers:
            reader.until(lambda reader=reader: len(reader.frames) >= 5)
    shared = set.intersection(*(set(reader.marks) for reader in readers))
    assert shared
    assert all(isinstance(mark, Mark) for mark in shared)


def test_painted_time_is_the_clock_of_this_machine(feed):
    seen = []
    feed.listen("test", lambda image: seen.append(millis_now() - image.millis))
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(seen) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    feed.forget("test")
    assert len(seen) >= 5
    assert all(0 <= late < 1000 for late in seen)

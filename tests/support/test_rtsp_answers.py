"""Sources of a camera whose answers or descriptions are wrong, damaged, late or refused."""

import base64
import logging
import random
import re
import socketserver
import threading
from urllib.parse import quote

import av
import pytest

from tests.support.reading import ONCE, QUICK, failing, reading
from tests.support.rtsp_server import RtspServer

RIGHT, WRONG = "c@nary-7f3a", "wr0ng-canary"


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
    assert server.url() in failing(server.url(), QUICK)


@pytest.mark.slow
def test_damaged_descriptions_and_answers_end_in_typed_errors_only(server):
    chance = random.Random(4)
    good = DESCRIPTIONS["sound only"]  # no change of its bytes describes a video
    for _ in range(100):
        broken = bytearray(good)
        for _ in range(chance.randrange(1, 12)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        server.faults.description = bytes(broken[: chance.randrange(1, len(broken) + 1)])
        assert server.url() in failing(server.url())


def test_silent_camera_fails_after_the_open_timeout(server):
    server.faults.silent = True
    assert "no answer for 2 s" in failing(server.url(), QUICK)


def test_late_answer_is_reported_as_late(server):
    server.faults.answer_delay_seconds = 0.7  # four of them take longer than the open timeout
    assert "no answer for 2 s" in failing(server.url(), QUICK)


def test_name_in_another_encoding_is_accepted(server):
    server.faults.description = server.description().replace(b"s=ground", b"s=T\xfcr \xe3")
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 2)


def test_slow_camera_is_waited_for(server, feed):
    server.faults.answer_delay_seconds = 0.2
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 2)
        assert reader.health == reader.health.__class__("live")

"""Tests of the relay between FFmpeg and RTSP cameras."""

import re
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConnectionLostError
from pipeline.rtsp_messages import Message, MessageReader, RtspMessageError
from stream.rtsp_camera import RtspCamera
from stream.rtsp_relay import rtsp_relay
from stream.sources import build_source
from tests.support.feed import Feed
from tests.support.limits import LIMIT_SECONDS, WAITS
from tests.support.reader import Reader
from tests.support.rtsp_server import RtspServer

ONCE = {**WAITS, "attempts": 1}


@pytest.fixture(scope="module")
def feed():
    with Feed((160, 120), rate=25) as running:
        yield running


@pytest.fixture
def servers(feed):
    with RtspServer(feed) as first, RtspServer(feed) as second:
        yield first, second


def refusal(uri, **settings):
    source = build_source(uri, **{**ONCE, **settings})
    with source, pytest.raises(ConnectionLostError) as caught:
        list(source.frames(threading.Event()))
    return str(caught.value)


def read(uri, count, **settings):
    source = build_source(uri, **{**ONCE, **settings})
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= count)
    return reader.frames


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP"])
def test_redirect_to_another_host_is_refused_and_names_the_remedy(servers, method):
    camera, other = servers
    camera.faults.redirect = lambda used, _: other.url() if used == method else None
    message = refusal(camera.url())
    assert f"allowed_hosts: ['127.0.0.1:{other.port}']" in message
    assert other.counts.connections == 0


@pytest.mark.parametrize("location", ["http://127.0.0.1/x", "file:///etc/passwd", "tcp://127.0.0.1:22", " "])
def test_redirect_to_another_protocol_is_refused(servers, location):
    camera, _ = servers
    camera.faults.redirect = lambda *_: location
    assert "refers to an address that is not rtsp(s)" in refusal(camera.url())


def test_redirect_to_an_address_without_a_host_is_refused(servers):
    camera, _ = servers
    camera.faults.redirect = lambda *_: "rtsp://:554/stream"
    assert "refers to an address without a host" in refusal(camera.url())


def test_redirect_to_an_invalid_address_is_refused(servers):
    camera, _ = servers
    camera.faults.redirect = lambda *_: "rtsp://[x"
    assert "redirects to an invalid address" in refusal(camera.url())


def test_redirect_of_a_later_connection_is_refused_too(servers, monkeypatch):
    monkeypatch.setattr("stream.reconnect.Backoff.delay_seconds", lambda *_, **__: 0.05)
    camera, other = servers
    source = build_source(camera.url(), **WAITS)
    with source, Reader(source) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        camera.faults.redirect = lambda *_: other.url()
        camera.close()
        reader.until(lambda: "allowed_hosts" in source.health.reason)
        camera.faults.redirect = None
        seen = len(reader.frames)
        reader.until(lambda: len(reader.frames) > seen)
    assert other.counts.connections == 0


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE"])
def test_redirect_to_an_allowed_host_is_followed_without_credentials(feed, method):
    with RtspServer(feed, user="me", password="s3cret") as camera, RtspServer(feed) as other:  # noqa: S106
        camera.faults.redirect = lambda used, _: other.url() if used == method else None
        assert read(camera.url(), 2, allowed_hosts=[f"127.0.0.1:{other.port}"])
        assert other.counts.requests.count("PLAY") == 1
        assert other.counts.authorized == 0


def test_redirect_to_another_path_of_the_camera_is_followed_with_credentials(feed):
    with RtspServer(feed, user="me", password="s3cret") as camera:  # noqa: S106
        camera.faults.redirect = lambda _, path: camera.url(credentials=False) if path == "/old" else None
        assert read(camera.url("/old"), 2)


def test_endless_redirects_are_refused(servers):
    camera, _ = servers
    camera.faults.redirect = lambda *_: camera.url()
    assert "redirects more than 5 times" in refusal(camera.url())


def test_digest_with_sha256_connects(feed):
    with RtspServer(feed, user="me", password="ä/:@ 1", algorithm="SHA-256") as camera:  # noqa: S106
        assert read(camera.url(), 2)


def test_other_process_cannot_use_the_relay(servers):
    camera, _ = servers
    with rtsp_relay(RtspCamera(camera.url()), seconds=LIMIT_SECONDS) as relay:
        port = int(re.search(r":(\d+)/", relay.url)[1])
        for path in ("", "/", "/" + "0" * 32):
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS) as stranger:
                stranger.sendall(f"OPTIONS rtsp://127.0.0.1:{port}{path} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
                assert stranger.recv(100) == b""
        assert camera.counts.requests == []
        assert _ask(relay.url, "OPTIONS").status == 200


def test_camera_cannot_direct_receiver_reports_to_another_host():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        camera = RtspCamera(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/live")
        with rtsp_relay(camera, seconds=LIMIT_SECONDS) as relay, listener.accept()[0] as connected:
            connected.sendall(
                b"RTSP/1.0 200 OK\nCSeq: 1\nTransport: RTP/AVP;unicast;source=10.1.2.3;server_port=53-54\n\n"
            )
            answer = _ask(relay.url, "SETUP")
    assert answer.get("transport") == "RTP/AVP;unicast;server_port=53-54;source=127.0.0.1"


def test_message_that_is_too_large_is_refused():
    reader = MessageReader()
    reader.feed(b"RTSP/1.0 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n")
    with pytest.raises(RtspMessageError, match="too large"):
        reader.next()
    reader = MessageReader()
    reader.feed(b"RTSP/1.0 200 OK\r\n" + b"a: b\r\n" * 20000)
    with pytest.raises(RtspMessageError, match="too large"):
        reader.next()


@given(head=st.binary(max_size=120), body=st.binary(max_size=60), cut=st.integers(0, 200))
def test_rebuilt_message_has_one_status_and_the_same_content_for_every_reader(head, body, cut):
    data = b"RTSP/1.0 200 OK\r\nX: " + head + b"\n\nRTSP/1.0 302 Found\r\nLocation: rtsp://x\r\n\r\n" + body
    whole, parts = MessageReader(), MessageReader()
    whole.feed(data)
    parts.feed(data[:cut])
    early = []
    while (item := parts.next()) is not None:
        early.append(item)
    parts.feed(data[cut:])
    message = whole.next()
    assert isinstance(message, Message)
    assert message == (early or [parts.next()])[0]
    sent = message.encode()
    lines = sent[: len(sent) - len(message.body)].split(b"\r\n")
    assert lines[0] == b"RTSP/1.0 200 OK"
    assert all(not re.search(rb"[\x00-\x1f\x7f]", line) for line in lines)
    assert not any(line.startswith(b"RTSP/") for line in lines[1:])
    again = MessageReader()
    again.feed(sent)
    assert again.next().status == 200
    assert again.next() is None


@given(packets=st.lists(st.binary(max_size=40), max_size=5), cuts=st.lists(st.integers(1, 30), max_size=10))
def test_interleaved_packets_are_split_off_wherever_the_bytes_are_cut(packets, cuts):
    data = b"".join(b"$\x00" + len(packet).to_bytes(2, "big") + packet for packet in packets)
    data += b"RTSP/1.0 200 OK\r\nCSeq: 7\r\nContent-Length: 2\r\n\r\nok"
    reader, items = MessageReader(), []
    for size in [*cuts, len(data)]:
        reader.feed(data[:size])
        data = data[size:]
        while (item := reader.next()) is not None:
            items.append(item)
    assert [item[4:] for item in items[:-1]] == packets
    assert (items[-1].status, items[-1].get("cseq"), items[-1].body) == (200, "7", b"ok")
    assert reader.rest() == b""


def _ask(url, method):
    port = int(re.search(r":(\d+)/", url)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS) as client:
        client.sendall(f"{method} {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
        reader = MessageReader()
        while (answer := reader.next()) is None:
            data = client.recv(4096)
            assert data
            reader.feed(data)
        return answer

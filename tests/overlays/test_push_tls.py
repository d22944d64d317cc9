"""The push sinks by TLS: rtsps:// with GStreamer's RTSP server, rtmps:// with nginx behind a relay."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
from contextlib import contextmanager

import pytest

from overlays.sinks.push import stream as push_stream
from overlays.sinks.push.connection import PushError, ServerSocket
from overlays.sinks.push.sink import PushSink
from overlays.sinks.registry import build_sink
from overlays.sinks.settings import RtmpPushSettings, RtspPushSettings
from pipeline.errors import SinkError
from pipeline.settings import Secret, SinkContext
from tests.overlays.test_push import (
    PASSWORD,
    Feeder,
    nginx,
    numbers_in,
    painted,
    recorded_numbers,
    rtsp_server,
    sent_images,
)
from tests.support.broker import free_port
from tests.support.certificates import make_certificate
from tests.support.limits import LIMIT_SECONDS
from tests.support.loops import LoopThread


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """Return a file with a self-signed certificate of 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder / "key.pem", folder / "server.pem", alternative="IP:127.0.0.1", subject="server")
    both = folder / "both.pem"
    both.write_text((folder / "server.pem").read_text() + (folder / "key.pem").read_text())
    return both


def server_context(pem):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@contextmanager
def tls_relay(pem, port):
    """Run a server that takes TLS and passes the bytes to a port of this machine; yield its port."""

    async def pass_on(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        onward = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, onward[1]), pass_on(onward[0], writer))

    with LoopThread("tls relay") as thread:
        server = thread.wait_for(asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(pem)))
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            thread.call(server.close)


@contextmanager
def listener(answer):
    """Run ``answer`` with the first connection to a port, in a thread; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_SECONDS)
        ended = threading.Event()

        def accept():
            link, _ = server.accept()
            with link, contextlib.suppress(OSError):
                link.settimeout(LIMIT_SECONDS)
                answer(link)
                ended.wait(LIMIT_SECONDS)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def connected(port, pem, seconds=LIMIT_SECONDS, host="127.0.0.1"):
    context = ssl.create_default_context(cafile=pem)
    link = ServerSocket(host, port, seconds, context)
    try:
        link.connect()
    except PushError:
        link.close()
        raise
    return link


@pytest.mark.slow
@pytest.mark.rtsp
def test_rtsp_server_with_tls_and_password_gets_every_frame_in_order(tmp_path, pem, overlaid, wait_until):
    context = SinkContext(("line",), {"credentials_file": Secret(f"ann:{PASSWORD}", "login", None)})
    with rtsp_server(tmp_path / "images", 0, "ann", PASSWORD, str(pem)) as (_, port):
        settings = RtspPushSettings(uri=f"rtsps://127.0.0.1:{port}/line", ca_file=str(pem))
        with PushSink(settings, context) as sink:
            feed = Feeder(sink, overlaid, wait_until)
            numbers = [feed.send() for _ in range(20)]
            wait_until(lambda: numbers_in(tmp_path / "images") == numbers)
            assert not sink.problem
    assert sink.account == "20 images sent, 0 lost"


@pytest.mark.slow
@pytest.mark.rtsp
def test_rtmp_server_behind_tls_gets_every_frame_in_order(tmp_path, pem, overlaid, wait_until):
    port = free_port()
    with nginx(tmp_path / "nginx", port), tls_relay(pem, port) as tls_port:
        settings = RtmpPushSettings(uri=f"rtmps://127.0.0.1:{tls_port}/live/line", ca_file=str(pem))
        with PushSink(settings) as sink:
            feed = Feeder(sink, overlaid, wait_until)
            numbers = [feed.send() for _ in range(20)]
            assert not sink.problem
        recording = tmp_path / "nginx" / "line.flv"
        wait_until(lambda: recorded_numbers(recording) == numbers)


def test_certificate_of_an_unknown_authority_is_refused_with_the_remedy(pem, overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(push_stream, "_SLOW_RETRY_SECONDS", LIMIT_SECONDS)
    with listener(lambda link: server_context(pem).wrap_socket(link, server_side=True)) as port:
        with build_sink(f"rtsps://127.0.0.1:{port}/line") as sink:
            sink.put(overlaid(painted(0)))
            wait_until(lambda: "certificate" in sink.problem)
            assert re.search(r"certificate is refused \(.*self-signed.*\); set ca_file", sink.problem)
        assert sent_images(sink) == 0


def test_server_without_tls_is_named(pem):
    answer = b"RTSP/1.0 400 Bad Request\r\n\r\n"
    with listener(lambda link: link.sendall(answer)) as port, pytest.raises(PushError, match=r"TLS fails.*for TLS"):
        connected(port, pem)


def test_server_that_does_not_answer_in_tls_is_left_in_time(pem):
    with listener(lambda _: None) as port, pytest.raises(PushError, match=r"does not answer or take data for 0\.2 s"):
        connected(port, pem, seconds=0.2)


def test_certificate_of_another_host_is_refused(pem):
    secure = listener(lambda link: server_context(pem).wrap_socket(link, server_side=True))
    with secure as port, pytest.raises(PushError, match=r"certificate is refused.*host name"):
        connected(port, pem, host="localhost")


def test_reading_without_waiting_gives_nothing_while_nothing_arrived(pem):
    sent = threading.Event()

    def answer(link):
        with server_context(pem).wrap_socket(link, server_side=True) as secure:
            sent.wait(LIMIT_SECONDS)
            secure.sendall(b"late")
            assert secure.recv(100) == b"x" * 100

    with listener(answer) as port:
        link = connected(port, pem)
        try:
            assert link.receive_waiting() == b""
            sent.set()
            assert link.receive() == b"late"
            link.send(b"x" * 100)
        finally:
            link.close()


def test_ca_file_without_tls_and_one_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(SinkError, match=r"ca_file ca\.pem: is for TLS; write rtsps://"):
        PushSink(RtspPushSettings(uri="rtsp://127.0.0.1:8554/line", ca_file="ca.pem"))
    with pytest.raises(SinkError, match=r"ca_file .*none\.pem: cannot be read"):
        PushSink(RtmpPushSettings(uri="rtmps://127.0.0.1/live/line", ca_file=str(tmp_path / "none.pem")))

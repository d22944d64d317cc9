"""The push sinks with GStreamer's RTSP server and nginx as RTMP server."""

from __future__ import annotations

import itertools
import logging
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from overlays.sinks.push import stream as push_stream
from overlays.sinks.push.sink import PushSink
from overlays.sinks.registry import build_sink
from overlays.sinks.settings import RtmpPushSettings, RtspPushSettings
from pipeline.frames import Overlay, SignalLoss
from pipeline.settings import Secret, SinkContext
from tests.support import footage
from tests.support.broker import free_port
from tests.support.limits import PROGRAM_SECONDS
from tests.support.loops import LoopThread

SYSTEM_PYTHON = "/usr/bin/python3"
RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
PASSWORD, KEY = "canary-5d1f", "canary-key-77aa"


def painted(number, width=320, height=240):
    return footage.paint(np.zeros((height, width, 3), np.uint8), number, 0)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """Shorten the waits before a new connection."""
    monkeypatch.setattr(push_stream, "_RETRY_SECONDS", (0.05, 0.1))
    monkeypatch.setattr(push_stream, "_SLOW_RETRY_SECONDS", 0.1)


@contextmanager
def rtsp_server(folder, port=0, *login):
    probe = [SYSTEM_PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("needs GStreamer's RTSP server (tests/system-packages.txt)")
    folder.mkdir(exist_ok=True)
    command = [SYSTEM_PYTHON, str(Path(__file__).with_name("gst_record_server.py")), str(folder), str(port), *login]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server, int(server.stdout.readline())
        finally:
            server.kill()


@contextmanager
def nginx(folder, port):
    """Run nginx as an RTMP server that records into a folder; yield its process."""
    if shutil.which("nginx") is None or not RTMP_MODULE.exists():
        pytest.skip("needs nginx-light and libnginx-mod-rtmp (tests/system-packages.txt)")
    folder.mkdir(exist_ok=True)
    applications = (
        f"application live {{ live on; record all; record_path {folder}; record_suffix .flv; }}"
        "application closed { live on; deny publish all; }"
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"user root; load_module {RTMP_MODULE}; events {{ }}\n"
        f"rtmp {{ server {{ listen 127.0.0.1:{port}; {applications} }} }}\n"
    )
    with subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]) as server:
        try:
            pause = threading.Event()
            for _ in range(int(PROGRAM_SECONDS / 0.05)):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                pause.wait(0.05)
            yield server
        finally:
            server.terminate()


@pytest.fixture
def rtmp_server(tmp_path):
    """Return the port of an RTMP server that records, and the folder of the recordings."""
    port = free_port()
    with nginx(tmp_path, port):
        yield port, tmp_path


class Feeder:
    """Puts painted images into a sink, one after the other."""

    def __init__(self, sink, overlaid, wait_until):
        self.sink, self._overlaid, self._wait_until = sink, overlaid, wait_until
        self._numbers = itertools.count()

    def put(self, *, width=320, **facts):
        """Put the next image; return its number."""
        number = next(self._numbers)
        self.sink.put(self._overlaid(painted(number, width), index=number, **facts))
        return number

    def send(self, **facts):
        """Put the next image and wait until it is sent; return its number."""
        sent = sent_images(self.sink)
        number = self.put(**facts)
        self._wait_until(lambda: sent_images(self.sink) > sent)
        return number

    def send_until(self, condition):
        """Put images until a condition holds."""

        def is_reached():
            self.put()
            return condition()

        self._wait_until(is_reached)


def sent_images(sink):
    return int(sink.account.split()[0])


@pytest.fixture
def feeder(overlaid, wait_until):
    return lambda sink: Feeder(sink, overlaid, wait_until)


def numbers_in(folder, prefix=""):
    """Return the numbers in the images that arrived whole, in their order."""
    images = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in sorted(folder.glob(f"{prefix}[0-9]*.jpg"))]
    marks = [footage.read(image) for image in images if image is not None]
    return [mark.number for mark in marks if mark is not None]


@pytest.mark.slow
@pytest.mark.rtsp
def test_rtsp_server_gets_every_frame_in_order_over_a_change_of_size(tmp_path, feeder, wait_until):
    with rtsp_server(tmp_path / "images") as (_, port), PushSink(f"rtsp://127.0.0.1:{port}/line") as sink:
        feed = feeder(sink)
        first = [feed.send() for _ in range(20)]
        wait_until(lambda: numbers_in(tmp_path / "images") == first)
        second = [feed.send(width=480) for _ in range(5)]
        assert not sink.problem
        # The server numbers the images of each connection from 0: those of the second replace the first five.
        wait_until(lambda: numbers_in(tmp_path / "images") == [*second, *first[5:]])
    assert sink.account == "25 images sent, 0 lost"


@pytest.mark.slow
@pytest.mark.rtsp
def test_rtsp_server_authenticates_and_a_wrong_password_is_explained(tmp_path, feeder, wait_until, caplog):
    caplog.set_level(logging.DEBUG)
    with rtsp_server(tmp_path / "images", 0, "ann", PASSWORD) as (_, port):
        for text, ending in ((f"ann:{PASSWORD}x", "401"), (f"ann:{PASSWORD}", "")):
            context = SinkContext(("line",), {"credentials_file": Secret(text, "login", None)})
            with build_sink(f"rtsp://127.0.0.1:{port}/line", context=context) as sink:
                feed = feeder(sink)
                if ending:
                    feed.send_until(lambda sink=sink, ending=ending: ending in sink.problem)
                    assert "credentials_file" in sink.problem
                else:
                    numbers = [feed.send() for _ in range(5)]
                    wait_until(lambda numbers=numbers: numbers_in(tmp_path / "images") == numbers)
                shown = [sink.uri, sink.problem, sink.account, str(sink.metrics())]
                assert not [text for text in shown if PASSWORD in text]
    assert PASSWORD not in caplog.text


@pytest.mark.slow
@pytest.mark.rtsp
def test_rtsp_path_that_does_not_exist_is_explained(tmp_path, feeder):
    with rtsp_server(tmp_path / "images") as (_, port), PushSink(f"rtsp://127.0.0.1:{port}/nowhere") as sink:
        feeder(sink).send_until(lambda: "404" in sink.problem)
        assert "check the path" in sink.problem


@pytest.mark.slow
@pytest.mark.rtsp
def test_cameras_are_published_at_paths_of_their_own_with_signal_loss_images(tmp_path, overlaid, wait_until):
    with (
        rtsp_server(tmp_path / "images") as (_, port),
        build_sink(f"rtsp://127.0.0.1:{port}/{{camera}}", cameras=("line", "second")) as sink,
    ):
        for number in range(4):
            for camera in ("line", "second"):
                overlay = overlaid(painted(number), camera=camera, index=number)
                sink.put(overlay)
            wait_until(lambda number=number: sent_images(sink) == 2 * number + 2)
        lost = Overlay(painted(9), overlay.explanation, SignalLoss(1.0, "stalled", "no frame"))
        sink.put(lost)
        wait_until(lambda: numbers_in(tmp_path / "images", "s") == [0, 1, 2, 3, 9])
        wait_until(lambda: numbers_in(tmp_path / "images") == [0, 1, 2, 3])


@contextmanager
def restarted(server, successor, feed, sink):
    """Send frames 0 to 2 and kill the server; enter the block once the sink sends to the successor."""
    for _ in range(3):
        feed.send()
    server.kill()
    server.wait(PROGRAM_SECONDS)
    feed.send_until(lambda: "refused" in sink.problem)
    with successor:
        feed.send_until(lambda: not sink.problem)
        yield


@pytest.mark.slow
@pytest.mark.rtsp
def test_stream_comes_back_with_the_newest_frame_after_the_server_was_killed(tmp_path, feeder, wait_until):
    with rtsp_server(tmp_path / "first") as (server, port), PushSink(f"rtsp://127.0.0.1:{port}/line") as sink:
        feed = feeder(sink)
        with restarted(server, rtsp_server(tmp_path / "second", port), feed, sink):
            wait_until(lambda: sink._cameras["line"].stream.is_idle)
            before = feed.put()
            wait_until(lambda: before in numbers_in(tmp_path / "second"))
            seen = numbers_in(tmp_path / "second")
    assert seen == sorted(seen)
    assert set(range(3)).isdisjoint(seen)


@pytest.mark.slow
@pytest.mark.rtsp
def test_stopped_server_is_noticed_and_delays_neither_put_nor_the_end_nor_another_server(tmp_path, feeder, wait_until):
    with (
        rtsp_server(tmp_path / "stopped") as (server, port),
        rtsp_server(tmp_path / "healthy") as (_, other_port),
        PushSink(f"rtsp://127.0.0.1:{other_port}/line") as healthy,
    ):
        quick = RtspPushSettings(uri=f"rtsp://127.0.0.1:{port}/line", timeout_seconds=0.5)
        with PushSink(quick) as sink:
            feed, other = feeder(sink), feeder(healthy)
            feed.send()
            server.send_signal(signal.SIGSTOP)
            try:
                numbers = []

                def is_noticed():
                    feed.put()
                    numbers.append(other.send())
                    return "does not answer" in sink.problem

                wait_until(is_noticed)
            finally:
                server.send_signal(signal.SIGCONT)
            feed.send_until(lambda: not sink.problem)
            server.send_signal(signal.SIGSTOP)
            for _ in range(8):
                feed.put()
        server.send_signal(signal.SIGCONT)
        wait_until(lambda: numbers_in(tmp_path / "healthy") == numbers)
    assert healthy.account == f"{len(numbers)} images sent, 0 lost"


def test_server_that_sends_for_ever_and_never_answers_is_given_up(feeder):
    async def babble(reader, writer):
        try:
            while True:
                writer.write(b"$\x00\x00\x04abcd" * 100)
                await writer.drain()
        except OSError:
            return

    import asyncio

    with LoopThread("babble") as loop:
        server = loop.wait_for(asyncio.start_server(babble, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        slow = RtspPushSettings(uri=f"rtsp://127.0.0.1:{port}/line", timeout_seconds=0.5)
        with PushSink(slow) as sink:
            feeder(sink).send_until(lambda: "does not answer" in sink.problem)
        loop.call(server.close)


@pytest.mark.slow
def test_rtmp_server_records_every_frame_at_its_capture_time(rtmp_server, overlaid, wait_until):
    port, folder = rtmp_server
    times = [50.0 + step for step in (0.0, 0.04, 0.07, 0.5, 0.51, 2.9, 3.0)]
    with PushSink(f"rtmp://127.0.0.1:{port}/live/line") as sink:
        for number, captured_at in enumerate(times):
            sink.put(overlaid(painted(number), index=number, taken_at=captured_at))
            wait_until(lambda number=number: sent_images(sink) == number + 1)
    recording = folder / "line.flv"

    def frames():
        with av.open(str(recording)) as container:
            return [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(video=0)]

    wait_until(lambda: recording.exists() and len(frames()) == len(times))
    seen = frames()
    assert [footage.read(image).number for image, _ in seen] == list(range(len(times)))
    assert [time for _, time in seen] == pytest.approx([time - times[0] for time in times], abs=0.0011)
    with av.open(str(recording)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [True, False, False, False, False, True, False], "a key frame every two seconds"


def recorded_numbers(recording):
    """Return the numbers in the images of a recording, as far as it can be read."""
    with av.open(str(recording)) as container:
        return [footage.read(frame.to_ndarray(format="rgb24")).number for frame in container.decode(video=0)]


@pytest.mark.slow
def test_rtmp_stream_comes_back_with_the_newest_frame_after_the_server_was_killed(tmp_path, feeder):
    port = free_port()
    with nginx(tmp_path / "first", port) as server, PushSink(f"rtmp://127.0.0.1:{port}/live/line") as sink:
        feed = feeder(sink)
        with restarted(server, nginx(tmp_path / "second", port), feed, sink):
            last = feed.send()
            sink.on_run_end()
    seen = recorded_numbers(tmp_path / "second" / "line.flv")
    assert seen == sorted(seen)
    assert seen[0] > 2, "nothing of the time before"
    assert seen[-1] == last


@pytest.mark.slow
def test_stopped_rtmp_server_is_noticed_and_delays_no_other(tmp_path, feeder, overlaid, wait_until):
    port, other_port = free_port(), free_port()
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    quick = RtmpPushSettings(uri=f"rtmp://127.0.0.1:{port}/live/line", timeout_seconds=0.5, crf=1)
    with (
        nginx(tmp_path / "stopped", port) as server,
        nginx(tmp_path / "healthy", other_port),
        PushSink(f"rtmp://127.0.0.1:{other_port}/live/line") as healthy,
        PushSink(quick) as sink,
    ):
        feed, other = feeder(sink), feeder(healthy)
        feed.send()
        server.send_signal(signal.SIGSTOP)
        try:
            numbers = []

            def is_noticed():  # the buffers of both kernels take the first images
                for _ in range(4):
                    sink.put(overlaid(noise))
                numbers.append(other.send())
                return "does not answer or take data" in sink.problem

            wait_until(is_noticed)
        finally:
            server.send_signal(signal.SIGCONT)
        feed.send_until(lambda: not sink.problem)
        healthy.on_run_end()
    assert healthy.account == f"{len(numbers)} images sent, 0 lost"
    assert recorded_numbers(tmp_path / "healthy" / "line.flv") == numbers


@pytest.mark.slow
@pytest.mark.parametrize(("path", "words"), [("nowhere/line", "application"), ("closed/line", "stream key")])
def test_rtmp_refusal_is_explained(rtmp_server, feeder, path, words):
    port, _ = rtmp_server
    with PushSink(f"rtmp://127.0.0.1:{port}/{path}") as sink:
        feeder(sink).send_until(lambda: words in sink.problem)


@pytest.mark.slow
def test_stream_key_is_shown_nowhere(rtmp_server, feeder, wait_until, caplog):
    caplog.set_level(logging.DEBUG)
    port, folder = rtmp_server
    context = SinkContext(("line",), {"key_file": Secret(f"{KEY}\n", "key", None)})
    for app in ("live", "closed"):
        with build_sink(f"rtmp://127.0.0.1:{port}/{app}", context=context) as sink:
            feed = feeder(sink)
            feed.send_until(lambda sink=sink: sent_images(sink) or "stream key" in sink.problem)
            assert KEY not in " ".join([sink.uri, sink.problem, sink.account, str(sink.metrics())])
    wait_until((folder / f"{KEY}.flv").exists)
    assert KEY not in caplog.text


def test_port_without_server_is_explained(feeder):
    with PushSink(f"rtmp://127.0.0.1:{free_port()}/live/line") as sink:
        feeder(sink).send_until(lambda: "connection refused" in sink.problem)
        assert sent_images(sink) == 0


def test_second_camera_without_template_is_refused_once(overlaid, caplog):
    with PushSink(f"rtsp://127.0.0.1:{free_port()}/line", SinkContext(("a",))) as sink:
        for _ in range(3):
            sink.put(overlaid(painted(0), camera="b"))
        assert [record.levelname for record in caplog.records if "b is not published" in record.message] == ["ERROR"]
        assert not sink.needs_image("b")

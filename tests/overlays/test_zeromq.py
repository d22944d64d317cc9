"""Publisher and viewer over real sockets: subscriptions, sent frames, and ages."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq

from overlays.sinks import zeromq
from overlays.sinks.settings import ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.message import encode
from overlays.wire.viewer import Viewer
from pipeline.errors import SinkError, WireError
from tests.support.viewers import ANY, Publisher, first, joined, nothing_comes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sink():
    with ZeroMqSink(ANY) as opened:
        yield opened


def test_viewer_receives_the_image_explanation_and_age(sink, overlaid, wait_until):
    image = np.full((48, 64, 3), (200, 30, 60), np.uint8)
    with Viewer(sink.endpoint) as viewer:
        joined(sink, wait_until)
        assert sink.needs_image("door")
        sink.put(overlaid(image, camera="door", index=7, label="cat", taken_at=time.monotonic() - 0.5))
        received = first(viewer)
    assert (received.camera, received.header.index, received.header.findings[0].label) == ("door", 7, "cat")
    assert np.abs(received.image[24, 32].astype(int) - (200, 30, 60)).max() <= 4
    assert 0.5 <= received.age_seconds() < 5
    overlay = received.overlay()
    assert overlay.image is overlay.explanation.frame.image
    assert 0.5 <= overlay.explanation.frame.age_seconds() < 5


def test_no_image_is_compressed_without_viewers_of_the_camera(sink, overlaid, wait_until, monkeypatch):
    packed = []
    genuine = zeromq.encode_image
    monkeypatch.setattr(zeromq, "encode_image", lambda *a, **k: packed.append(1) or genuine(*a, **k))
    sink.put(overlaid(camera="door"))
    assert not sink.needs_image("door")
    with Viewer(sink.endpoint, ("door",)) as viewer:
        joined(sink, wait_until, b"door")
        assert sink.needs_image("door")
        assert sink.needs_image("doorstep"), "topics are beginnings of names"
        assert not sink.needs_image("gate")
        packed.clear()
        sink.put(overlaid(camera="gate"))
        assert packed == []
        sink.put(overlaid(camera="door", index=1))
        assert packed == [1]
        wait_until(lambda: first(viewer).header.index == 1)

    def left():
        sink.idle()
        return not sink.topics

    wait_until(left)
    assert not sink.needs_image("door")


def test_one_jpeg_is_shared_by_all_viewers(sink, overlaid, wait_until, monkeypatch):
    packed = []
    genuine = zeromq.encode_image
    with ExitStack() as stack:
        viewers = [stack.enter_context(Viewer(sink.endpoint, (topic,))) for topic in ("", "", "li", "line")]
        for topic in (b"", b"li", b"line"):
            joined(sink, wait_until, topic)
        monkeypatch.setattr(zeromq, "encode_image", lambda *a, **k: packed.append(1) or genuine(*a, **k))
        for viewer in viewers:
            sink.put(overlaid(index=1))
            sink.put(overlaid(index=2))
            wait_until(lambda v=viewer: first(v).header.index == 2)
    assert len(packed) == 2 * len(viewers)


def test_late_viewer_gets_the_last_frame_at_once_and_others_not_twice(sink, overlaid, wait_until):
    with Viewer(sink.endpoint, ("line",)) as early:
        joined(sink, wait_until, b"line")
        sink.put(overlaid(index=3))
        assert first(early).header.index == 3
        with Viewer(sink.endpoint, ("lin",)) as late:
            joined(sink, wait_until, b"lin")
            assert first(late).header.index == 3
            assert nothing_comes(early)


def test_late_viewer_of_the_same_topic_is_served(sink, overlaid, wait_until):
    with Viewer(sink.endpoint) as early:
        joined(sink, wait_until)
        sink.put(overlaid(index=3))
        assert first(early).header.index == 3
        with Viewer(sink.endpoint) as late:

            def served():
                sink.idle()
                return not nothing_comes(late, polls=1)

            wait_until(served)


def test_frames_drawn_before_the_first_viewer_are_held_briefly(overlaid, wait_until):
    now = [0.0]
    with ZeroMqSink(ANY, clock=lambda: now[0]) as sink, Viewer(sink.endpoint) as viewer:
        sink.put(overlaid(drawn=False, index=0, taken_at=0.0))
        joined(sink, wait_until)
        sink.put(overlaid(drawn=False, index=1, taken_at=0.0))
        assert nothing_comes(viewer)
        sink.put(overlaid(index=2, taken_at=0.0))
        assert first(viewer).header.index == 2
    with ZeroMqSink(ANY, clock=lambda: now[0]) as sink, Viewer(sink.endpoint) as viewer:
        sink.put(overlaid(drawn=False, index=5, taken_at=0.0))
        joined(sink, wait_until)
        now[0] = 10.0
        sink.idle()
        assert first(viewer).header.index == 5, "better a plain frame than none"


def test_slow_viewer_gets_fresh_frames_and_the_number_of_missed_ones(sink, overlaid):
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8)
    ages, passed, last = [], 0, None
    pause = threading.Event()
    with Publisher(sink, lambda index: overlaid(noise, index=index), 30), Viewer(sink.endpoint) as viewer:
        for received in viewer:
            ages.append(received.age_seconds())
            if last is not None:
                assert received.header.index == last + 1 + received.missed + received.skipped
                passed += received.missed + received.skipped
            last = received.header.index
            if len(ages) == 10:
                break
            pause.wait(0.2)
    assert passed > 15
    assert sorted(ages)[5] < 0.25, f"ages {ages}"


def test_conflate_delivers_only_the_last_part_of_a_message(overlaid):
    """The viewer drains its socket itself, because libzmq's CONFLATE keeps single parts of a message."""
    context = zmq.Context()
    with context.socket(zmq.PUB) as out, context.socket(zmq.SUB) as into:
        into.setsockopt(zmq.CONFLATE, 1)
        into.subscribe(b"")
        port = out.bind_to_random_port("tcp://127.0.0.1")
        into.connect(f"tcp://127.0.0.1:{port}")
        parts = encode(overlaid(), sent_at_unix=0.0, now_monotonic=0.0)
        for _ in range(100):
            out.send_multipart(parts)
            if into.poll(50):
                break
        assert into.recv_multipart() == parts[2:]
        out.close(0)
        into.close(0)
    context.term()


def test_ipc_is_supported(tmp_path, overlaid, wait_until):
    address = f"ipc://{tmp_path}/overlays"
    with ZeroMqSink(address) as sink, Viewer(address) as viewer:
        joined(sink, wait_until)
        sink.put(overlaid(index=4))
        assert first(viewer).header.index == 4


def test_ipv6_is_supported(overlaid, wait_until):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with ZeroMqSink("tcp://[::1]:0") as sink, Viewer(sink.endpoint) as viewer:
        joined(sink, wait_until)
        sink.put(overlaid(index=4))
        assert first(viewer).header.index == 4


def test_port_in_use_is_refused_with_the_remedy(sink):
    with pytest.raises(SinkError, match=r"127\.0\.0\.1:\d+: is in use; choose another port"), ZeroMqSink(sink.endpoint):
        pass


def test_address_of_another_machine_is_refused_with_the_remedy():
    for uri in ("tcp://192.0.2.1:5555", "tcp://no-such-host.invalid:5555"):
        sink = ZeroMqSink(ZeroMqSettings(uri=uri, insecure=True))
        with pytest.raises(SinkError, match="is not an address of this machine; bind"), sink:
            pass


def test_ipc_replaces_neither_a_file_nor_the_socket_of_a_live_run(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("do not delete")
    with pytest.raises(SinkError, match="is a file, not a socket"), ZeroMqSink(f"ipc://{precious}"):
        pass
    assert precious.read_text() == "do not delete"
    with pytest.raises(SinkError, match="mkdir -p"), ZeroMqSink(f"ipc://{tmp_path}/no/socket"):
        pass
    address = f"ipc://{tmp_path}/living"
    with ZeroMqSink(address), pytest.raises(SinkError, match="in use by another run"), ZeroMqSink(address):
        pass
    with ZeroMqSink(address):
        pass  # once the first has gone, its place is free


def test_leaving_does_not_wait_for_queued_messages(overlaid, wait_until):
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    with zmq.Context() as context, context.socket(zmq.SUB) as viewer:  # one that never reads
        viewer.setsockopt(zmq.RCVHWM, 1)
        viewer.subscribe(b"")
        sink = ZeroMqSink(ANY)
        sink.__enter__()
        viewer.connect(sink.endpoint)
        joined(sink, wait_until)
        for index in range(40):
            sink.put(overlaid(noise, index=index))
        endpoint = sink.endpoint
        sink.__exit__(None, None, None)  # else it never ends: they are not read
    with ZeroMqSink(endpoint) as again:
        assert again.endpoint == endpoint, "its door is free again"


def test_frozen_viewer_is_detected_its_camera_paused_and_resumed(overlaid, wait_until):
    code = (
        "import sys; from overlays.wire.viewer import Viewer\n"
        "with Viewer(sys.argv[1]) as viewer:\n"
        "    for received in viewer: print(received.header.index, flush=True)\n"
    )
    with ZeroMqSink(ANY) as sink:
        command = [sys.executable, "-c", code, sink.endpoint]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as watcher:
            try:
                joined(sink, wait_until)
                sink.put(overlaid())
                assert watcher.stdout.readline() == b"0\n"
                watcher.send_signal(signal.SIGSTOP)

                def gone():
                    sink.idle()
                    return not sink.needs_image("line")

                wait_until(gone)
                watcher.send_signal(signal.SIGCONT)

                def back():
                    sink.put(overlaid(index=77))
                    return sink.needs_image("line")

                wait_until(back)
                assert watcher.stdout.readline() == b"77\n"
            finally:
                watcher.kill()


def test_stopped_viewer_ends_at_once(sink):
    stop = threading.Event()
    stop.set()
    with Viewer(sink.endpoint) as viewer:
        assert list(viewer.messages(stop)) == []
        assert list(viewer.overlays(stop)) == []


def test_oversized_frame_is_sent_smaller_with_its_own_size(sink, overlaid, wait_until):
    with Viewer(sink.endpoint) as viewer:
        joined(sink, wait_until)
        sink.put(overlaid(np.full((64, 20_000, 3), 200, np.uint8), camera="scan", index=1))
        received = first(viewer)
        assert (received.header.frame_width, received.header.frame_height) == (20_000, 64)
        assert received.image.shape == (52, 16_384, 3)
        assert received.overlay().explanation.region.right == pytest.approx(16_384)


def test_frame_that_cannot_be_encoded_is_skipped_and_the_next_arrives(sink, overlaid, wait_until):
    with Viewer(sink.endpoint) as viewer:
        joined(sink, wait_until)
        with pytest.raises(WireError, match="explain fewer classes"):
            sink.put(overlaid(camera="door", index=1, label="x" * (33 << 20)))
        sink.idle()
        with pytest.raises(WireError, match="NaN"):
            sink.put(overlaid(camera="door", index=2, score=float("nan")))
        sink.idle()
        sink.put(overlaid(camera="door", index=3))
        assert first(viewer).header.index == 3

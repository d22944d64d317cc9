"""The live server of Foxglove's SDK, read by a WebSocket client that follows Foxglove's protocol."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

pytest.importorskip("foxglove")

from foxglove_schemas_protobuf.RawImage_pb2 import RawImage

from overlays.sinks.foxglove import live
from overlays.sinks.foxglove.live import FoxgloveSink
from overlays.sinks.foxglove.messages import TOPICS
from pipeline.errors import SinkError
from pipeline.settings import SinkContext
from tests.support.limits import LIMIT_SECONDS, PROGRAM_SECONDS

pytestmark = pytest.mark.leaves_things  # the SDK keeps its threads and their sockets until the process ends

ANY_PORT = "foxglove://127.0.0.1:0"
MESSAGE = struct.Struct("<BIQ")


@contextmanager
def viewer(sink):
    """Connect and return (connection, channels by topic) of the cameras that are advertised."""
    with connect(sink.endpoint, subprotocols=["foxglove.sdk.v1"], close_timeout=0.1) as connection:
        assert connection.subprotocol == "foxglove.sdk.v1"
        assert json.loads(connection.recv(LIMIT_SECONDS))["op"] == "serverInfo"
        advertised = json.loads(connection.recv(LIMIT_SECONDS))
        assert advertised["op"] == "advertise"
        yield connection, {channel["topic"]: channel for channel in advertised["channels"]}


def subscribe(connection, channel):
    entry = {"id": 5, "channelId": channel["id"]}
    connection.send(json.dumps({"op": "subscribe", "subscriptions": [entry]}))


def test_subscriber_gets_exact_heat_with_its_capture_time(overlaid, wait_until):
    heat = np.random.default_rng(2).random((3, 4), np.float32)
    clocks = {"wall_clock": lambda: 1_800_000_000.0, "clock": lambda: 100.0}
    with (
        FoxgloveSink(ANY_PORT, SinkContext(cameras=("line",)), **clocks) as sink,
        viewer(sink) as (connection, channels),
    ):
        assert {topic: channel["schemaName"] for topic, channel in channels.items()} == {
            "/line/image": "foxglove.CompressedImage",
            "/line/heat": "foxglove.RawImage",
            "/line/annotations": "foxglove.ImageAnnotations",
            "/line/explanation": "recipro_stream.Explanation",
        }
        subscribe(connection, channels["/line/heat"])
        wait_until(sink._channels["line"][1].has_sinks)
        sink.put(overlaid(heat=heat, taken_at=99.5))
        packet = connection.recv(LIMIT_SECONDS)
        assert MESSAGE.unpack_from(packet) == (1, 5, 1_799_999_999_500_000_000)
        message = RawImage.FromString(packet[MESSAGE.size :])
        assert (message.encoding, message.data) == ("32FC1", heat.tobytes())


def test_nothing_is_encoded_without_a_subscriber(overlaid, monkeypatch, wait_until):
    encoded = []
    monkeypatch.setattr(live, "frame_jpeg", lambda *_: encoded.append("prepared") or b"jpeg")
    monkeypatch.setattr(live, "TOPICS", [counting(topic, encoded) for topic in TOPICS])
    with FoxgloveSink(ANY_PORT) as sink:
        overlay = overlaid()
        sink.prepare(overlay)
        sink.put(overlay)
        assert encoded == []
        with viewer(sink) as (connection, channels):
            subscribe(connection, channels["/line/annotations"])
            wait_until(sink._channels["line"][2].has_sinks)
            sink.prepare(overlay)
            sink.put(overlay)
            assert encoded == ["annotations"]
        wait_until(lambda: not sink._channels["line"][2].has_sinks())
        sink.put(overlay)
        assert encoded == ["annotations"], "the viewer has gone"


def counting(topic, encoded):
    """Return a topic that records its name each time that it is encoded."""

    def messages(sample):
        encoded.append(topic.suffix)
        return topic.messages(sample)

    return replace(topic, messages=messages)


def test_camera_that_appears_later_is_advertised(overlaid):
    with FoxgloveSink(ANY_PORT) as sink, connect(sink.endpoint, subprotocols=["foxglove.sdk.v1"]) as connection:
        connection.recv(LIMIT_SECONDS)
        sink.put(overlaid(camera="late"))
        topics = []
        while len(topics) < len(TOPICS):
            topics += [channel["topic"] for channel in json.loads(connection.recv(LIMIT_SECONDS))["channels"]]
    assert sorted(topics) == ["/late/annotations", "/late/explanation", "/late/heat", "/late/image"]


def test_viewer_that_does_not_read_never_blocks_the_sink(overlaid, wait_until):
    image = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    with FoxgloveSink(ANY_PORT, SinkContext(cameras=("line",))) as sink, viewer(sink) as (connection, channels):
        subscribe(connection, channels["/line/image"])
        wait_until(sink._channels["line"][0].has_sinks)
        overlay = overlaid(image)
        sink.prepare(overlay)
        for _ in range(200):  # 60 MB, more than sockets hold: a sink that waits never ends
            sink.put(overlay)


VIEWER = """
import json, sys
from websockets.sync.client import connect
with connect(sys.argv[1], subprotocols=["foxglove.sdk.v1"]) as connection:
    connection.recv()
    channels = json.loads(connection.recv())["channels"]
    entries = [{"id": number, "channelId": channel["id"]} for number, channel in enumerate(channels)]
    connection.send(json.dumps({"op": "subscribe", "subscriptions": entries}))
    while True:
        connection.recv()
        print("received", flush=True)
"""


@contextmanager
def viewer_program(sink, overlay, wait_until):
    """Start a viewer in a process of its own, and wait until it has received a message."""
    command = [sys.executable, "-c", VIEWER, sink.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            wait_until(lambda: all(channel.has_sinks() for channel in sink._channels["line"]))
            sink.put(overlay)
            assert program.stdout.readline() == "received\n"
            yield program
        finally:
            program.kill()


def _unread_bytes(sink):
    """Return the bytes that the viewers' sockets have not taken: many only where a viewer does not read."""
    port = f":{int(sink.endpoint.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(int(row[4].partition(":")[0], 16) for row in rows if row[1].endswith(port))


def _fill_sockets(sink, overlay, wait_until):
    """Put images until the sockets take no more for fifty of them."""
    unread = []

    def full():
        sink.put(overlay)
        unread.append(_unread_bytes(sink))
        return unread[-1] > 0 and len(unread) > 50 and len(set(unread[-50:])) == 1

    wait_until(full)


def test_killed_viewer_ends_the_encoding_and_stopped_one_does_not_delay_the_end(overlaid, wait_until, caplog):
    overlay = overlaid(np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8))
    sink = FoxgloveSink(ANY_PORT, SinkContext(cameras=("line",)))
    with sink:
        sink.prepare(overlay)
        with viewer_program(sink, overlay, wait_until) as killed:
            killed.kill()
            assert killed.wait(PROGRAM_SECONDS) == -signal.SIGKILL
            wait_until(lambda: not any(channel.has_sinks() for channel in sink._channels["line"]))
        with viewer_program(sink, overlay, wait_until) as stopped:
            stopped.send_signal(signal.SIGSTOP)
            _fill_sockets(sink, overlay, wait_until)
            sink.__exit__(None, None, None)  # the SDK alone waits for the viewer without a limit
            assert stopped.poll() is None
    assert "a viewer does not answer; its connection is closed" in caplog.text
    assert "is abandoned" not in caplog.text
    assert "Error sending" not in caplog.text


@pytest.mark.parametrize("address", ["0.0.0.0:8765", "192.168.1.4:8765", "camera-host:8765", "[::]:8765"])
def test_address_for_other_machines_is_refused_with_the_way_through_ssh(address):
    with pytest.raises(SinkError, match=r"no token.*ssh -L 8765:127\.0\.0\.1:8765"):
        FoxgloveSink(f"foxglove://{address}")


@pytest.mark.parametrize("address", ["127.0.0.1", "", "127.0.0.1:99999", "127.0.0.1:8765/x"])
def test_malformed_address_is_refused_with_an_example(address):
    with pytest.raises(SinkError, match=r"foxglove://127\.0\.0\.1:8765"):
        FoxgloveSink(f"foxglove://{address}")


def test_port_in_use_is_refused_with_the_remedy():
    with FoxgloveSink(ANY_PORT) as first:
        uri = first.endpoint.replace("ws://", "foxglove://")
        with pytest.raises(SinkError, match=r"in use.*choose another port"), FoxgloveSink(uri):
            pass

"""Sinks complete and release a camera that left the run; the other cameras stay, and it may come again."""

from __future__ import annotations

import itertools
import json

import av
import pytest

from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.settings import ClipSettings, MqttSettings, VideoSettings
from overlays.sinks.video import VideoSink
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.viewer import Viewer
from pipeline.settings import SinkContext
from tests.support.broker import MOSQUITTO, Broker
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import connect_viewer, fetch, page

BOTH = ("leaves", "stays")


def count(path):
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


@pytest.mark.parametrize("mode", ["keep", "replace"])
def test_video_of_a_camera_that_leaves_is_complete_and_never_replaced(tmp_path, overlaid, mode):
    settings = VideoSettings(uri=str(tmp_path / "out.mp4"), mode=mode)
    with VideoSink(settings, SinkContext(BOTH)) as sink:
        for index in range(5):
            for camera in BOTH:
                sink.put(overlaid(camera=camera, index=index, pts_seconds=index / 10))
        sink.forget_camera("leaves")
        sink.forget_camera("unknown")
        assert count(tmp_path / "out.leaves.mp4") == 5
        for index in range(5, 8):
            for camera in BOTH:
                sink.put(overlaid(camera=camera, index=index, pts_seconds=index / 10))
    assert count(tmp_path / "out.stays.mp4") == 8
    again = [path for path in tmp_path.glob("out.leaves.*.mp4") if path.name != "out.leaves.mp4"]
    assert [count(path) for path in again] == [3]
    assert count(tmp_path / "out.leaves.mp4") == 5


def test_clip_of_a_camera_that_leaves_is_complete(tmp_path, overlaid):
    with ClipSink(ClipSettings(uri=f"{tmp_path}/"), SinkContext(BOTH)) as sink:
        for index in range(5):
            for camera in BOTH:
                sink.put(overlaid(camera=camera, index=index, pts_seconds=index / 10))
        sink.forget_camera("leaves")
        sink.forget_camera("unknown")
        [clip] = tmp_path.glob("leaves_*.mp4")
        assert count(clip) == 5
        assert len(clip.with_suffix(".jsonl").read_text().splitlines()) == 5


def listed(link, expected):
    """Wait until the page lists these cameras."""
    names = None
    while names != expected:
        message = link.recv(timeout=LIMIT_SECONDS)
        if isinstance(message, str) and "cameras" in (record := json.loads(message)):
            names = [camera["camera"] for camera in record["cameras"]]


def test_page_no_longer_lists_a_camera_that_left(overlaid):
    with page(cameras=BOTH) as sink, connect_viewer(sink) as link:
        for camera in BOTH:
            sink.put(overlaid(camera=camera))
        listed(link, ["leaves", "stays"])
        sink.forget_camera("leaves")
        listed(link, ["stays"])
        assert fetch(sink, "/clip/leaves.mp4")[0] == 404
        sink.put(overlaid(camera="leaves"))
        listed(link, ["stays", "leaves"])


def test_new_viewer_gets_no_frame_of_a_camera_that_left(overlaid):
    with ZeroMqSink("tcp://127.0.0.1:0") as sink:
        for camera in BOTH:
            sink.put(overlaid(camera=camera))
        sink.forget_camera("leaves")
        with Viewer(sink.endpoint) as viewer:
            seen = []
            for received in itertools.islice(viewer.messages_or_none(), 1000):
                sink.idle()
                seen.append(None if received is None else received.camera)
                if any(seen) and seen[-3:] == [None] * 3:
                    break
    assert [camera for camera in seen if camera] == ["stays"]


@pytest.mark.skipif(MOSQUITTO is None, reason="no MQTT broker: apt install mosquitto")
def test_retained_state_of_a_camera_that_left_is_ended(tmp_path, overlaid, wait_until):
    paho = pytest.importorskip("paho.mqtt.client")
    from overlays.sinks.mqtt.sink import MqttSink

    states = {}

    def keep(_client, _data, message):
        states[message.topic.split("/")[-2]] = json.loads(message.payload)

    with Broker(tmp_path, "allow_anonymous true") as broker:
        listener = paho.Client(paho.CallbackAPIVersion.VERSION2)
        listener.on_message = keep
        listener.connect("127.0.0.1", broker.port)
        listener.subscribe("+/+/state")
        with MqttSink(MqttSettings(uri=broker.uri), SinkContext(BOTH)) as sink:

            def serve():
                sink.idle()
                listener.loop(0.02)

            def is_state(camera, state):
                serve()
                return states.get(camera, {}).get("state") == state

            for camera in BOTH:
                sink.put(overlaid(camera=camera))
            wait_until(lambda: is_state("leaves", "live"))
            sink.forget_camera("leaves")
            wait_until(lambda: is_state("leaves", "ended"))
            assert states["leaves"]["reason"] == "removed from the run"
            assert states["stays"]["state"] == "live"
            sink.put(overlaid(camera="leaves", index=1))
            wait_until(lambda: is_state("leaves", "live"))
        listener.disconnect()

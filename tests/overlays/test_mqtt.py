"""Findings told to a real broker, mosquitto: it may come late, go, stand still, ask for a password, and speak TLS."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

paho = pytest.importorskip("paho.mqtt.client")

from overlays.events.feed import MAX_NOTICES  # noqa: E402
from overlays.events.query import EventFilter  # noqa: E402
from overlays.sinks.events import EventsSink  # noqa: E402
from overlays.sinks.mqtt import sink as mqtt_sink  # noqa: E402
from overlays.sinks.mqtt.events import EventTopics  # noqa: E402
from overlays.sinks.mqtt.messages import parse_broker  # noqa: E402
from overlays.sinks.mqtt.sink import MAX_WAITING, MqttSink  # noqa: E402
from overlays.sinks.settings import EventSettings, MqttSettings  # noqa: E402
from pipeline.errors import DataLossError, SinkError  # noqa: E402
from pipeline.loop import Pipeline  # noqa: E402
from pipeline.ports import Explainer, Sink  # noqa: E402
from pipeline.result import RunLimits, RunResult  # noqa: E402
from pipeline.settings import Secret, SinkContext  # noqa: E402
from pipeline.stats import RunStats  # noqa: E402
from tests.overlays.conftest import explain  # noqa: E402
from tests.support.broker import MOSQUITTO, Broker, free_port  # noqa: E402
from tests.support.certificates import make_certificate  # noqa: E402
from tests.support.events import Clock, shown  # noqa: E402
from tests.support.fakes import FakeSource  # noqa: E402
from tests.support.limits import LIMIT_SECONDS  # noqa: E402
from tests.support.mqtt import connected, open_sockets, telling  # noqa: E402
from tests.support.passages import part, with_passages  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="no MQTT broker: apt install mosquitto"),
    pytest.mark.usefixtures("quick_mqtt"),
]


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path, "allow_anonymous true") as running:
        yield running


class Listener:
    """Somebody else's program: hears everything."""

    def __init__(self, port):
        self.heard = []
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda _c, _d, result: self.heard.append((result.topic, result.payload, result.retain))
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.ready = threading.Event()
        self.port = port

    def __enter__(self):
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()
        assert self.ready.wait(LIMIT_SECONDS)
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()
        self.client.reinitialise()  # closes its sockets

    def told(self, end):
        return [payload for topic, payload, _ in self.heard if topic.endswith(end)]

    def indices(self):
        return [json.loads(payload)["index"] for payload in self.told("/finding")]


def test_sink_publishes_findings_camera_states_and_its_status(broker, overlaid, wait_until):
    with Listener(broker.port) as listener, telling(broker.uri) as sink:
        assert isinstance(sink, Sink)
        assert not sink.needs_image("line")
        connected(sink, wait_until)
        for index in range(5):
            sink.put(overlaid(index=index, label="scratch"))
        wait_until(lambda: sink.idle() or len(listener.told("/finding")) == 5)
        assert listener.indices() == [0, 1, 2, 3, 4]
        assert ("plant/status", b"online", False) in listener.heard
        wait_until(lambda: sink.idle() or listener.told("plant/line/state"))
        wait_until(lambda: sink.idle() or json.loads(listener.told("plant/line/state")[-1])["state"] == "live")
        topic, payload, _ = next(heard for heard in listener.heard if heard[0].endswith("finding"))
        assert topic == "plant/line/finding"
        record = json.loads(payload)
        assert (record["camera"], record["findings"][0]["label"]) == ("line", "scratch")
        assert len(payload) < 1500
        last = overlaid(index=5, label="scratch")
        with_parts = replace(last, explanation=with_passages(last.explanation, part(1), part(2, kind="crossing")))
        for _ in range(2):
            sink.put(with_parts)
        wait_until(lambda: sink.idle() or (listener.told("line/part") and listener.told("line/crossing")))
        assert [json.loads(payload)["sequence"] for payload in listener.told("line/part")] == [1]
        with Listener(broker.port) as late:
            wait_until(lambda: late.told("/status") and late.told("/state"))
            assert all(retained for *_, retained in late.heard)
            assert late.told("/status") == [b"online"]
    until_gone = Listener(broker.port)
    with until_gone as later:
        wait_until(lambda: later.told("/status") == [b"offline"])


def test_events_are_published_and_those_that_go_on_are_retained(broker, tmp_path, wait_until):
    clock = Clock()
    settings = EventSettings(uri=str(tmp_path / "events.sqlite"), gap_seconds=0.0)
    with Listener(broker.port) as listener:
        with EventsSink(settings, wall_clock=clock.wall, clock=clock) as events, telling(broker.uri) as sink:
            sink.on_run_start(RunResult(RunStats([]), [], [], (events, sink)))
            connected(sink, wait_until)
            wait_until(lambda: sink.idle() or listener.told("plant/line/open_events"))
            assert json.loads(listener.told("line/open_events")[0])["open"] == []
            events.put(shown(0.0, label="ok", inside=0.25))
            wait_until(lambda: sink.idle() or len(listener.told("line/open_events")) == 2)
            with Listener(broker.port) as late:
                wait_until(lambda: late.told("line/open_events"))
                held = json.loads(late.told("line/open_events")[0])
            assert (held["alarm"], held["open"][0]["rule"], held["status"]) == (True, "grounded", "plant/status")
            events.on_run_end()
        wait_until(lambda: not json.loads(listener.told("line/open_events")[-1])["alarm"])
        wait_until(lambda: len(listener.told("line/event")) == 2)
    assert [json.loads(told)["type"] for told in listener.told("line/event")] == ["event.started", "event.ended"]


def test_list_of_open_events_is_read_again_after_messages_were_lost(tmp_path):
    clock = Clock()
    settings = EventSettings(uri=str(tmp_path / "events.sqlite"), gap_seconds=0.0)
    with EventsSink(settings, wall_clock=clock.wall, clock=clock) as events:
        topics = EventTopics(events, parse_broker("mqtt://h/plant"), "plant/status")
        events.put(shown(0.0, label="ok", inside=0.25, camera="b"))
        record = events.reader.page(EventFilter()).events[0]
        events.feed.publish([], [("changed", record | {"camera": "a"})] * MAX_NOTICES)
        lost, messages = topics.take()
        assert (lost, len(messages)) == (1, MAX_NOTICES)
        lists = dict(topics.changed_lists(["c"]))
        assert {topic: json.loads(told)["alarm"] for topic, told in lists.items()} == {
            "plant/a/open_events": False, "plant/b/open_events": True, "plant/c/open_events": False,
        }  # fmt: skip
        assert (topics.take(), topics.changed_lists(["c"])) == ((0, []), [])


def test_runs_with_a_shared_topic_have_separate_status_topics(broker, overlaid, wait_until):
    with Listener(broker.port) as listener, telling(broker.uri) as east:
        with telling(broker.uri, status_topic="west") as west:
            connected(east, wait_until)
            connected(west, wait_until)
            west.put(overlaid(camera="line"))
            wait_until(
                lambda: (
                    west.idle() or [result for result in listener.told("plant/line/state") if b"plant/west" in result]
                )
            )
        wait_until(lambda: east.idle() or listener.told("plant/west")[-1:] == [b"offline"])
        assert listener.told("plant/status") == [b"online"]
        assert not east.problem


def test_label_change_is_published_at_once_and_the_rest_at_the_rate(broker, overlaid, wait_until):
    now = [0.0]
    sink = MqttSink(MqttSettings(uri=broker.uri, max_rate=1.0), clock=lambda: now[0])
    with Listener(broker.port) as listener, sink:
        connected(sink, wait_until)
        for index in range(100):
            now[0] = index / 30
            sink.put(overlaid(index=index, label="scratch" if 40 <= index < 45 else "ok", taken_at=now[0]))
        wait_until(lambda: sink.idle() or 45 in listener.indices())
        assert set(listener.indices()) >= {0, 40, 45}, "the first, and every change"
        assert len(listener.indices()) <= 6


def test_late_broker_receives_findings_kept_with_qos_1_only(tmp_path, overlaid, wait_until, caplog):
    late = Broker(tmp_path, "allow_anonymous true")
    with (
        telling(late.uri, qos=1) as careful,
        telling(late.uri.replace("plant", "other")) as careless,
    ):
        for index in range(MAX_WAITING + 10):
            for sink in (careful, careless):
                sink.put(overlaid(index=index))
        assert "Connection refused" in careful.problem
        assert careless.lost == MAX_WAITING + 10
        assert careful.lost == 10
        message = [r for r in caplog.records if "no connection to the broker" in r.getMessage()]
        assert len(message) == 2, "once each"
        with late, Listener(late.port) as listener:
            for sink in (careful, careless):
                connected(sink, wait_until)
            wait_until(lambda: careful.idle() or careless.idle() or len(listener.told("/finding")) == MAX_WAITING)
            assert listener.indices() == list(range(10, MAX_WAITING + 10))


def test_sink_reconnects_to_a_restarted_broker(tmp_path, overlaid, wait_until):
    path = Broker(tmp_path, "allow_anonymous true")
    with telling(path.uri, qos=1) as sink:
        with path, Listener(path.port) as listener:
            connected(sink, wait_until)
            sink.put(overlaid(index=1))
            wait_until(lambda: sink.idle() or listener.indices() == [1])
        wait_until(lambda: sink.idle() or sink.problem)
        sink.put(overlaid(index=2))
        with path, Listener(path.port) as listener:
            wait_until(lambda: sink.idle() or listener.indices() == [2])
            wait_until(lambda: sink.idle() or listener.told("/state"))
            assert listener.told("/status") == [b"online"]
    assert sink.lost == 0


KILLED = (
    "import sys, os, signal; sys.path.insert(0, 'tests/overlays'); from conftest import explain\n"
    "from overlays.sinks.mqtt.sink import MqttSink; from pipeline.frames import Overlay\n"
    "sink = MqttSink(sys.argv[1]).__enter__(); e = explain()\n"
    "while sink.problem: sink.put(Overlay(e.frame.image, e))\n"
    "print('there', flush=True); sys.stdin.read()"
)


def test_broker_publishes_the_will_of_a_killed_run(broker, wait_until):
    with Listener(broker.port) as listener:
        run = subprocess.Popen(
            [sys.executable, "-c", KILLED, broker.uri], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with run:
            assert run.stdout.readline() == b"there\n"
            wait_until(lambda: listener.told("/status") == [b"online"])
            run.kill()
        wait_until(lambda: listener.told("/status") == [b"online", b"offline"])


class Counting(Sink):
    uri, lossless = "counting", True

    def __init__(self):
        self.got = 0

    def put(self, overlay):
        self.got += 1


class Explaining(Explainer):
    def explain(self, frames):
        return [explain(f.image, camera=f.camera, index=f.index, taken_at=f.captured_at) for f in frames]


@pytest.mark.parametrize("there", ["listening", "silent", "gone"])
def test_leaving_closes_all_sockets(broker, wait_until, there):
    if there == "silent":
        broker.process.send_signal(signal.SIGSTOP)
    uri = broker.uri if there != "gone" else f"mqtt://127.0.0.1:{free_port()}/plant"
    gc.collect()
    gc.disable()
    try:
        before = open_sockets()
        with telling(uri) as sink:
            sink.idle()
            if there == "listening":
                connected(sink, wait_until)
            assert there == "gone" or open_sockets() != before
        assert open_sockets() == before
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while"])
def test_stalled_broker_blocks_no_frame_and_memory_is_bounded(broker, overlaid, wait_until, when):
    other = Counting()
    sink = MqttSink(MqttSettings.model_construct(uri=broker.uri, max_rate=1e9, qos=1))
    with pytest.raises(DataLossError, match=r"not every finding reached the broker.* lost"), sink:  # noqa: PT012
        if when == "while":
            connected(sink, wait_until)
        broker.process.send_signal(signal.SIGSTOP)
        sources = [(FakeSource(3000, "line"), "wait")]
        Pipeline(sources, Explaining(), None, [sink, other], limits=RunLimits(), stop=threading.Event()).run()
        assert other.got == 3000
        assert len(sink._queue) <= MAX_WAITING
        assert len(sink._connection._unconfirmed) <= 20


def test_password_is_sent_and_refusals_are_reported_without_it(tmp_path, overlaid, wait_until, caplog):
    keeper = shutil.which("mosquitto_passwd")
    if keeper is None:
        pytest.skip("needs mosquitto_passwd")
    book = tmp_path / "book"
    subprocess.run([keeper, "-b", "-c", str(book), "eve", "hunter2-hunter2"], check=True, capture_output=True)
    if os.geteuid() == 0:
        book.chmod(0o644)
    caplog.set_level(logging.DEBUG)
    with Broker(tmp_path, "allow_anonymous false", f"password_file {book}") as broker:
        for login in ("eve:wrong-wrong", None):
            with telling(broker.uri, login=login) as sink:
                wait_until(lambda sink=sink: sink.idle() or "refuses the connection" in sink.problem)
                assert "uthori" in sink.problem
        with telling(broker.uri, login="eve:hunter2-hunter2") as sink:
            connected(sink, wait_until)
            shown = f"{Secret('eve:hunter2-hunter2')} {sink.uri} {sink._settings}"
    assert "hunter2" not in caplog.text + shown
    assert "wrong-wrong" not in caplog.text


# paho lets go of a socket whose handshake fails without closing it; it is closed when it is forgotten, at once.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_requires_a_valid_broker_certificate(tmp_path, overlaid, wait_until):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate, alternative="IP:127.0.0.1")
    key.chmod(0o644)
    tmp_path.chmod(0o755)
    with Broker(tmp_path, "allow_anonymous true", f"certfile {certificate}", f"keyfile {key}") as broker:
        uri = broker.uri.replace("mqtt:", "mqtts:")
        with telling(uri) as sink:
            wait_until(lambda: sink.idle() or "certificate" in sink.problem)
        with telling(uri, ca_file=str(certificate)) as sink:
            connected(sink, wait_until)
    with pytest.raises(SinkError, match=r"ca_file .*cannot be read"):
        MqttSink(MqttSettings(uri="mqtts://host/t", ca_file=str(tmp_path / "none")))
    with pytest.raises(SinkError, match=r"ca_file .*write mqtts://"):
        MqttSink(MqttSettings(uri="mqtt://host/t", ca_file=str(certificate)))


def test_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(SinkError, match="--mqtt-credentials") as refused:
        MqttSink("mqtt://me:secret@host/t")
    assert "secret" not in str(refused.value)


def test_cameras_with_equal_topics_are_refused():
    with pytest.raises(SinkError, match="'a/b' and 'a_b' would share the topic 't/a_b/finding'; rename one of them"):
        MqttSink("mqtt://host/t", SinkContext(cameras=("a/b", "a_b")))


def test_problem_is_reported_while_connecting():
    deaf = socket.create_server(("127.0.0.1", 0))
    with deaf, telling(f"mqtt://127.0.0.1:{deaf.getsockname()[1]}/t") as sink:
        sink.idle()
        assert "the connection is being made" in sink.problem


def test_findings_of_a_folder_are_all_published_at_any_speed(broker, overlaid, wait_until):
    with Listener(broker.port) as listener:
        sink = MqttSink(broker.uri, SinkContext(cameras=("parts",)))
        with sink:
            for index in range(60):  # long before the broker has answered
                sink.put(overlaid(camera="parts", index=index, source_name=f"{index}.jpg"))
        wait_until(lambda: len(listener.told("/finding")) == 60)
        # Brokers keep the order of messages of one QoS; the first findings have QoS 1, until one is accepted.
        published = sorted(json.loads(result)["source"] for result in listener.told("/finding"))
        assert published == sorted(f"{k}.jpg" for k in range(60))
    assert sink.account == "60 findings accepted by the broker, 0 lost"


def test_findings_of_a_file_beyond_the_queue_are_all_published(broker, overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(mqtt_sink, "MAX_WAITING", 20)
    monkeypatch.setattr(mqtt_sink, "_STALL_SECONDS", 30.0)
    with Listener(broker.port) as listener:
        with MqttSink(broker.uri, SinkContext(cameras=("film",))) as sink:
            for index in range(300):
                sink.put(overlaid(camera="film", index=index, source_name="film.mp4"))
        wait_until(lambda: len(listener.told("/finding")) == 300)
        assert sorted(listener.indices()) == list(range(300))  # brokers keep the order of one QoS only


def test_findings_skipped_by_the_rate_are_counted_as_skipped(broker, overlaid, wait_until):
    now = [0.0]
    sink = MqttSink(MqttSettings(uri=broker.uri, max_rate=1.0), clock=lambda: now[0])
    with sink:
        connected(sink, wait_until)
        for index in range(30):
            now[0] = index / 10
            sink.put(overlaid(index=index, taken_at=now[0], source_name="film.mp4"))
        wait_until(lambda: sink.idle() or not sink._connection._unconfirmed)
        assert sink.account == "3 findings accepted by the broker, 27 left out by the rate of 1 per second, 0 lost"
        assert {"mqtt_left_out": 27.0}.items() <= {metric.name: metric.value for metric in sink.metrics()}.items()


@pytest.mark.parametrize("qos", [0, 1])
def test_findings_refused_by_the_broker_are_counted_logged_and_an_error(tmp_path, overlaid, wait_until, caplog, qos):
    access = tmp_path / "access"
    access.write_text("topic write plant/status\ntopic write plant/line/state\ntopic write plant/good/#\n")
    access.chmod(0o644)
    tmp_path.chmod(0o755)
    with Broker(tmp_path, "allow_anonymous true", f"acl_file {access}") as path:
        settings = MqttSettings.model_construct(uri=path.uri, max_rate=1e9, qos=qos)
        sink = MqttSink(settings, SinkContext(cameras=("line", "good")))
        with pytest.raises(DataLossError, match="14 refused by the broker"), sink:  # noqa: PT012 - it is raised on leaving
            connected(sink, wait_until)
            for index in range(14):
                sink.put(overlaid(index=index))
            wait_until(lambda: sink.idle() or sink._counts.refused == 14)
            assert "refuses findings (Not authorized, under plant/line/finding); 14 so far" in sink.problem
            sink.put(overlaid(camera="good"))
            wait_until(lambda: sink.idle() or not sink.problem)
        assert (sink._counts.published, sink.lost) == (15, 0)
    assert len([r for r in caplog.records if "refuses messages" in r.getMessage()]) == 1


def test_account_at_the_end_of_a_run_contains_the_last_refusals(tmp_path, overlaid, wait_until):
    access = tmp_path / "access"
    access.write_text("topic write plant/status\n")
    access.chmod(0o644)
    tmp_path.chmod(0o755)
    with Broker(tmp_path, "allow_anonymous true", f"acl_file {access}") as place:
        sink = MqttSink(MqttSettings.model_construct(uri=place.uri, max_rate=1e9), SinkContext(cameras=("line",)))
        with pytest.raises(DataLossError), sink:  # noqa: PT012 - it is raised on leaving
            connected(sink, wait_until)
            for index in range(10):
                sink.put(overlaid(index=index))
            sink.on_run_end()
            assert "0 findings accepted by the broker, 10 refused by the broker" in sink.account

"""Messages of the MQTT sink, received from a real broker: findings, states, events, and accounts of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("paho.mqtt.client")

from overlays.events.feed import MAX_NOTICES
from overlays.events.query import EventFilter
from overlays.sinks.events import EventsSink
from overlays.sinks.mqtt import sink as mqtt_sink
from overlays.sinks.mqtt.events import EventTopics
from overlays.sinks.mqtt.messages import parse_broker
from overlays.sinks.mqtt.sink import MqttSink
from overlays.sinks.settings import EventSettings, MqttSettings
from pipeline.errors import DataLossError, SinkError
from pipeline.ports import Sink
from pipeline.result import RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.support.broker import MOSQUITTO, Broker
from tests.support.events import Clock, shown
from tests.support.mqtt import Listener, connected, telling
from tests.support.passages import part, with_passages

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="no MQTT broker: apt install mosquitto"),
    pytest.mark.usefixtures("quick_mqtt"),
]


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
        topics = EventTopics(events, parse_broker("mqtt://h/plant"), "plant/status", "mqtt://h/plant")
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


def test_cameras_with_equal_topics_are_refused():
    with pytest.raises(SinkError, match="'a/b' and 'a_b' would share the topic 't/a_b/finding'; rename one of them"):
        MqttSink("mqtt://host/t", SinkContext(cameras=("a/b", "a_b")))


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

"""Messages to a broker: addresses, topics, payloads."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlays.sinks.mqtt.counters import FindingQueue, MqttCounts, QueuedFinding
from overlays.sinks.mqtt.messages import (
    MAX_FINDINGS,
    colliding_cameras,
    finding_message,
    parse_broker,
    passage_message,
    topic_level,
)
from pipeline.frames import Box
from pipeline.trial import Trial
from tests.overlays.conftest import explain
from tests.support.boxes import box, explained_boxes, hot_cell, street
from tests.support.detections import detection, detection_frame, detections
from tests.support.passages import BOX, part, with_passages


@pytest.mark.parametrize(
    ("uri", "broker"),
    [
        ("mqtt://10.0.0.3", ("10.0.0.3", 1883, False, "recipro-stream")),
        ("mqtt://broker:1884/", ("broker", 1884, False, "recipro-stream")),
        ("mqtts://broker.example/plant/hall 3", ("broker.example", 8883, True, "plant/hall 3")),
        ("MQTT://[::1]:5/a", ("::1", 5, False, "a")),
    ],
)
def test_address_is_parsed(uri, broker):
    assert parse_broker(uri) == broker


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mqtt://", "mqtt://host:port/topic"),
        ("mqtt://host:0/t", "from 1 to 65535"),
        ("mqtt://host:70000/t", "from 1 to 65535"),
        ("mqtt://host/a/+/b", "should not contain \\+"),
        ("mqtt://host/a//b", "or an empty level"),
        ("mqtt://host/" + "a" * 60_001, "at most 60000 bytes"),
        ("mqtt://host/t?password=secret", "as keys beside uri in the configuration"),
        ("mqtt://me:secret@host/t", "--mqtt-credentials FILE"),
    ],
)
def test_invalid_address_is_refused_with_the_remedy_and_without_its_password(uri, message):
    with pytest.raises(ValueError, match=message) as refused:
        parse_broker(uri)
    assert "secret" not in str(refused.value)


@given(st.text())
def test_camera_name_is_one_topic_level(camera):
    assert topic_level(camera)
    assert not set("+#/\x00") & set(topic_level(camera))
    assert parse_broker("mqtt://h/t").finding(camera).count("/") == 2


def test_cameras_with_equal_topics_are_found():
    assert colliding_cameras(["a/b", "gate", "a_b"]) == ("a/b", "a_b")
    assert colliding_cameras(["a/b", "gate", "ab"]) is None


def test_finding_is_published_without_heat_but_with_its_peak():
    heat = np.zeros((3, 4), np.float32)
    heat[1, 2] = 1.0
    record = json.loads(
        finding_message(explain(heat=heat, region=Box(0, 0, 64, 48)), sent_at_unix=1e9, now_monotonic=1.0)
    )
    [finding] = record["findings"]
    assert finding == {"label": "bottle", "class_index": 3, "score": 0.875, "box": None, "peak": [40.0, 24.0]}
    assert (record["version"], record["camera"], record["model"]) == (1, "line", "resnet50")
    flat = explain(heat=np.zeros((3, 4), np.float32))
    assert json.loads(finding_message(flat, sent_at_unix=0.0, now_monotonic=0.0))["findings"][0]["peak"] is None


def published(explanation):
    return json.loads(finding_message(explanation, sent_at_unix=1e9, now_monotonic=1.0))


def test_box_is_published_with_its_track_and_the_peak_and_key_figures_of_its_map():
    region = Box(100, 50, 260, 140)
    drop = box(
        200, 100, track=7, heat=hot_cell(2, 4), mode="drop", region=region, scale=0.3, against=hot_cell(0, 0),
        lowest_score=0.5, index=3, age_seconds=0.2,
    )  # fmt: skip
    bare = box(10, 20, track=8)
    first, second = published(explained_boxes(drop, bare))["findings"]
    assert first == {
        "label": "car", "class_index": 2, "score": 0.8, "box": [200, 100, 260, 140], "track": 7, "peak": [145.0, 75.0],
        "map": {"mode": "drop", "cut": "complete", "scale": 0.3, "lowest_score": 0.5, "index": 3, "age_seconds": 0.2},
    }  # fmt: skip
    assert (second["track"], second["peak"], second.get("map")) == (8, None, None)
    assert published(explained_boxes())["findings"] == []


def test_message_has_at_most_a_hundred_findings_of_the_highest_scores():
    explanation = street(300, grid=(45, 80))
    message = published(explanation)
    scores = sorted((finding.score for finding in explanation.findings), reverse=True)
    assert [finding["score"] for finding in message["findings"]] == scores[:MAX_FINDINGS]
    assert message["omitted"] == 300 - MAX_FINDINGS
    assert len(finding_message(explanation, sent_at_unix=1e9, now_monotonic=1.0)) < 48_000
    assert "omitted" not in published(street(MAX_FINDINGS))


def test_part_is_published_with_its_verdict_under_its_kind():
    broker = parse_broker("mqtt://127.0.0.1/hall")
    assert broker.passage("a/b", "part") == "hall/a_b/part"
    message = json.loads(passage_message(part(3, label="dent", is_ok=False), sent_at_unix=100.0, now_monotonic=2.0))
    assert (message["camera"], message["place"], message["number"]) == ("road", "station", 3)
    assert (message["label"], message["is_ok"], message["last_seen_at_unix"]) == ("dent", False, 99.5)


def test_findings_are_published_without_parts_and_with_the_best_of_a_network_on_trial():
    trial = Trial("new", tuple(detection(BOX, score=k / 200) for k in range(150)), "adds 2 car")
    explained = replace(with_passages(detections(detection_frame(0)), part()), trial=trial)
    message = json.loads(finding_message(explained, sent_at_unix=0.0, now_monotonic=0.0))
    assert "passages" not in message
    assert len(message["trial"]["findings"]) == MAX_FINDINGS
    assert message["trial"]["findings"][0]["score"] == 149 / 200


def test_part_waits_for_a_broker_and_findings_of_cameras_do_not():
    counts = MqttCounts()
    queue = FindingQueue(counts)
    queue.add(QueuedFinding("finding", b"", is_file=False))
    queue.add(QueuedFinding("part", b"", is_file=False, is_passage=True))
    queue.trim(10, keep_live=False)
    assert [queue.take().topic for _ in range(len(queue))] == ["part"]
    assert (counts.lost, counts.lost_of_files, queue.holds_files) == (1, 0, False)

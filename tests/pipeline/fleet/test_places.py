"""Where a fleet publishes its cameras, read from the director's state."""

import pytest

from pipeline.fleet.places import (
    fleet_metrics,
    metrics_targets,
    places,
    reachable_address,
    stream_addresses,
)
from tests.support.fleet_state import PAGE, STREAM, state


@pytest.mark.parametrize(
    ("uri", "reached"),
    [
        ("tcp://0.0.0.0:5555", "tcp://10.0.0.5:5555"),
        ("tcp://*:5555", "tcp://10.0.0.5:5555"),
        ("http://[::]:8000", "http://10.0.0.5:8000"),
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
        ("tcp://hall:5555", "tcp://hall:5555"),
        ("ipc:///tmp/x", "ipc:///tmp/x"),
        ("clips/", "clips/"),
    ],
)
def test_sink_on_all_interfaces_is_reached_at_the_address_of_its_node(uri, reached):
    assert reachable_address(uri, "10.0.0.5") == reached


def test_ipv6_address_of_a_node_is_bracketed():
    assert reachable_address("tcp://[::]:5555", "fd00::5") == "tcp://[fd00::5]:5555"


def test_place_of_a_held_camera_is_the_stream_of_its_worker():
    found = places(state(PAGE, STREAM, "clips/"))["north"]
    assert (found.node, found.address, found.reason) == ("a", STREAM, "")
    assert found.epoch > 0


def test_place_names_the_reason_that_no_frame_can_be_received():
    late, none = places(state(STREAM, now=2.0))["north"], places(state(PAGE))["north"]
    full = places(state(STREAM, cameras=("north", "south"), capacity=13.0))
    assert "node a has the camera, but has not reported for 2 s" in late.reason
    assert "publishes no stream" in none.reason
    assert "beyond capacity" in full["south"].reason


def test_addresses_of_streams_and_targets_of_prometheus_come_from_the_live_workers():
    made = state("log.jsonl", STREAM, PAGE)
    assert stream_addresses(made) == {STREAM}
    assert metrics_targets(made) == [
        {"targets": ["10.0.0.5:8000"], "labels": {"node": "a", "device": "cuda:0", "fleet_worker": "a/cuda:0-0"}}
    ]
    assert metrics_targets(state(STREAM)) == []


def test_metrics_count_the_cameras_of_the_fleet_and_of_each_worker():
    samples = {
        (each.name, each.labels): each.value for each in fleet_metrics(state(STREAM, cameras=("north", "south")))
    }
    assert samples["fleet_cameras", (("state", "held"),)] == 2
    assert samples["fleet_cameras", (("state", "waiting"),)] == 0
    assert samples["fleet_worker_load", (("node", "a"), ("fleet_worker", "a/cuda:0-0"))] == 20.0

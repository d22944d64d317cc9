"""The cameras of a fleet in one run: they are received from whichever worker publishes them."""

import threading
import time
from dataclasses import replace

import pytest

from overlays.wire.followed import FollowedCamera, FollowedStreams
from overlays.wire.message import decode_message, encode
from overlays.wire.viewer import ReceivedFrame
from pipeline.errors import SourceError, WireVersionError
from pipeline.fleet.places import Place
from tests.support.limits import LIMIT_SECONDS


class FakeViewer:
    """Gives the messages that are put into it."""

    def __init__(self, uri, opened):
        self.uri, self.problem, self.opened = uri, "", opened
        self.waiting, self.error = [], None

    def __enter__(self):
        self.opened[self.uri] = self
        return self

    def __exit__(self, *_):
        del self.opened[self.uri]

    def messages(self, stop):
        while not stop.wait(0.005):
            if self.error is not None:
                raise self.error
            while self.waiting:
                yield self.waiting.pop(0)


@pytest.fixture
def opened():
    """The open viewers by address."""
    return {}


@pytest.fixture
def streams(opened):
    def connect(address):
        if "unknown" in address:
            raise SourceError(f"{address}: the host is unknown")
        return FakeViewer(address, opened)

    with FollowedStreams(connect, clock=lambda: 0.0) as made:
        yield made


@pytest.fixture
def received(overlaid):
    def make(camera="north", epoch=1, index=0):
        overlay = overlaid(camera=camera, index=index)
        frame = replace(overlay.explanation.frame, epoch=epoch)
        overlay = replace(overlay, explanation=replace(overlay.explanation, frame=frame))
        header, jpeg = decode_message(encode(overlay, sent_at_unix=time.time(), now_monotonic=time.monotonic()))
        return ReceivedFrame(header, jpeg, received_at_unix=time.time())

    return make


def next_frame(camera: FollowedCamera):
    return next(camera.frames(threading.Event()))


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_camera_that_moves_is_received_from_its_new_worker_though_its_place_is_not_known_yet(streams, opened, received):
    streams.follow({"north": Place("a", "tcp://a:1", 1)}, ["tcp://a:1", "tcp://b:1"])
    [camera] = streams.take()
    opened["tcp://a:1"].waiting.append(received(epoch=1, index=5))
    assert next_frame(camera).epoch == 1
    opened["tcp://b:1"].waiting.append(received(epoch=2, index=90))
    assert next_frame(camera).index == 90
    assert camera.health.missed == 0  # another worker counts from any number


def test_frames_of_a_worker_that_lost_its_camera_are_dropped(streams, opened, received):
    streams.follow({"north": Place("b", "tcp://b:1", 2)}, ["tcp://a:1", "tcp://b:1"])
    [camera] = streams.take()
    camera.offer(received(epoch=2))
    opened["tcp://a:1"].waiting.append(received(epoch=1))
    wait_until(lambda: camera.superseded)
    assert next_frame(camera).epoch == 2


def test_addresses_are_connected_and_left_as_the_fleet_changes(streams, opened):
    streams.follow({}, ["tcp://a:1", "tcp://b:1"])
    assert set(opened) == {"tcp://a:1", "tcp://b:1"}
    kept = opened["tcp://b:1"]
    streams.follow({}, ["tcp://b:1", "tcp://c:1"])
    assert set(opened) == {"tcp://b:1", "tcp://c:1"}
    assert opened["tcp://b:1"] is kept


def test_cameras_join_leave_and_join_again_once_they_have_left(streams):
    place = Place("a", "tcp://a:1", 1)
    streams.follow({"north": place, "south": place}, [])
    assert sorted(camera.camera for camera in streams.take()) == ["north", "south"]
    streams.follow({"north": place}, [])
    assert streams.take_removed() == ["south"]
    streams.follow({"north": place, "south": place}, [])
    assert streams.take() == []  # its last frames are still in progress
    streams.on_removed(FollowedCamera("south", str))
    streams.follow({"north": place, "south": place}, [])
    assert [camera.camera for camera in streams.take()] == ["south"]


def test_camera_that_leaves_before_the_run_took_it_is_not_removed_from_the_run(streams):
    streams.follow({"north": Place()}, [])
    streams.follow({}, [])
    assert (streams.take(), streams.take_removed()) == ([], [])


def test_problem_of_a_camera_is_the_reason_of_the_fleet_or_the_stream_or_a_missing_frame(streams, opened, received):
    addresses = ["tcp://a:1", "tcp://b:1", "tcp://unknown:1"]
    streams.follow({
        "full": Place(reason="beyond capacity"), "lost": Place("u", "tcp://unknown:1", 1),
        "refused": Place("b", "tcp://b:1", 1), "silent": Place("a", "tcp://a:1", 1),
    }, addresses)  # fmt: skip
    opened["tcp://b:1"].problem = "the server does not know this viewer's key"
    cameras = {camera.camera: camera for camera in streams.take()}
    assert cameras["full"].problem == "beyond capacity"
    assert cameras["lost"].problem == "node u, which has it: tcp://unknown:1: the host is unknown"
    assert cameras["refused"].problem.endswith("the server does not know this viewer's key")
    assert "node a has it and has sent no frame yet" in cameras["silent"].problem
    cameras["silent"].offer(received("silent"))
    assert cameras["silent"].problem == ""


def test_node_of_a_newer_version_ends_its_stream_alone(streams, opened, received):
    place = Place("a", "tcp://a:1", 1)
    streams.follow({"north": place, "south": replace(place, address="tcp://b:1")}, ["tcp://a:1", "tcp://b:1"])
    cameras = {camera.camera: camera for camera in streams.take()}
    opened["tcp://a:1"].error = WireVersionError("a newer version is needed")
    wait_until(lambda: "a newer version" in cameras["north"].problem)
    opened["tcp://b:1"].waiting.append(received("south"))
    assert next_frame(cameras["south"]).camera == "south"

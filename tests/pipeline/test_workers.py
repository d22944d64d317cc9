"""Pumps and relays: nothing waits for ever, nothing is lost that should not be, every drop is counted."""

import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from pipeline.drops import DropReason
from pipeline.errors import SinkError, SourceError
from pipeline.frames import Frame
from pipeline.ports import Health, StopRequested
from pipeline.workers.batches import iter_batches
from pipeline.workers.queue import QueueWorker
from pipeline.workers.source import SourceWorker
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS


def wait_until(true, seconds=LIMIT_SECONDS):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_waiting_keeps_every_frame_in_order():
    with SourceWorker(FakeSource(50), depth=2, overflow="wait") as pump:
        assert [frame.index for frame in pump] == list(range(50))
    assert pump.counts.dropped() == 0


def test_dropping_the_oldest_keeps_the_newest_and_counts_the_rest():
    with SourceWorker(FakeSource(50), depth=3, overflow="drop-oldest") as pump:
        wait_until(lambda: pump.ended)
        kept = [frame.index for frame in pump]
    assert kept == [47, 48, 49]
    assert (pump.received, pump.counts.drops()) == (50, {DropReason.QUEUE_FULL: 47})


def test_leaving_early_frees_a_producer_that_waits_for_room():
    source = FakeSource(1000)
    with SourceWorker(source, depth=1, overflow="wait") as pump:
        wait_until(lambda: source.given == 2)
    assert not pump._thread.is_alive()


def test_an_error_comes_after_every_good_frame():
    with SourceWorker(FakeSource(3, fails=SourceError("broke")), depth=8, overflow="wait") as pump:
        assert len(list(pump)) == 3
    assert str(pump.error) == "broke"


def batches(sources, limit, window=0.0, overflow="wait", stop=None):
    bell = threading.Condition()
    stop = stop or threading.Event()
    pumps = [SourceWorker(source, depth=2, overflow=overflow, condition=bell) for source in sources]
    for pump in pumps:
        pump.__enter__()
    try:
        yield from iter_batches(pumps, bell, stop.is_set, limit=limit, window_seconds=window)
    finally:
        for pump in pumps:
            pump.__exit__(None, None, None)


def test_a_batch_holds_a_frame_of_each_camera_that_has_one():
    got = list(batches([FakeSource(20, "a"), FakeSource(20, "b")], limit=2, window=1.0))
    assert all({frame.camera for frame in batch} == {"a", "b"} for batch in got[:19])
    assert sum(map(len, got)) == 40


def test_a_silent_camera_delays_nobody():
    silent = FakeSource(20, "silent", gate=threading.Event())
    got = batches([FakeSource(20, "a"), silent], limit=2, window=0.01)
    seen = []
    while len(seen) < 20:
        seen += next(got)
    got.close()
    assert [(frame.camera, frame.index) for frame in seen] == [("a", k) for k in range(20)]


def test_a_dead_camera_ends_only_itself():
    dead = FakeSource(0, "dead", fails=SourceError("gone"))
    assert sum(map(len, batches([FakeSource(20, "a"), dead], limit=2))) == 20


def test_nobody_is_served_twice_while_another_waits():
    bell = threading.Condition()
    with ExitStack() as stack:
        pumps = [stack.enter_context(SourceWorker(FakeSource(30, name), depth=30, condition=bell)) for name in "abc"]
        wait_until(lambda: all(pump.ended for pump in pumps))
        cameras = [batch[0].camera for batch in iter_batches(pumps, bell, lambda: False, limit=1)]
    assert cameras == ["a", "b", "c"] * 30


def test_stopping_ends_the_batches_though_no_camera_gives_anything():
    stop = threading.Event()
    silent = FakeSource(20, "silent", gate=threading.Event())
    threading.Timer(0.05, stop.set).start()
    assert list(batches([silent], limit=1, stop=stop)) == []


def test_a_deadline_ends_the_batches_though_no_camera_gives_anything():
    bell = threading.Condition()
    with SourceWorker(FakeSource(20, gate=threading.Event()), condition=bell) as pump:
        assert list(iter_batches([pump], bell, lambda: False, limit=1, deadline=time.monotonic() + 0.05)) == []


def test_a_relay_delivers_everything_in_order_before_it_is_left():
    got = []
    with QueueWorker("slow", lambda item: (time.sleep(0.001), got.append(item)), depth=2) as relay:
        for k in range(30):
            relay.put(k, "wait")
    assert got == list(range(30))
    assert (relay.delivered, relay.dropped) == (30, 0)


def test_a_slow_relay_drops_the_oldest_and_holds_nobody_up():
    gate = threading.Event()
    got = []
    with QueueWorker("stuck", lambda item: (gate.wait(LIMIT_SECONDS), got.append(item)), depth=2) as relay:
        relay.put(0)
        wait_until(lambda: not relay._queue)
        for k in range(1, 10):
            relay.put(k)
        gate.set()
    assert got == [0, 8, 9]
    assert (relay.delivered, relay.dropped) == (3, 7)


def test_a_broken_relay_frees_whoever_waits_for_room_and_keeps_the_reason():
    def fail(_item):
        raise SinkError("disk full")

    with QueueWorker("disk", fail, depth=1) as relay:
        for k in range(20):
            relay.put(k, "wait")
        wait_until(lambda: relay.failed)
    assert str(relay.error) == "disk full"
    assert relay.delivered == 0


def test_a_closed_window_asks_for_the_end_and_is_no_error():
    def close(_item):
        raise StopRequested

    with QueueWorker("window", close) as relay:
        relay.put(1)
        wait_until(relay.stop_requested.is_set)
    assert relay.error is None


def test_an_exception_in_the_block_abandons_what_waits():
    gate = threading.Event()
    got = []
    relay = QueueWorker("slow", lambda item: (gate.wait(LIMIT_SECONDS), got.append(item)), depth=8)
    with pytest.raises(RuntimeError), relay:  # noqa: PT012 - what happens before the error is the point
        for k in range(5):
            relay.put(k)
        wait_until(lambda: len(relay._queue) == 4)
        threading.Timer(0.05, gate.set).start()
        raise RuntimeError
    assert got == [0]
    assert relay.dropped == 4


def test_a_door_is_asked_now_and_then_while_nothing_comes():
    asked = threading.Event()
    with QueueWorker("window", lambda _item: None, idle=asked.set):
        assert asked.wait(LIMIT_SECONDS)


def test_a_window_closed_while_nothing_comes_asks_for_the_end():
    def close():
        raise StopRequested

    with QueueWorker("window", lambda _item: None, idle=close) as relay:
        wait_until(relay.stop_requested.is_set)
    assert relay.error is None


class Aged(FakeSource):
    """Gives frames that were taken long ago, but for the last one."""

    live = True

    def frames(self, stop):
        for k in range(self.count):
            age = 0.0 if k == self.count - 1 else 60.0
            yield Frame(np.zeros((2, 2, 3), np.uint8), self.camera, k, time.monotonic() - age)


def test_what_is_too_old_to_be_worth_showing_is_dropped_and_counted():
    with SourceWorker(Aged(4), depth=8, max_age_seconds=30.0) as pump:
        assert [frame.index for frame in pump] == [3]
    assert (pump.received, pump.counts.drops()) == (4, {DropReason.EXPIRED_BEFORE_ENGINE: 3})


def test_a_file_loses_nothing_however_long_it_waits():
    source = Aged(4)
    source.live = False
    with SourceWorker(source, depth=2, overflow="wait", max_age_seconds=30.0) as pump:
        assert [frame.index for frame in pump] == [0, 1, 2, 3]
    assert pump.counts.dropped() == 0


def test_what_waits_is_bounded_in_bytes_too_but_one_item_always_may():
    gate, delivered = threading.Event(), []

    def deliver(item):
        gate.wait(LIMIT_SECONDS)
        delivered.append(item)

    with QueueWorker("disk", deliver, depth=16, size_of=lambda item: item, max_bytes=100) as relay:
        relay.put(1)
        wait_until(lambda: not relay._queue)  # taken: the door is busy with it
        for item in (60, 40, 70, 500):
            relay.put(item)
        gate.set()
    assert delivered == [1, 500]
    assert relay.dropped == 3


def crowd(pump, *indices):
    pump._queue.extend(Frame(np.zeros((2, 2, 3), np.uint8), "door", k, time.monotonic()) for k in indices)
    for _ in indices:
        pump.counts.count_received(pump.camera)


def test_one_hiccup_costs_no_frame_but_who_stays_behind_gets_the_newest():
    pump = SourceWorker(FakeSource(), depth=3)
    crowd(pump, 0, 1)
    assert [pump.pop().index, pump.pop().index] == [0, 1]
    assert pump.counts.dropped() == 0
    crowd(pump, 2, 3)
    assert pump.pop().index == 2
    crowd(pump, 4, 5)
    assert pump.pop().index == 5
    assert pump.counts.drops() == {DropReason.SUPERSEDED: 2}


def test_who_waits_for_its_reader_is_never_passed_over():
    pump = SourceWorker(FakeSource(), depth=3, overflow="wait")
    crowd(pump, 0, 1, 2)
    assert [pump.pop().index for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(("state", "left"), [("connecting", True), ("live", False)])
def test_only_a_camera_that_is_being_connected_is_left_to_end_by_itself(monkeypatch, state, left):
    monkeypatch.setattr("pipeline.workers.source.CONNECTING_SECONDS", 0.05)
    answered, asked = threading.Event(), threading.Event()

    class Camera(FakeSource):
        live = True

        def frames(self, stop):
            asked.set()
            answered.wait(0.5 if state == "live" else 20)  # cannot be woken
            return iter(())

    camera = Camera()
    camera.health = Health(state)
    with SourceWorker(camera) as pump:
        assert asked.wait(LIMIT_SECONDS)
    assert pump._thread.is_alive() is left
    answered.set()
    pump._thread.join()

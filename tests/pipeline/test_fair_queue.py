"""The fair queue: each camera has its own room and its share of the time."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fair_queue import MAX_KEYS, FairQueue
from pipeline.workers.queue import QueueWorker
from tests.support.limits import LIMIT_SECONDS


def queue(depth=4, **limits):
    return FairQueue(depth, key=lambda item: item[0], **limits)


def put(waiting, item):
    dropped = 0
    while not waiting.has_room(item):
        waiting.drop_oldest(item)
        dropped += 1
    waiting.add(item)
    return dropped


def test_fair_queue_drops_only_items_of_the_same_camera():
    waiting = queue(depth=2)
    put(waiting, ("small", 0))
    assert sum(put(waiting, ("big", k)) for k in range(100)) == 98
    assert {waiting.take() for _ in range(3)} == {("small", 0), ("big", 98), ("big", 99)}
    assert waiting.take() is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=60))
def test_fair_queue_keeps_the_order_of_a_camera(items):
    waiting = queue(depth=100)
    for item in items:
        put(waiting, item)
    order = [waiting.take() for _ in items]
    for camera in "abc":
        assert [item for item in order if item[0] == camera] == [item for item in items if item[0] == camera]


def test_fair_queue_gives_slow_items_no_more_time_than_others():
    """A big picture takes 1 s, a small one 0.01 s; one of each comes every 0.1 s."""
    waiting, now, came, done, dropped = queue(depth=16), 0.0, 0, {"big": 0, "small": 0}, 0
    while now < 60.0:
        while came <= now * 10:
            put(waiting, ("big", came))
            dropped += put(waiting, ("small", came))
            came += 1
        item = waiting.take()
        passed = 0.1 if item is None else {"big": 1.0, "small": 0.01}[item[0]]
        now += passed
        if item is not None:
            done[item[0]] += 1
            waiting.used(item, passed)
    assert dropped == 0
    assert done["small"] >= 590
    assert done["big"] >= 40, "the rest of the time is its own"


def test_fair_queue_credits_no_unused_time():
    waiting = queue(depth=100)
    put(waiting, ("quiet", 0))
    waiting.used(waiting.take(), 0.01)
    for k in range(50):
        put(waiting, ("busy", k))
    for _ in range(20):
        waiting.used(waiting.take(), 1.0)
    for k in range(20):
        put(waiting, ("quiet", k))
    served = []
    for _ in range(10):
        item = waiting.take()
        served.append(item[0])
        waiting.used(item, 1.0)
    assert 4 <= served.count("busy") <= 6


def test_fair_queue_divides_the_byte_limit_and_keeps_one_item_of_each_camera():
    waiting = FairQueue(16, key=lambda item: item[0], size_of=lambda item: item[1], max_bytes=100)
    for camera in "ab":
        put(waiting, (camera, 30))
    assert not waiting.has_room(("a", 30))
    assert waiting.has_room(("a", 10))
    put(waiting, ("c", 1000))
    assert len(waiting) == 3


def test_fair_queue_limits_the_number_of_cameras():
    waiting = queue(depth=2)
    for k in range(2 * MAX_KEYS):
        put(waiting, (f"camera {k}", k))
    assert len(waiting) == MAX_KEYS + 2


@pytest.mark.parametrize("cameras", [64, 65, 96, 500])
def test_fair_queue_keeps_a_burst_of_one_item_from_each_camera(cameras):
    waiting = queue(depth=2)
    assert sum(put(waiting, (f"camera {k}", burst)) for burst in range(2) for k in range(cameras)) == 0
    assert len([waiting.take() for _ in range(2 * cameras)]) == 2 * cameras
    assert not waiting


def test_queue_worker_handles_cameras_in_turn():
    served, gate, last = [], threading.Event(), threading.Event()

    def deliver(item):
        assert gate.wait(LIMIT_SECONDS)
        served.append(item)
        if len(served) == 8:
            last.set()

    with QueueWorker("door", deliver, depth=8, key=lambda item: item[0]) as queue_worker:
        for k in range(6):
            queue_worker.put(("big", k))
        queue_worker.put(("small", 0))
        queue_worker.put(("small", 1))
        gate.set()
        assert last.wait(LIMIT_SECONDS)
    assert served.index(("small", 0)) < served.index(("big", 5))

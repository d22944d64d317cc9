"""Workers: every wait ends, lossless sinks lose no frame, and every drop is counted."""

import math
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from pipeline.drops import DropReason
from pipeline.errors import SinkError, SourceError
from pipeline.frames import Frame
from pipeline.ports import Health, StopRequested
from pipeline.workers.batches import _wait_for_frames, _wait_for_more, iter_batches
from pipeline.workers.queue import QueueWorker
from pipeline.workers.source import Arrivals, SourceWorker
from pipeline.workers.thread import Wakeup
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS


def wait_until(true, seconds=LIMIT_SECONDS):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_source_worker_that_waits_keeps_every_frame_in_order():
    with SourceWorker(FakeSource(50), depth=2, overflow="wait") as worker:
        assert [frame.index for frame in worker] == list(range(50))
    assert worker.counts.dropped() == 0


def test_source_worker_that_drops_keeps_the_newest_frames():
    with SourceWorker(FakeSource(50), depth=3, overflow="drop-oldest") as worker:
        wait_until(lambda: worker.ended)
        frames_left = [frame.index for frame in worker]
    assert frames_left == [47, 48, 49]
    assert (worker.received, worker.counts.drops()) == (50, {DropReason.QUEUE_FULL: 47})


def test_source_worker_frees_a_waiting_source_when_left_early():
    source = FakeSource(1000)
    with SourceWorker(source, depth=1, overflow="wait") as worker:
        wait_until(lambda: source.given == 2)
    assert not worker._thread.is_alive()


def test_source_worker_keeps_the_error_that_follows_good_frames():
    with SourceWorker(FakeSource(3, fails=SourceError("broke")), depth=8, overflow="wait") as worker:
        assert len(list(worker)) == 3
    assert str(worker.error) == "broke"


def batches(sources, limit, window=0.0, overflow="wait", stop=None):
    arrivals = Arrivals()
    stop = stop or threading.Event()
    workers = [SourceWorker(source, depth=2, overflow=overflow, arrivals=arrivals) for source in sources]
    for worker in workers:
        worker.__enter__()
    try:
        yield from iter_batches(workers, arrivals, stop.is_set, limit=limit, window_seconds=window)
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)


def test_iter_batches_takes_a_frame_of_each_camera():
    got = list(batches([FakeSource(20, "a"), FakeSource(20, "b")], limit=2, window=1.0))
    assert all({frame.camera for frame in batch} == {"a", "b"} for batch in got[:19])
    assert sum(map(len, got)) == 40


def test_iter_batches_does_not_wait_for_a_camera_without_frames():
    silent = FakeSource(20, "silent", gate=threading.Event())
    got = batches([FakeSource(20, "a"), silent], limit=2, window=0.01)
    seen = []
    while len(seen) < 20:
        seen += next(got)
    got.close()
    assert [(frame.camera, frame.index) for frame in seen] == [("a", k) for k in range(20)]


def test_iter_batches_continues_without_a_failed_camera():
    dead = FakeSource(0, "dead", fails=SourceError("gone"))
    assert sum(map(len, batches([FakeSource(20, "a"), dead], limit=2))) == 20


def test_iter_batches_serves_cameras_in_turn():
    arrivals = Arrivals()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(SourceWorker(FakeSource(30, name), depth=30, arrivals=arrivals)) for name in "abc"
        ]
        wait_until(lambda: all(worker.ended for worker in workers))
        cameras = [batch[0].camera for batch in iter_batches(workers, arrivals, lambda: False, limit=1)]
    assert cameras == ["a", "b", "c"] * 30


class CountedWorker(SourceWorker):
    """Counts how often it is asked."""

    asked = 0

    @property
    def queued(self):
        self.asked += 1
        return super().queued

    @property
    def finished(self):
        self.asked += 1
        return super().finished


def test_an_arrival_is_noticed_without_asking_all_cameras():
    arrivals = Arrivals()
    workers = [CountedWorker(FakeSource(0, f"camera {k}"), arrivals=arrivals) for k in range(96)]
    workers[50]._put(Frame(np.zeros((2, 2, 3), np.uint8), "camera 50", 0, time.monotonic()))
    assert _wait_for_frames(
        workers, arrivals, lambda: False, None, lambda worker: True, idle_at=math.inf, has_appeared=None
    )
    assert sum(worker.asked for worker in workers) == 0
    asked = []
    assert not _wait_for_frames(
        workers, arrivals, iter([False, True]).__next__, None, asked.append, idle_at=math.inf, has_appeared=None
    )
    assert set(asked) == {workers[50]}
    ends = iter([False, False, False, True])
    _wait_for_more(workers, arrivals, lambda: arrivals.notify() or next(ends), 2, time.monotonic() + LIMIT_SECONDS)
    assert sum(worker.asked for worker in workers) == len(workers), "once for the batch, not at every arrival"


def test_cameras_with_frames_are_known_however_the_frames_go():
    arrivals = Arrivals()
    worker = SourceWorker(FakeSource(0), arrivals=arrivals, max_age_seconds=1000.0)
    image = np.zeros((2, 2, 3), np.uint8)
    for _ in range(5):
        worker._put(Frame(image, "fake", 0, time.monotonic()))
        assert worker in arrivals.queued
    while worker.pop():
        assert (worker in arrivals.queued) == bool(worker.queued)
    worker._put(Frame(image, "fake", 0, time.monotonic()))
    with arrivals:
        worker._drop_all(DropReason.STOPPED)
    assert not arrivals.queued


def test_wakeup_keeps_one_call_before_the_wait():
    wakeup = Wakeup()
    assert not wakeup.wait(0)
    wakeup.set()
    wakeup.set()
    assert wakeup.wait(0)
    assert not wakeup.wait(0)


def test_wakeup_wakes_a_waiting_thread():
    wakeup, results = Wakeup(), []
    thread = threading.Thread(target=lambda: results.append(wakeup.wait(LIMIT_SECONDS)))
    thread.start()
    wakeup.set()
    thread.join()
    assert results == [True]


def test_reader_is_woken_once_the_wanted_number_of_cameras_has_frames():
    arrivals = Arrivals()
    workers = [SourceWorker(FakeSource(0, name), arrivals=arrivals) for name in "abc"]
    arrivals.wanted = 3
    for worker in (workers[0], *workers[:2]):  # a second frame of a camera adds no camera
        worker._put(Frame(np.zeros((2, 2, 3), np.uint8), worker.camera, 0, time.monotonic()))
    assert not arrivals._wakeup.wait(0)
    workers[2]._put(Frame(np.zeros((2, 2, 3), np.uint8), "c", 0, time.monotonic()))
    assert arrivals._wakeup.wait(0)


def test_camera_that_gave_a_frame_comes_after_those_that_wait():
    arrivals = Arrivals()
    workers = [SourceWorker(FakeSource(0, name), arrivals=arrivals) for name in "abc"]
    for worker in workers * 2:
        worker._put(Frame(np.zeros((2, 2, 3), np.uint8), worker.camera, 0, time.monotonic()))
    workers[0].pop()
    assert [worker.camera for worker in arrivals.queued] == ["b", "c", "a"]


def test_reader_that_found_no_frame_is_not_behind():
    arrivals = Arrivals()
    worker = SourceWorker(FakeSource(0), depth=3, arrivals=arrivals)

    def put(*indices):
        for index in indices:
            worker._put(Frame(np.zeros((2, 2, 3), np.uint8), "fake", index, time.monotonic()))

    put(0, 1)
    assert worker.pop().index == 0
    put(2, 3)
    assert worker.pop().index == 3
    arrivals.looks += 1  # the reader looks and finds nothing
    put(4, 5)
    assert worker.pop().index == 4
    assert worker.counts.drops() == {DropReason.SUPERSEDED: 2}


def test_iter_batches_ends_when_stopped_without_frames():
    stop = threading.Event()
    silent = FakeSource(20, "silent", gate=threading.Event())
    threading.Timer(0.05, stop.set).start()
    assert list(batches([silent], limit=1, stop=stop)) == []


def test_iter_batches_ends_at_the_deadline_without_frames():
    arrivals = Arrivals()
    with SourceWorker(FakeSource(20, gate=threading.Event()), arrivals=arrivals) as worker:
        assert list(iter_batches([worker], arrivals, lambda: False, limit=1, deadline=time.monotonic() + 0.05)) == []


def test_iter_batches_goes_on_with_cameras_that_appear():
    arrivals, workers, cameras = Arrivals(), [], []
    coming = [FakeSource(3, name) for name in ("a", "b")]

    def append():
        if coming and all(worker.finished for worker in workers):
            workers.append(stack.enter_context(SourceWorker(coming.pop(0), overflow="wait", arrivals=arrivals)))

    with ExitStack() as stack:
        batches = iter_batches(
            workers, arrivals, lambda: len(cameras) == 6, limit=1, idle=append, has_appeared=lambda: bool(coming)
        )
        for batch in batches:
            cameras.extend(frame.camera for frame in batch)
    assert cameras == ["a"] * 3 + ["b"] * 3


def test_queue_worker_delivers_everything_in_order_before_it_is_left():
    got = []
    with QueueWorker("slow", lambda item: (time.sleep(0.001), got.append(item)), depth=2) as worker:
        for k in range(30):
            worker.put(k, "wait")
    assert got == list(range(30))
    assert (worker.delivered, worker.dropped) == (30, 0)


def test_queue_worker_drops_the_oldest_items_of_a_slow_handler():
    gate = threading.Event()
    got = []
    with QueueWorker("stuck", lambda item: (gate.wait(LIMIT_SECONDS), got.append(item)), depth=2) as worker:
        worker.put(0)
        wait_until(lambda: not worker._queue)
        for k in range(1, 10):
            worker.put(k)
        gate.set()
    assert got == [0, 8, 9]
    assert (worker.delivered, worker.dropped) == (3, 7)


def test_queue_worker_that_failed_frees_a_waiting_put():
    def fail(_item):
        raise SinkError("disk full")

    with QueueWorker("disk", fail, depth=1) as worker:
        for k in range(20):
            worker.put(k, "wait")
        wait_until(lambda: worker.failed)
    assert str(worker.error) == "disk full"
    assert worker.delivered == 0


def test_queue_worker_passes_on_a_stop_request_without_error():
    def close(_item):
        raise StopRequested

    with QueueWorker("window", close) as worker:
        worker.put(1)
        wait_until(worker.stop_requested.is_set)
    assert worker.error is None


def test_queue_worker_drops_its_queue_after_an_exception_in_the_block():
    gate = threading.Event()
    got = []
    worker = QueueWorker("slow", lambda item: (gate.wait(LIMIT_SECONDS), got.append(item)), depth=8)
    with pytest.raises(RuntimeError), worker:  # noqa: PT012 - what happens before the error is the point
        for k in range(5):
            worker.put(k)
        wait_until(lambda: len(worker._queue) == 4)
        threading.Timer(0.05, gate.set).start()
        raise RuntimeError
    assert got == [0]
    assert worker.dropped == 4


def test_queue_worker_calls_idle_without_items():
    calls = threading.Event()
    with QueueWorker("window", lambda _item: None, idle=calls.set):
        assert calls.wait(LIMIT_SECONDS)


def test_queue_worker_passes_on_a_stop_request_of_idle():
    def close():
        raise StopRequested

    with QueueWorker("window", lambda _item: None, idle=close) as worker:
        wait_until(worker.stop_requested.is_set)
    assert worker.error is None


class Aged(FakeSource):
    """Yields frames that were captured long ago, except the last."""

    live = True

    def frames(self, stop):
        for k in range(self.count):
            age = 0.0 if k == self.count - 1 else 60.0
            yield Frame(np.zeros((2, 2, 3), np.uint8), self.camera, k, time.monotonic() - age)


def test_source_worker_drops_frames_of_a_live_source_that_are_too_old():
    with SourceWorker(Aged(4), depth=8, max_age_seconds=30.0) as worker:
        assert [frame.index for frame in worker] == [3]
    assert (worker.received, worker.counts.drops()) == (4, {DropReason.EXPIRED_BEFORE_ENGINE: 3})


def test_source_worker_keeps_old_frames_of_a_file():
    source = Aged(4)
    source.live = False
    with SourceWorker(source, depth=2, overflow="wait", max_age_seconds=30.0) as worker:
        assert [frame.index for frame in worker] == [0, 1, 2, 3]
    assert worker.counts.dropped() == 0


def test_queue_worker_limits_queued_bytes_but_keeps_one_item():
    gate, delivered = threading.Event(), []

    def deliver(item):
        gate.wait(LIMIT_SECONDS)
        delivered.append(item)

    with QueueWorker("disk", deliver, depth=16, size_of=lambda item: item, max_bytes=100) as worker:
        worker.put(1)
        wait_until(lambda: not worker._queue)  # the worker is delivering the first item
        for item in (60, 40, 70, 500):
            worker.put(item)
        gate.set()
    assert delivered == [1, 500]
    assert worker.dropped == 3


def crowd(worker, *indices):
    worker._queue.extend(Frame(np.zeros((2, 2, 3), np.uint8), "door", k, time.monotonic()) for k in indices)
    for _ in indices:
        worker.counts.count_received(worker.camera)


def test_source_worker_gives_the_newest_frame_only_to_a_reader_that_stays_behind():
    worker = SourceWorker(FakeSource(), depth=3)
    crowd(worker, 0, 1)
    assert [worker.pop().index, worker.pop().index] == [0, 1]
    assert worker.counts.dropped() == 0
    crowd(worker, 2, 3)
    assert worker.pop().index == 2
    crowd(worker, 4, 5)
    assert worker.pop().index == 5
    assert worker.counts.drops() == {DropReason.SUPERSEDED: 2}


def test_source_worker_that_waits_never_skips_a_frame():
    worker = SourceWorker(FakeSource(), depth=3, overflow="wait")
    crowd(worker, 0, 1, 2)
    assert [worker.pop().index for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(("state", "left"), [("connecting", True), ("live", False)])
def test_source_worker_abandons_only_a_camera_that_connects(monkeypatch, state, left):
    monkeypatch.setattr("pipeline.workers.source.CONNECTING_SECONDS", 0.05)
    answered, calls = threading.Event(), threading.Event()

    class Camera(FakeSource):
        live = True

        def frames(self, stop):
            calls.set()
            answered.wait(0.5 if state == "live" else 20)  # cannot be woken
            return iter(())

    camera = Camera()
    camera.health = Health(state)
    with SourceWorker(camera) as worker:
        assert calls.wait(LIMIT_SECONDS)
    assert worker._thread.is_alive() is left
    answered.set()
    worker._thread.join()

import threading
import time

from pipeline.drops import DropReason
from pipeline.fleet.leases import WorkerLeases
from pipeline.fleet.messages import FleetTiming, Grant
from pipeline.fleet.source import LeasedSource
from pipeline.loop import Pipeline
from pipeline.result import RunLimits
from tests.pipeline.test_camera_changes import Notes
from tests.support.fakes import FakeSource


def run(epochs, may_publish):
    """Run ten frames whose leases have the epochs, and return sink and result."""
    source, numbers, sink, part = FakeSource(10, "north"), iter(epochs), Notes(), Notes()
    leased = LeasedSource(source, lambda: next(numbers))
    pipeline = Pipeline([(leased, "wait")], part, part, [sink], limits=RunLimits(), stop=threading.Event(),
                        may_publish=may_publish)  # fmt: skip
    return sink, pipeline.run()


def test_frames_under_an_ended_lease_reach_no_sink_and_are_counted():
    sink, result = run([5] * 4 + [None] * 2 + [7] * 4, lambda frame: frame.epoch == 7)
    assert [index for _, index in sink.got] == [6, 7, 8, 9]
    assert result.drops == {DropReason.LEASE_ENDED: 6}
    assert result.received == result.delivered + result.dropped


def test_frame_that_waited_for_its_sink_is_refused_after_its_lease():
    calls = iter(range(100))
    sink, result = run([5] * 10, lambda _: next(calls) % 2 == 0)  # valid when queued, ended when put
    assert result.received == result.delivered + result.dropped
    assert len(sink.got) == result.delivered < 10
    assert set(result.drops) <= {DropReason.LEASE_ENDED, DropReason.SINK_REFUSED}


def test_leases_answer_for_frames_by_their_epoch():
    leases, now = WorkerLeases("a#1", "a", FleetTiming()), time.monotonic()
    leases.accept(Grant(leases.ask(now, 1.0).number, 1, {"north": 7}))
    sink, _ = run([7] * 5 + [6] * 5, lambda frame: leases.may_publish(frame.camera, frame.epoch, now + 1.0))
    assert len(sink.got) == 5

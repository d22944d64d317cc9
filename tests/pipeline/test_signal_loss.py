"""Signal loss of a live camera is reported within a second, and repeated."""

import numpy as np
import pytest

from pipeline.frames import Explanation, Frame
from pipeline.ports import Health
from pipeline.signal_loss import AGAIN_SECONDS, SILENT_SECONDS, SignalLossDetector
from pipeline.workers.source import SourceWorker
from tests.support.fakes import FakeSource


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def explained(pump, taken_at):
    frame = Frame(np.zeros((2, 2, 3), np.uint8), pump.camera, 0, taken_at)
    return Explanation(frame, (), "m", "l")


def camera(name, *, live=True, last_at=100.0, interval=0.1):
    source = FakeSource(camera=name)
    source.live = live
    pump = SourceWorker(source)
    pump.frame_rate.last_at, pump.frame_rate.interval_seconds = last_at, interval
    return pump


@pytest.fixture
def clock():
    return Clock()


def watch(pump, clock):
    results = []
    watchman = SignalLossDetector(
        pump, lambda explanation, silence: results.append((explanation.frame.camera, silence)), clock=clock
    )
    watchman.record(explained(pump, 100.0))
    return watchman, results


def look_until(watchman, clock, end):
    while clock.now < end:
        clock.now += 0.05
        watchman.check()


def test_detector_reports_signal_loss_within_a_second_and_repeats_it(clock):
    watchman, result = watch(camera("door"), clock)
    look_until(watchman, clock, 100.0 + SILENT_SECONDS - 0.1)
    assert result == []
    look_until(watchman, clock, 101.0)
    assert [name for name, _ in result] == ["door"]
    look_until(watchman, clock, 104.0)
    assert len(result) == 4
    assert [round(silence.seconds, 1) for _, silence in result] == pytest.approx([0.8, 1.8, 2.8, 3.8], abs=0.21)


def test_detector_reports_the_state_and_reason_of_the_source(clock):
    pump = camera("door")
    pump.source.health = Health("waiting", "connection refused")
    watchman, result = watch(pump, clock)
    clock.now += 2.0
    watchman.check()
    assert (result[0][1].state, result[0][1].reason) == ("waiting", "connection refused")


def test_detector_reports_nothing_between_frames_of_a_slow_camera(clock):
    watchman, result = watch(camera("slow", interval=2.0), clock)
    look_until(watchman, clock, 105.5)
    assert result == []
    look_until(watchman, clock, 106.5)
    assert len(result) == 1


def test_detector_does_not_wait_for_a_slow_camera_that_is_known_to_be_lost(clock):
    pump = camera("slow", interval=2.0)
    watchman, result = watch(pump, clock)
    pump.source.health = Health("live", "a damaged file is left out")
    look_until(watchman, clock, 102.0)
    assert result == []
    pump.source.health = Health("waiting", "connection refused")
    watchman.check()
    assert len(result) == 1


def test_detector_waits_as_long_as_the_source_requires(clock):
    pump = camera("remote")
    pump.source.min_silence_seconds = 2.0
    pump.source.health = Health("waiting", "no publisher answers")
    watchman, result = watch(pump, clock)
    look_until(watchman, clock, 101.9)
    assert result == []
    look_until(watchman, clock, 102.1)
    assert [round(silence.seconds) for _, silence in result] == [2]


def test_detector_reports_nothing_while_the_source_shows_the_loss_itself(clock):
    pump = camera("remote")
    pump.source.min_silence_seconds = 2.0
    watchman, result = watch(pump, clock)
    for second in range(101, 104):
        look_until(watchman, clock, float(second))
        watchman.postpone()
    look_until(watchman, clock, 104.9)
    assert result == []
    look_until(watchman, clock, 105.1)
    assert [round(silence.seconds) for _, silence in result] == [5]


def test_detector_counts_from_the_last_received_frame_whatever_its_own_time(clock):
    pump = camera("door")
    watchman, result = watch(pump, clock)
    watchman.record(explained(pump, 100.0 - 3600.0))
    look_until(watchman, clock, 101.0)
    assert [round(silence.seconds, 1) for _, silence in result] == [pytest.approx(0.8, abs=0.11)]


def test_detector_ignores_files(clock):
    watchman, result = watch(camera("file", live=False), clock)
    look_until(watchman, clock, 110.0)
    assert result == []


def test_detector_reports_nothing_while_frames_are_queued(clock):
    pump = camera("door")
    pump._queue.append(explained(pump, 100.0).frame)
    watchman, result = watch(pump, clock)
    look_until(watchman, clock, 105.0)
    assert result == []


def test_detector_stops_reporting_after_a_frame(clock):
    pump = camera("door")
    watchman, result = watch(pump, clock)
    look_until(watchman, clock, 101.0)
    pump.frame_rate.record(clock.now)
    watchman.record(explained(pump, clock.now))
    before = len(result)
    look_until(watchman, clock, clock.now + SILENT_SECONDS - 0.1)
    assert len(result) == before
    assert AGAIN_SECONDS > SILENT_SECONDS  # or this test would prove nothing


def test_detector_reports_nothing_before_the_first_frame(clock):
    pump = camera("door", last_at=None)
    results = []
    watchman = SignalLossDetector(pump, lambda *arguments: results.append(arguments), clock=clock)
    look_until(watchman, clock, 110.0)
    assert results == []

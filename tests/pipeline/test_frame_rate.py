"""The estimate of a camera's frame rate, and the rule of its silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frame_rate import SILENT_INTERVALS, SILENT_SECONDS, FrameRate
from pipeline.workers.source import SourceWorker
from tests.support.fakes import FakeSource


def recorded(*moments):
    rate = FrameRate()
    for timestamp in moments:
        rate.record(timestamp)
    return rate


@given(interval=st.floats(0.001, 60.0), count=st.integers(2, 100))
def test_frame_rate_of_regular_frames_is_exact_and_lasts_three_intervals(interval, count):
    rate = recorded(*(k * interval for k in range(count)))
    assert rate.interval_seconds == pytest.approx(interval)
    limit = max(SILENT_SECONDS, SILENT_INTERVALS * interval)
    assert rate.frames_per_second(rate.last_at + 0.99 * limit) == pytest.approx(1.0 / interval)
    assert rate.frames_per_second(rate.last_at + 1.01 * limit) == 0.0


def test_frame_rate_follows_a_change_within_thirty_frames():
    rate = recorded(*(k / 10 for k in range(50)), *(5.0 + k / 30 for k in range(30)))
    assert rate.interval_seconds == pytest.approx(1 / 30)


@pytest.mark.parametrize("gap", [10.1, 10_000.0, -1.0])
def test_frame_rate_starts_anew_after_a_pause_or_a_clock_that_goes_back(gap):
    rate = recorded(*(k / 10 for k in range(50)), 4.9 + gap)
    assert (rate.interval_seconds, rate.last_at) == (0.0, pytest.approx(4.9 + gap))
    rate.record(4.9 + gap + 0.2)
    assert rate.interval_seconds == pytest.approx(0.2)


def test_frame_rate_counts_a_gap_of_a_slow_camera():
    assert recorded(0.0, 50.0, 100.0, 240.0).interval_seconds == pytest.approx(80.0)
    assert recorded(0.0, 61.0).interval_seconds == 0.0


def test_frame_rate_is_unknown_and_not_silent_before_the_first_frame():
    rate = FrameRate()
    assert not rate.is_silent(1e9)
    assert rate.frames_per_second(0.0) == recorded(3.0).frames_per_second(3.0) == 0.0
    assert recorded(3.0).is_silent(3.1 + SILENT_SECONDS)


def test_frame_rate_of_frames_of_one_moment_is_unknown():
    assert recorded(1.0, 1.0).frames_per_second(1.0) == 0.0


def test_source_worker_records_when_its_frames_come():
    with SourceWorker(FakeSource(5), depth=8, overflow="wait") as worker:
        assert len(list(worker)) == 5
    assert worker.frame_rate.last_at is not None

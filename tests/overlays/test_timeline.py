from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlays.sinks.timeline import TICKS_PER_SECOND, Timeline


def shown(times, rate=30.0):
    timeline = Timeline(rate)
    return [timeline.ticks(pts, captured_at) / TICKS_PER_SECOND for pts, captured_at in times]


moments = st.floats(-1e5, 1e5)


@given(st.lists(st.tuples(st.none() | moments, moments), min_size=1, max_size=40))
def test_time_starts_at_zero_and_increases(times):
    timeline = Timeline()
    ticks = [timeline.ticks(pts, captured_at) for pts, captured_at in times]
    assert ticks[0] == 0
    assert all(earlier < other for earlier, other in itertools.pairwise(ticks))
    assert timeline.step_ticks >= 1


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=40), moments)
def test_forward_times_are_preserved_to_the_tick(steps, begin):
    times = [begin]
    for step in steps:
        times.append(times[-1] + step)
    expected = [time - begin for time in times]
    assert shown([(time, 0.0) for time in times]) == pytest.approx(expected, abs=0.51 / TICKS_PER_SECOND)


def test_stream_without_a_clock_uses_capture_times():
    assert shown([(None, 5.0), (None, 5.04), (None, 5.1)]) == pytest.approx([0, 0.04, 0.1], abs=1e-5)


def test_clock_that_goes_back_or_stops_continues_at_the_last_pace():
    pts = [0.0, 0.04, 0.08, 0.0, 0.04, 0.04, 0.08]
    assert shown([(each, 0.0) for each in pts]) == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.20, 0.24], abs=1e-5)


def test_frame_captured_before_a_signal_loss_does_not_stretch_time():
    timeline = Timeline()
    values = [(0.0, 0.0), (0.1, 0.0), (0.1, 6.0), (0.1, 7.0), (0.2, 0.0), (7.2, 0.0), (7.3, 0.0)]
    ticks = [timeline.ticks(pts, 0.0, silent_seconds=silent) for pts, silent in values]
    seen = [each / TICKS_PER_SECOND for each in ticks]
    assert seen == pytest.approx([0, 0.1, 6.1, 7.1, 7.101, 7.2, 7.3], abs=1e-5)


def test_clock_that_jumps_by_a_day_continues_at_the_last_pace():
    pts = [0.0, 0.04, 86400.0, 86400.04]
    assert shown([(each, 0.0) for each in pts]) == pytest.approx([0, 0.04, 0.08, 0.12], abs=1e-5)


def test_missing_time_follows_its_predecessor():
    assert shown([(0.0, 1.0), (0.1, 2.0), (None, 3.0), (0.3, 4.0)]) == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-5)
    assert shown([(0.0, 0.0), (None, 0.0)], rate=25) == pytest.approx([0, 0.04], abs=1e-5)

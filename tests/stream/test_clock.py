from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.clock import StreamClock

times = st.one_of(st.none(), st.floats(-1e6, 1e6))


@given(st.lists(times, min_size=1, max_size=40))
def test_clock_of_file_starts_at_zero_and_increases(pts):
    clock = StreamClock()
    values = [clock.to_seconds(time) for time in pts]
    assert values[0] == 0.0
    assert all(earlier < later for earlier, later in pairwise(values))


@given(st.lists(st.tuples(times, st.floats(0.001, 5.0)), min_size=1, max_size=40))
def test_clock_of_live_stream_stays_near_arrival_time(steps):
    clock, now = StreamClock(slack_seconds=3.0), 1000.0
    last = -1.0
    for pts, step in steps:
        now += step
        result = clock.to_seconds(pts, arrived_at=now)
        assert result > last
        assert abs(result - (now - 1000.0 - steps[0][1])) <= 3.0 + 0.001 * len(steps)
        last = result


def test_valid_times_are_kept_from_zero():
    clock = StreamClock()
    assert [clock.to_seconds(t) for t in (20.0, 20.5, 21.5)] == [0.0, 0.5, 1.5]


def test_clock_of_file_keeps_long_gap():
    clock = StreamClock()
    clock.to_seconds(5.0)
    assert clock.to_seconds(605.0) == 600.0


def test_clock_set_back_advances_by_one_step():
    clock = StreamClock(step_seconds=0.1)
    clock.to_seconds(100.0)
    clock.to_seconds(101.0)
    assert clock.to_seconds(3.0) == pytest.approx(1.1)
    assert clock.to_seconds(3.5) == pytest.approx(1.6)


def test_pictures_out_of_order_keep_their_order_and_the_clock_its_course():
    clock = StreamClock()
    clock.to_seconds(0.0)
    clock.to_seconds(0.5)
    assert 0.5 < clock.to_seconds(0.48) < 0.51
    assert clock.to_seconds(1.0) == 1.0


def test_clock_of_live_stream_resets_to_arrival_time_after_jump():
    clock = StreamClock()
    clock.to_seconds(0.0, arrived_at=50.0)
    assert clock.to_seconds(95443.7, arrived_at=50.04) == pytest.approx(0.04)
    assert clock.to_seconds(95443.8, arrived_at=50.15) == pytest.approx(0.14)


def test_time_goes_on_across_a_reconnect():
    clock = StreamClock()
    clock.to_seconds(70.0, arrived_at=10.0)
    clock.restart()
    assert clock.to_seconds(0.0, arrived_at=15.0) == pytest.approx(5.0)
    assert clock.to_seconds(0.5, arrived_at=15.4) == pytest.approx(5.5)

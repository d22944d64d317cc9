import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.reconnect import Backoff, ConnectTimeoutPolicy


class Always(random.Random):
    """A random generator that always returns the same fraction of the range."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def random(self):
        return self.where


@given(failures=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_backoff_quick_delay_is_within_bounds(failures, seed):
    policy = Backoff(min_seconds=0.1, max_seconds=10.0)
    assert 0.1 <= policy.delay_seconds(failures, random.Random(seed)) <= 10.0


def test_backoff_ceiling_doubles_after_initial_failures():
    ceilings = [Backoff().delay_seconds(failures, Always(1.0)) for failures in (0, 1, 2, 3, 30, 89)]
    assert ceilings == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8, 0.8])
    minute = sum(Backoff().delay_seconds(failures, Always(0.5)) for failures in range(90))
    assert 35.0 < minute < 60.0


def test_after_that_it_doubles_on_to_the_longest():
    ceilings = [Backoff().delay_seconds(failures, Always(1.0)) for failures in (90, 91, 92, 93, 500, 10**6)]
    assert ceilings == pytest.approx([1.6, 3.2, 6.4, 10.0, 10.0, 10.0])


def test_jitter_fills_the_whole_span():
    assert Backoff().delay_seconds(200, Always(0.0)) == pytest.approx(0.1)


def test_backoff_after_live_stream_is_short():
    assert Backoff().delay_seconds(0, Always(1.0)) <= 0.2


def test_backoff_of_wrong_password_is_slow():
    assert 8.0 <= Backoff().delay_seconds(1, random.Random(3), retry_class="slow") <= 12.0


def test_one_seed_gives_one_sequence():
    first, second = random.Random(5), random.Random(5)
    policy = Backoff()
    assert [policy.delay_seconds(n, first) for n in range(6)] == [policy.delay_seconds(n, second) for n in range(6)]


def test_backoff_refuses_min_above_max():
    with pytest.raises(ValueError, match="exchange them"):
        Backoff(min_seconds=2.0, max_seconds=1.0)
    with pytest.raises(ValueError, match="the minimum must be above 0"):
        Backoff(min_seconds=0.0)


@given(failures=st.integers(0, 10_000), seed=st.integers(0, 1000), spent=st.floats(0, 100))
def test_backoff_subtracts_duration_of_attempt(failures, seed, spent):
    policy = Backoff(min_seconds=0.1, max_seconds=10.0)
    delay = policy.delay_seconds(failures, random.Random(seed), spent_seconds=spent)
    assert 0.1 <= delay <= 10.0
    assert policy.delay_seconds(failures, Always(1.0), spent_seconds=100.0) == pytest.approx(0.2)


def test_connect_timeout_is_short_except_every_fourth():
    policy = ConnectTimeoutPolicy(max_seconds=3.0)
    assert [policy.timeout_seconds(failures, 0.05) for failures in range(8)] == [1.0, 1.0, 1.0, 3.0] * 2
    assert policy.timeout_seconds(0, 0.4) == pytest.approx(1.6)


def test_connect_timeout_is_full_before_first_answer():
    assert {ConnectTimeoutPolicy(3.0).timeout_seconds(failures, None) for failures in range(10)} == {3.0}


def test_after_a_minute_and_a_half_of_silence_every_attempt_gets_the_full_time():
    assert {ConnectTimeoutPolicy(3.0).timeout_seconds(failures, 0.05) for failures in range(90, 100)} == {3.0}


@given(full=st.floats(0.01, 100), failures=st.integers(0, 1000), took=st.none() | st.floats(0, 1000))
def test_no_attempt_waits_longer_than_the_full_time_nor_less_than_the_shortest(full, failures, took):
    waited = ConnectTimeoutPolicy(full).timeout_seconds(failures, took)
    assert min(1.0, full) <= waited <= full


def test_connect_timeout_record_rises_at_once_and_falls_slowly():
    learned = ConnectTimeoutPolicy.record
    assert learned(None, 0.5) == 0.5
    assert learned(0.5, 2.0) == 2.0
    assert learned(2.0, 0.5) == 1.25

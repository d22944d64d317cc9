import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.reconnect import Backoff


class Always(random.Random):
    """Chance that always falls at one place of the span."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def random(self):
        return self.where


@given(failures=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_every_quick_delay_lies_between_the_shortest_and_the_longest(failures, seed):
    policy = Backoff(shortest_seconds=0.1, longest_seconds=10.0)
    assert 0.1 <= policy.delay_seconds(failures, random.Random(seed)) <= 10.0


def test_the_span_doubles_with_each_failure_and_stays_brief_for_the_first_minute():
    ceilings = [Backoff().delay_seconds(failures, Always(1.0)) for failures in (0, 1, 2, 3, 30, 89)]
    assert ceilings == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8, 0.8])
    minute = sum(Backoff().delay_seconds(failures, Always(0.5)) for failures in range(90))
    assert 35.0 < minute < 60.0


def test_after_that_it_doubles_on_to_the_longest():
    ceilings = [Backoff().delay_seconds(failures, Always(1.0)) for failures in (90, 91, 92, 93, 500, 10**6)]
    assert ceilings == pytest.approx([1.6, 3.2, 6.4, 10.0, 10.0, 10.0])


def test_jitter_fills_the_whole_span():
    assert Backoff().delay_seconds(200, Always(0.0)) == pytest.approx(0.1)


def test_a_live_stream_that_breaks_is_tried_again_at_once():
    assert Backoff().delay_seconds(0, Always(1.0)) <= 0.2


def test_a_wrong_password_is_tried_slowly_from_the_first():
    assert 8.0 <= Backoff().delay_seconds(1, random.Random(3), pace="slow") <= 12.0


def test_one_seed_gives_one_sequence():
    first, second = random.Random(5), random.Random(5)
    policy = Backoff()
    assert [policy.delay_seconds(n, first) for n in range(6)] == [policy.delay_seconds(n, second) for n in range(6)]


def test_a_span_turned_round_is_refused():
    with pytest.raises(ValueError, match="exchange them"):
        Backoff(shortest_seconds=2.0, longest_seconds=1.0)

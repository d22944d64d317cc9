"""The rule by which one of two directors is active."""

from itertools import pairwise

import pytest

from pipeline.fleet.standby import DirectorState, Standby

ACTIVE = DirectorState(is_active=True, node="a", is_on_head=False, nodes=frozenset("ab"))
PASSIVE = DirectorState(is_active=False, node="b", is_on_head=False)


def first_due(standby: Standby, answers, step: float = 0.1) -> float | None:
    """Return the time of the first answer at which the standby is due."""
    return next((step * n for n, (other, lost) in enumerate(answers)
                 if standby.is_due(PASSIVE, other, step * n, is_lost=lost)), None)  # fmt: skip


def test_of_two_directors_that_begin_together_the_first_becomes_active():
    first, second = (Standby(is_first=is_first, now=0.0) for is_first in (True, False))
    assert first.is_due(PASSIVE, PASSIVE, 0.1)
    assert not second.is_due(PASSIVE, PASSIVE, 0.1)


@pytest.mark.parametrize("is_first", [True, False])
def test_standby_stays_passive_while_the_other_one_is_active(is_first):
    assert first_due(Standby(is_first=is_first, now=0.0), [(ACTIVE, False)] * 100) is None


@pytest.mark.parametrize("is_first", [True, False])
def test_killed_director_is_replaced_at_once_and_a_silent_one_within_a_second(is_first):
    killed = first_due(Standby(is_first=is_first, now=0.0), [(ACTIVE, False)] * 5 + [(None, True)])
    silent = first_due(Standby(is_first=is_first, now=0.0), [(ACTIVE, False)] * 5 + [(None, False)] * 20)
    assert killed == pytest.approx(0.5)
    assert silent is not None
    assert 0.4 < silent - 0.4 <= 1.0


def test_director_that_never_answered_is_given_time_to_start_and_the_first_is_the_earlier():
    times = [first_due(Standby(is_first=is_first, now=0.0), [(None, True)] * 100) for is_first in (True, False)]
    assert None not in times
    assert all(earlier + 1.0 < later for earlier, later in pairwise([0.0, *times]))


def test_second_director_becomes_active_if_the_first_stays_passive():
    assert first_due(Standby(is_first=False, now=0.0), [(PASSIVE, False)] * 100) is not None


def test_standby_replaces_a_director_on_the_head_after_some_time():
    on_head = DirectorState(is_active=True, node="head", is_on_head=True)
    standby = Standby(is_first=True, now=0.0)
    assert not standby.is_due(PASSIVE, on_head, 0.0)
    assert standby.is_due(PASSIVE, on_head, 10.0)
    assert not standby.is_due(DirectorState(is_active=False, node="head", is_on_head=True), on_head, 20.0)


@pytest.mark.parametrize(
    ("other", "moves"),
    [
        pytest.param(DirectorState(is_active=False, node="a", is_on_head=False), True, id="on this node"),
        pytest.param(PASSIVE, False, id="on a node of its own"),
        pytest.param(DirectorState(is_active=True, node="a", is_on_head=False), False, id="active, too"),
        pytest.param(None, False, id="silent"),
    ],
)
def test_standby_moves_from_the_node_of_the_active_director_after_some_time(other, moves):
    standby = Standby(is_first=True, now=0.0)
    assert not standby.is_to_move(ACTIVE, other, 0.0)
    assert standby.is_to_move(ACTIVE, other, 10.0) is moves


def test_standby_stays_in_a_fleet_of_one_node():
    alone = DirectorState(is_active=True, node="a", is_on_head=True, nodes=frozenset("a"))
    standby = Standby(is_first=True, now=0.0)
    assert not any(standby.is_to_move(alone, DirectorState(False, "a", True), now) for now in (0.0, 10.0))


def test_director_that_was_well_placed_in_between_waits_again():
    standby = Standby(is_first=True, now=0.0)
    beside = DirectorState(is_active=False, node="a", is_on_head=False)
    assert not standby.is_to_move(ACTIVE, beside, 0.0)
    assert not standby.is_to_move(ACTIVE, PASSIVE, 1.0)
    assert not standby.is_to_move(ACTIVE, beside, 10.0)


@pytest.mark.parametrize("found", ["before", "after"])
def test_deposed_director_is_doubtful_until_it_sees_another_active_one_and_a_worker_finds_it(found: str):
    standby = Standby(is_first=True, now=0.0)
    standby.on_deposed(60.0, is_heard=found == "before")
    if found == "after":
        assert not standby.is_due(PASSIVE, ACTIVE, 0.1)
        assert standby.is_doubtful
        standby.on_beat()
    assert standby.is_doubtful
    assert not standby.is_due(PASSIVE, ACTIVE, 0.2)
    assert not standby.is_doubtful


def test_director_that_is_deposed_at_its_start_is_doubtful_until_it_sees_another_active_one():
    standby = Standby(is_first=True, now=0.0)
    standby.on_deposed(1.0, is_heard=False)
    assert standby.is_doubtful
    assert not standby.is_due(PASSIVE, ACTIVE, 1.1)
    assert not standby.is_doubtful

"""The two directors of a fleet in simulated time: frozen, killed and cut off, alone and both."""

import pytest

from tests.support import fleet_pair as pair
from tests.support import fleet_simulation as simulation


def settled(seed: int = 1, term: int = 0):
    """Return a fleet whose first director has claimed the term after ``term``."""
    fleet = pair.PairSimulation(seed)
    fleet.term = term
    fleet.run(40.0)
    assert fleet.longest_dark() == 0.0
    assert len(fleet.active()) == 1
    return fleet


def faulted(seed: int, **options):
    fleet = pair.PairSimulation(seed, **options)
    fleet.run(5.0)
    for _ in range(12):
        fleet.fault()
        fleet.run(fleet.random.uniform(0.1, 6.0))
    return fleet


@pytest.mark.parametrize(
    ("first", "learns_late"),
    [(0, False), (10, False), pytest.param(20, True, id="workers learn of a new process late")],
)
def test_pair_never_publishes_a_camera_twice_and_holds_all_again_after_faults(first: int, learns_late: bool):
    for seed in range(first, first + 10):
        fleet = faulted(seed, learns_late=learns_late)
        fleet.heal()
        fleet.run(25.0)
        assert fleet.longest_dark() < 3.0, f"seed {seed}"
        assert len(fleet.active()) == 1, f"seed {seed}"


def test_active_director_leaves_the_head_and_its_standby_is_on_another_machine():
    for seed in range(10):
        fleet = pair.PairSimulation(seed)
        fleet.run(20.0)
        [active] = fleet.active()
        assert active.machine.number != simulation.HEAD, f"seed {seed}"
        assert len({program.machine.number for program in fleet.programs()}) == 2, f"seed {seed}"


def test_frozen_director_is_replaced_and_yields_when_it_wakes():
    fleet = settled()
    [first] = fleet.active()
    fleet.freeze([first], 20.0)
    assert fleet.worst_dark(19.0) == 0.0
    assert any(each is not first for each in fleet.active())
    assert fleet.worst_dark(20.0) == 0.0
    assert len(fleet.active()) == 1


@pytest.mark.parametrize("seed", range(4))
def test_active_director_that_no_worker_finds_is_replaced(seed: int):
    fleet = settled(seed)
    [active] = fleet.active()
    unfound = fleet.run_program(active.machine, active.number)
    fleet.directors.remove(unfound)  # the simulation ends those of its directors that Ray has replaced
    fleet.begin(unfound)
    while fleet.active():
        fleet.step()
        for program in fleet.programs():
            program.standby.on_deposed(0.0, is_heard=True)
    assert fleet.worst_dark(25.0) < 20.0
    assert fleet.longest_dark() == 0.0
    assert unfound.director is None


@pytest.mark.parametrize("seed", [500043, 500906])
def test_fleet_recovers_where_a_director_that_no_worker_finds_claims_terms(seed: int):
    fleet = faulted(seed)
    fleet.heal()
    fleet.run(20.0)
    assert fleet.longest_dark() < 3.0


def test_both_directors_killed_together_are_dark_for_a_lease_and_the_quiet_time():
    fleet = settled()
    fleet.kill(fleet.programs())
    assert 0.0 < fleet.worst_dark(30.0) < 12.0
    assert fleet.longest_dark() == 0.0


def test_head_that_is_back_after_ten_minutes_interrupts_no_camera():
    fleet = settled()
    fleet.store_is_up = False
    assert fleet.worst_dark(600.0) == 0.0
    fleet.store_is_up = True
    assert fleet.worst_dark(30.0) < 3.0
    assert len(fleet.active()) == 1


def test_standby_that_waited_for_the_head_takes_over_without_a_camera_dark():
    fleet = settled()
    [first] = fleet.active()
    fleet.store_is_up = False
    fleet.freeze([first], 2.0)  # the standby becomes due, and waits for the head's term
    fleet.run(60.0)
    assert fleet.longest_dark() == 0.0
    fleet.store_is_up = True
    assert fleet.worst_dark(30.0) < 3.0
    assert len(fleet.active()) == 1


@pytest.mark.parametrize("seed", range(3))
def test_head_that_lost_its_data_and_whose_clock_is_behind_gives_higher_epochs_than_before(seed: int):
    fleet = settled(seed, term=1000)
    before = max(epoch for _, epoch in fleet.grants)
    fleet.kill(fleet.directors)
    fleet.term = 0
    fleet.members.clear()
    fleet.grants.clear()
    for machine in fleet.machines[1:]:
        fleet.kill_worker(machine, seconds=5.0)
    fleet.run(60.0)
    assert fleet.longest_dark() == 0.0
    assert min(epoch for _, epoch in fleet.grants) > before

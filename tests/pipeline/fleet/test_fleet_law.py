"""Runs fleets in simulated time through random faults; ``fleet_simulation`` checks the law at every step."""

import pytest

from pipeline.fleet.messages import FleetTiming
from tests.support import fleet_simulation as simulation

MAX_DARK_SECONDS = 6.0
"""Within which a camera is held again after the loss of one process or machine."""


def chaos(seed: int, faults: int = 12):
    fleet = simulation.Simulation(seed, machines=3 + seed % 3)
    fleet.run(3.0)
    for _ in range(faults):
        fleet.fault()
        fleet.run(fleet.random.uniform(0.1, 4.0))
    return fleet


def settled(seed: int = 1, **options):
    fleet = simulation.Simulation(seed, **options)
    fleet.run(25.0)  # long enough for every move
    assert fleet.longest_dark() == 0.0
    return fleet


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_fleet_never_publishes_a_camera_twice_and_holds_all_again_after_faults(first: int):
    for seed in range(first, first + 10):
        fleet = chaos(seed)
        fleet.heal()
        fleet.run(16.0)
        assert fleet.longest_dark() < 3.0, f"seed {seed}"  # a camera that moves is not published for a moment


@pytest.mark.parametrize(("name", "seconds"), [("quiet_seconds", 0.5), ("expiry_seconds", 1.5)])
def test_simulation_finds_violations_of_unsafe_times(monkeypatch, name: str, seconds: float):
    monkeypatch.setattr(FleetTiming, name, property(lambda _: seconds))
    with pytest.raises(AssertionError, match="is published by"):
        any(chaos(seed) is None for seed in range(200))


def test_fleet_deals_the_cameras_of_a_lost_worker_again_within_six_seconds():
    fleet = settled()
    victim = next(each.machine for each in fleet.workers if each.machine is not fleet.current.machine)
    fleet.kill_worker(victim, seconds=None)
    assert 0.0 < fleet.worst_dark(10.0) <= MAX_DARK_SECONDS
    assert fleet.longest_dark() == 0.0


def test_fleet_deals_the_cameras_of_a_lost_machine_again_within_six_seconds():
    fleet = settled()
    fleet.kill_machine(next(m for m in fleet.machines[1:] if m is not fleet.current.machine), seconds=None)
    assert 0.0 < fleet.worst_dark(10.0) <= MAX_DARK_SECONDS


def test_fleet_deals_the_cameras_of_a_lost_machine_again_without_the_store():
    fleet = settled()
    fleet.store_is_up = False
    fleet.run(20.0)
    assert fleet.longest_dark() == 0.0
    fleet.kill_machine(next(m for m in fleet.machines[1:] if m is not fleet.current.machine), seconds=None)
    assert 0.0 < fleet.worst_dark(20.0) <= MAX_DARK_SECONDS
    assert fleet.longest_dark() == 0.0


def test_restart_of_the_director_interrupts_no_camera():
    fleet = settled()
    fleet.current.is_alive = False
    assert fleet.worst_dark(15.0) == 0.0
    assert fleet.current.is_alive


def test_fleet_recovers_from_the_loss_of_the_machine_with_the_director():
    fleet = settled()
    fleet.kill_machine(fleet.current.machine, seconds=None)
    assert 0.0 < fleet.worst_dark(20.0) <= 12.0
    assert fleet.longest_dark() == 0.0


def test_second_director_beside_the_first_interrupts_no_camera():
    fleet = settled()
    fleet.replace_director()
    assert fleet.worst_dark(15.0) == 0.0


def test_machine_cut_off_with_the_director_stops_before_its_cameras_are_dealt_again():
    fleet = settled()
    machine = fleet.current.machine
    own = {camera for camera, names in fleet.publishers().items() if names[0].startswith(f"w{machine.number}-")}
    assert own
    fleet.isolate(machine, 60.0)
    fleet.run(25.0)
    publishers = fleet.publishers()
    assert set(publishers) == set(fleet.cameras)
    assert not any(publishers[camera][0].startswith(f"w{machine.number}-") for camera in own)


def test_drained_machine_gives_up_its_cameras_in_two_seconds():
    fleet = settled()
    worker = next(each for each in fleet.workers if each.leases.valid(each.machine.clock(fleet.now)))
    fleet.drained.add(f"n{worker.machine.number}")
    fleet.current.director.drain(fleet.drained)
    assert 0.0 < fleet.worst_dark(8.0) <= 2.0
    assert not worker.leases.valid(worker.machine.clock(fleet.now))


def test_fleet_deals_no_more_than_the_fill_of_its_capacity():
    fleet = simulation.Simulation(3, machines=3, cameras=12, capacity=50.0)  # two workers, each of four cameras
    fleet.run(15.0)
    assert len(fleet.publishers()) == 8
    status = fleet.current.director.status(fleet.current.machine.clock(fleet.now))
    waiting = [camera for camera in status["cameras"] if camera["worker"] is None]
    assert len(waiting) == 4
    assert all("beyond capacity" in camera["reason"] for camera in waiting)


def test_machine_that_joins_gets_cameras_by_moves_of_two_at_a_time():
    fleet = simulation.Simulation(5, machines=4, cameras=12, capacity=200.0)
    fleet.kill_machine(fleet.machines[3], seconds=12.0)
    fleet.run(11.0)
    assert len(fleet.publishers()) == 12
    fleet.run(40.0)
    counts = [sum(names[0].startswith(f"w{number}-") for names in fleet.publishers().values()) for number in (1, 2, 3)]
    assert sorted(counts) == [4, 4, 4] or max(counts) - min(counts) <= 3
    assert fleet.worst_dark(12.0) <= 2.0


@pytest.mark.parametrize("how", ["announced", "counted"])
def test_start_of_a_fleet_moves_no_camera_though_its_nodes_come_one_after_the_other(how: str):
    for seed in range(5):
        timing = FleetTiming(nodes=3 if how == "counted" else 1)
        fleet = simulation.Simulation(seed, machines=4, cameras=12, start_seconds=30.0, timing=timing)
        if how == "announced":
            fleet.current.director.expect(["w1", "w2", "w3"])
        fleet.run(75.0)
        assert len(fleet.publishers()) == len(fleet.grants) == 12, f"seed {seed}"


def test_start_of_a_fleet_moves_cameras_where_nothing_is_known_of_further_nodes():
    fleet = simulation.Simulation(1, machines=4, cameras=12, start_seconds=30.0)
    fleet.run(75.0)
    assert len(fleet.grants) > 12


def test_new_fleet_waits_a_minute_at_most_for_a_node_that_never_comes():
    fleet = simulation.Simulation(1, machines=3, cameras=6)
    fleet.current.director.expect(["w9"])
    fleet.run(10.0)
    assert fleet.publishers() == {}
    assert "waits for w9" in fleet.current.director.where("camera 1")["reason"]
    fleet.run(60.0)
    assert len(fleet.publishers()) == 6

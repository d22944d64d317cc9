from hypothesis import given
from hypothesis import strategies as st

from pipeline.fleet.changes import compare_cameras
from pipeline.fleet.dealing import WorkerLoad, choose_moves, deal, reasons_not_dealt
from pipeline.fleet.director import Director
from pipeline.fleet.leases import WorkerLeases
from pipeline.fleet.messages import Beat, FleetTiming, Grant, WorkerInfo, first_epoch

TIMING = FleetTiming()
CAMERAS = {"north": 10.0, "south": 10.0}


def director(cameras=CAMERAS, *, term=1, members=(), now=0.0) -> Director:
    return Director(cameras, term=term, members=members, now=now, timing=TIMING)


def beat(number=1, worker="a#1", capacity=100.0, **options) -> Beat:
    slot = worker.partition("#")[0]
    return Beat(worker, slot, number, capacity, info=WorkerInfo(node=slot), **options)


def started(cameras=CAMERAS, now=0.0) -> Director:
    """Return a director whose only worker, ``a#1``, has just got all cameras."""
    made = director(cameras, now=now)
    made.beat(beat(), now)
    made.admit(made.newcomers)
    return made


def held(made: Director, number: int, now: float, worker="a#1", **options) -> Grant:
    made.confirm(made.term, now)
    return made.beat(beat(number, worker, **options), now)


def test_beat_grants_nothing_before_its_slot_is_in_the_store():
    made = director()
    assert made.beat(beat(), 0.0).leases == {}
    assert made.newcomers == {"a"}
    made.admit({"a"})
    assert set(made.beat(beat(2), 0.1).leases or ()) == {"north", "south"}


def test_repeated_beat_gets_the_same_answer():
    made = started()
    first = made.beat(beat(2), 0.2)
    assert made.beat(beat(2), 0.3) == first


def test_overtaken_beat_is_answered_without_leases_and_changes_nothing():
    made = started()
    granted = held(made, 5, 0.2)
    made.apply({"south": 10.0})
    held(made, 6, 0.3, leases=granted.leases)
    assert made.beat(beat(4), 0.4).leases is None  # it was sent before the lease, and gives nothing back
    assert "north" in made._holds


def test_epochs_rise_with_every_grant_and_every_term():
    made = started()
    first = held(made, 2, 0.1).leases
    made.apply({})
    held(made, 3, 0.2)
    made.apply(CAMERAS)
    second = held(made, 4, 0.3).leases
    assert min(second.values()) > max(first.values())
    assert first_epoch(2) >= max(second.values())


def test_director_is_useful_for_some_seconds_and_then_while_workers_reach_it():
    made, late = started(), TIMING.unheard_seconds + 1.0
    assert made.is_useful(1.0)
    assert not made.is_useful(late)
    held(made, 2, late)
    assert made.is_useful(late)


def test_director_that_may_grant_no_lease_is_not_useful_though_a_worker_reaches_it():
    made, late = director(members="abc"), TIMING.unheard_seconds + 1.0
    held(made, 1, late)
    assert not made.may_grant(late)
    assert not made.is_useful(late)


def test_director_below_the_term_that_a_worker_followed_earlier_grants_nothing_and_states_that_term():
    made = director(term=5)
    assert made.beat(beat(term=9), 0.0).leases is None
    assert made.is_deposed
    assert made.latest_term == 9


def test_lost_worker_keeps_its_cameras_until_its_lease_and_the_skew_have_passed():
    made = started()
    held(made, 2, 0.0)
    held(made, 1, 0.1, "b#1")
    made.admit(made.newcomers)
    for step in range(2, 34):
        assert held(made, step, step * 0.1 - 0.001, "b#1").leases == {}
    assert set(held(made, 99, TIMING.expiry_seconds + 0.001, "b#1").leases) == {"north", "south"}


def test_new_director_deals_nothing_before_half_of_the_members_accepted_it_and_leases_ended():
    made = director(term=2, members={"a", "b", "c"})
    for number in range(1, 100):  # nobody has accepted an answer of this term
        assert held(made, number, number * 0.5, "a#1", term=1).leases is None
    held(made, 100, 50.0, "a#1", term=2, answered=99)
    assert made.status(50.0)["awaited"] == ["b", "c"]
    held(made, 1, 50.0, "b#1", term=2)
    assert held(made, 101, 50.0 + TIMING.quiet_seconds - 0.1, "a#1", term=2).leases == {}
    assert len(held(made, 102, 50.0 + TIMING.quiet_seconds, "a#1", term=2).leases) == 2


def test_new_director_of_an_empty_fleet_deals_at_once():
    assert len(held(started(), 2, 0.0).leases) == 2


def test_new_director_adopts_what_beats_report():
    made = director(term=2, members={"a"})
    assert held(made, 7, 0.1, leases={"north": 1048580}, term=1).leases is None
    assert held(made, 8, 0.3, leases={"north": 1048580}, term=2).leases is None
    now = TIMING.handover_seconds + 0.01
    assert held(made, 9, now, leases={"north": 1048580}, term=2).leases == {"north": 1048580}


def test_new_director_believes_the_higher_epoch_of_two_reports():
    made = director(term=2, members={"a", "b"})
    held(made, 7, 1.1, "a#1", leases={"north": 5}, term=2)
    assert held(made, 3, 1.2, "b#1", leases={"north": 7}, term=2).leases == {"north": 7}
    assert held(made, 8, 1.3, "a#1", leases={"north": 5}, term=2).leases == {}


def test_director_deposed_by_the_store_or_by_a_beat_grants_nothing():
    by_store, by_beat = started(), started()
    by_store.confirm(2, 0.2)
    assert by_store.beat(beat(2), 0.2).leases is None
    assert by_beat.beat(beat(2, term=2), 0.2).leases is None
    by_beat.confirm(1, 0.3)
    assert by_beat.beat(beat(3), 0.3).leases is None


def test_director_without_the_store_grants_while_most_members_accept_its_answers():
    made = director({"north": 1.0})
    for name in ("a#1", "b#1", "c#1"):
        made.beat(beat(1, name), 0.0)
    made.admit({"a", "b", "c"})
    grants = {}
    for number in range(2, 12):
        for name in ("a#1", "b#1"):
            grants[name] = made.beat(beat(number, name, term=1, answered=number - 1), number * 0.5)
    assert all(grant.leases is not None for grant in grants.values())
    for number in range(12, 20):  # b is lost as well
        grants["a#1"] = made.beat(beat(number, "a#1", term=1, answered=number - 1), number * 0.5)
    assert grants["a#1"].leases is None


def test_removed_camera_is_free_only_once_its_worker_has_closed_it():
    made = started({"north": 10.0})
    epoch = held(made, 2, 0.1).leases["north"]
    made.apply({})
    assert held(made, 3, 0.2, leases={"north": epoch}).leases == {}
    made.apply({"north": 10.0})
    assert held(made, 4, 0.3, closing={"north": epoch}).leases == {}
    assert held(made, 5, 0.4).leases["north"] > epoch


def test_camera_that_a_node_cannot_open_goes_to_another():
    made = started({"north": 10.0})
    held(made, 1, 0.1, "b#1")
    made.admit(made.newcomers)
    held(made, 2, 0.2)
    assert held(made, 3, 0.3, unable=frozenset({"north"})).leases == {}
    assert "north" in held(made, 2, 0.4, "b#1").leases
    held(made, 3, 0.5, "b#1", unable=frozenset({"north"}))
    assert "no node has a source of this name" in made.where("north")["reason"]


def test_where_names_the_worker_and_the_reason_for_none():
    made = started()
    held(made, 2, 0.0)
    assert made.where("north")["node"] == "a"
    assert made.where("nord")["reason"] == "the fleet has no camera of this name"


def test_compare_cameras_returns_the_differences():
    changes = compare_cameras({"a": 1.0, "b": 1.0, "c": 1.0}, {"b": 2.0, "c": 1.0, "d": 1.0})
    assert (changes.added, changes.changed, changes.removed) == (["d"], ["b"], ["a"])


def test_worker_counts_a_lease_from_its_request():
    leases = WorkerLeases("a#1", "a", TIMING)
    sent = leases.ask(10.0, 1.0)
    assert leases.accept(Grant(sent.number, 1, {"north": 5}))
    assert leases.may_publish("north", 5, 12.99)
    assert not leases.may_publish("north", 5, 13.0)
    assert not leases.may_publish("north", 4, 11.0)
    assert not leases.may_publish("north", None, 11.0)


def test_worker_ignores_answers_to_older_requests_and_of_older_directors():
    leases = WorkerLeases("a#1", "a", TIMING)
    first, second = leases.ask(0.0, 1.0), leases.ask(1.0, 1.0)
    assert not leases.accept(Grant(first.number, 1, {"north": 5}))
    assert leases.accept(Grant(second.number, 2, {}))
    third = leases.ask(1.5, 1.0)
    assert not leases.accept(Grant(third.number, 1, {"north": 5}))
    assert leases.valid(1.6) == {}


def test_worker_goes_on_without_a_director_only_where_it_is_to_keep():
    for keep in (False, True):
        leases = WorkerLeases("a#1", "a", TIMING, keep=keep)
        leases.accept(Grant(leases.ask(0.0, 1.0).number, 1, {"north": 5}))
        assert leases.may_publish("north", 5, 100.0) is keep


def test_answer_without_leases_does_not_shorten_a_lease():
    leases = WorkerLeases("a#1", "a", TIMING)
    leases.accept(Grant(leases.ask(0.0, 1.0).number, 1, {"north": 5}))
    leases.accept(Grant(leases.ask(0.5, 1.0).number, 1, None))
    assert leases.may_publish("north", 5, 2.9)
    assert not leases.may_publish("north", 5, 3.1)


rates = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0.1, 50.0), max_size=20)
limits = st.lists(st.floats(0.0, 200.0), max_size=5)


@given(rates, limits)
def test_deal_never_exceeds_a_limit_and_leaves_out_only_what_fits_nowhere(free, limits):
    workers = [WorkerLoad(f"w{index}", limit) for index, limit in enumerate(limits)]
    dealt = deal(free, workers)
    assert all(worker.load <= worker.limit for worker in workers)
    assert {camera for worker in workers for camera in worker.cameras} == set(dealt)
    for camera in set(free) - set(dealt):
        assert not any(worker.has_room(camera, free[camera]) for worker in workers)
        assert reasons_not_dealt({camera: free[camera]}, workers)[camera]


@given(rates, limits.filter(lambda each: len(each) > 1))
def test_moves_are_few_and_never_raise_the_fullest_worker(cameras, limits):
    workers = [WorkerLoad(f"w{index}", limit) for index, limit in enumerate(limits)]
    deal(cameras, workers[:1])
    before = max((worker.fraction for worker in workers if worker.limit > 0), default=0.0)
    moves = choose_moves(workers, TIMING)
    assert len(moves) <= TIMING.max_moves
    for camera in moves:
        source = next(worker for worker in workers if camera in worker.cameras)
        rate = source.remove(camera)
        deal({camera: rate}, workers)
    assert max((worker.fraction for worker in workers if worker.limit > 0), default=0.0) <= before + 1e-9


def test_moves_need_more_than_the_tolerated_imbalance():
    even = [WorkerLoad("a", 100.0, {"1": 30.0, "2": 30.0}), WorkerLoad("b", 100.0, {"3": 40.0})]
    assert choose_moves(even, TIMING) == []
    uneven = [WorkerLoad("a", 100.0, {"1": 30.0, "2": 30.0}), WorkerLoad("b", 100.0, {"3": 30.0})]
    assert choose_moves(uneven, TIMING) == []  # a move would only turn the imbalance round
    assert choose_moves([WorkerLoad("a", 100.0, {"1": 10.0, "2": 30.0}), WorkerLoad("b", 100.0)], TIMING) == ["1"]

"""Maps within a budget: their time stays within the budget, and each box gets a map at some time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.detectors.schedule import MapRequest, MapScheduler, MapState
from pipeline.frames import Box

COSTS = {0: 0.001, 1: 0.004, 2: 0.030}
PLAIN_SECONDS = 0.020
BOX = Box(0, 0, 10, 10)


def request(level=0, score=0.5, made_at=None, box=BOX, class_index=2):
    last = None if made_at is None else MapState(BOX, 2, made_at)
    return MapRequest(box, class_index, score, level, last)


def explain(scheduler, camera, requests):
    """Explain one frame with the known costs; return the chosen indices."""
    scheduler.record_plain(camera, PLAIN_SECONDS)
    chosen = scheduler.choose(camera, requests)
    levels = [requests[index].level for index in chosen]
    scheduler.record_maps(camera, levels, sum(COSTS[level] for level in levels))
    return chosen


@pytest.mark.slow
@given(
    st.lists(st.lists(st.sampled_from(list(COSTS)), max_size=12), min_size=30, max_size=60),
    st.sampled_from([0.25, 1.0, 2.0]),
)
def test_scheduler_spends_at_most_what_frames_have_earned(frames, fraction):
    scheduler = MapScheduler(fraction)
    for level, seconds in COSTS.items():
        scheduler.expect(level, seconds)
    for levels in frames:
        explain(scheduler, "a", [request(level) for level in levels])
    assert scheduler.map_seconds <= fraction * scheduler.plain_seconds + 1e-9


@pytest.mark.parametrize("new_boxes", [0, 20], ids=["no new boxes", "twenty new boxes in each frame"])
def test_scheduler_gives_each_known_box_its_turn(new_boxes):
    scheduler, made_at = MapScheduler(1.0), dict.fromkeys(range(15), -1.0)
    for index in range(200):
        known = [request(index % 2, made_at=made_at[n]) for n in range(15)]
        for chosen in explain(scheduler, "a", [request(0)] * new_boxes + known):
            if chosen >= new_boxes:
                made_at[chosen - new_boxes] = float(index)
    assert min(made_at.values()) >= 180.0


def test_scheduler_waits_for_an_expensive_box_until_there_is_time():
    scheduler, explained = MapScheduler(1.0), []
    for index in range(12):
        requests = [request(2, made_at=float(index // 3)), *[request(0, made_at=float(index))] * 5]
        explained.append(0 in explain(scheduler, "a", requests))
    assert 4 <= sum(explained) <= 9


def test_scheduler_takes_no_time_of_another_camera():
    alone, shared = MapScheduler(0.5), MapScheduler(0.5)
    few = [request(1, made_at=0.0)] * 3
    for _ in range(20):
        explain(shared, "crowded", [request(2)] * 30)
        assert explain(shared, "quiet", few) == explain(alone, "quiet", few)


def test_scheduler_explains_new_boxes_before_known_ones_and_high_scores_first():
    requests = [request(0, 0.9, made_at=5.0), request(0, 0.3), request(0, 0.8), request(0, 0.4, made_at=1.0)]
    scheduler = MapScheduler(None, max_boxes=2)
    assert explain(scheduler, "a", requests) == [2, 3]
    assert explain(MapScheduler(None), "a", requests) == [2, 3, 1, 0]


@pytest.mark.parametrize(
    "changed",
    [request(made_at=1.0, box=Box(8, 0, 18, 10)), request(made_at=1.0, class_index=7), request()],
    ids=["moved", "other class", "no map"],
)
def test_map_request_is_new_where_its_map_shows_another_state(changed):
    assert changed.is_new
    assert not request(made_at=1.0, box=Box(1, 0, 11, 10)).is_new


def test_scheduler_saves_no_more_than_two_frames_for_later():
    scheduler = MapScheduler(1.0)
    scheduler.expect(0, COSTS[0])
    for _ in range(100):
        explain(scheduler, "a", [])
    assert len(explain(scheduler, "a", [request(0)] * 200)) <= 2 * PLAIN_SECONDS / COSTS[0]

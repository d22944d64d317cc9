"""Overlays become events; no test waits, and no database is opened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlays.events.drift import DriftObserver
from overlays.events.event import KINDS
from overlays.events.passages import make_passage_observer
from overlays.events.tracker import (
    EVIDENCE_SECONDS,
    SEEN_SECONDS,
    EventTracker,
    make_condition_observer,
    observe_disagreement,
    observe_guards,
)
from pipeline.frames import Box, Finding, Overlay
from pipeline.guards.parser import parse_condition
from pipeline.guards.state import GuardState
from pipeline.passages.passage import PassageCursor
from pipeline.ports import MetricSample
from pipeline.trial import Trial
from tests.support.events import WALL, explanation, guard, shown, silent
from tests.support.passages import part, with_passages

WHEN = "label=scratch and score>0.8"


def tracker(*, gap=2.0):
    observers = [observe_guards, make_condition_observer(WHEN, parse_condition(WHEN))]
    return EventTracker(observers, gap_seconds=gap)


def tell(tracked, story):
    """Give (seconds, overlay) pairs to a tracker and return all changes."""
    return [change for seconds, overlay in story for change in tracked.update(overlay, WALL + seconds)]


def quiet(seconds, **facts):
    return shown(seconds, label="ok", **facts)


def alarm(seconds, inside, **facts):
    return shown(seconds, label="ok", inside=inside, **facts)


def test_frames_without_cause_make_no_event():
    assert tell(tracker(), [(k / 10, quiet(k / 10)) for k in range(20)]) == []


def test_guard_that_fires_is_one_event_until_it_ends():
    tracked = tracker()
    changes = tell(tracked, [(0.0, quiet(0.0)), (0.1, alarm(0.1, 0.4)), (0.2, alarm(0.2, 0.4)), (2.3, quiet(2.3))])
    assert [change.event.end for change in changes] == [None, WALL + 0.2]
    assert len({change.event.id for change in changes}) == 1
    assert (changes[0].event.kind, changes[0].event.rule, changes[0].event.label) == ("guard", "grounded", "ok")
    assert (tracked.begun_count, tracked.open_count) == (1, 0)


def test_alarm_that_comes_and_goes_is_one_event():
    story = [(float(k), alarm(float(k), 0.4) if k % 2 else quiet(float(k))) for k in range(100)]
    tracked = tracker(gap=2.0)
    tell(tracked, story)
    assert (tracked.begun_count, tracked.open_count) == (1, 1)
    without_gap = tracker(gap=0.0)
    ends = {change.event.end for change in tell(without_gap, story)} - {None}
    assert (without_gap.begun_count, len(ends)) == (50, 49)
    assert min(ends) == WALL + 2.0  # with its first frame without


def test_event_begins_when_its_guard_began_to_fire():
    made = explanation(5.0, label="ok")
    late = replace(made, guards=(guard(0.4, seconds=3.0),))
    [begun] = tell(tracker(), [(5.0, Overlay(made.frame.image, late))])
    assert begun.event.start == WALL + 2.0


def test_event_is_described_by_its_worst_frame():
    story = [(0.0, 0.4), (2.0, 0.1), (4.0, 0.3)]
    changes = tell(tracker(), [(s, alarm(s, inside)) for s, inside in story] + [(6.0, quiet(6.0))])
    assert changes[-1].event.figure.value == 0.1
    assert changes[-1].event.text.endswith("is 0.10")
    shown_frames = [change.overlay.explanation.frame.captured_at for change in changes if change.overlay]
    assert shown_frames == [0.0, 2.0]


def test_worse_frames_in_quick_succession_wait_for_the_image():
    step = EVIDENCE_SECONDS / 10
    story = [(k * step, alarm(k * step, 0.4 - k / 100)) for k in range(5)]
    changes = tell(tracker(gap=0.0), [*story, (5 * step, quiet(5 * step))])
    assert [change.overlay is not None for change in changes] == [True, True]
    assert changes[-1].overlay.explanation.frame.captured_at == pytest.approx(4 * step)


def test_condition_is_one_event_across_a_gap():
    story = [(0.0, shown(0.0)), (0.5, quiet(0.5)), (1.5, shown(1.5)), (2.0, quiet(2.0)), (3.6, quiet(3.6))]
    changes = tell(tracker(gap=2.0), story)
    assert len({change.event.id for change in changes}) == 1
    assert changes[-1].event.end == WALL + 1.5  # its last frame


def test_condition_is_two_events_across_a_longer_gap():
    story = [(0.0, shown(0.0)), (2.5, quiet(2.5)), (3.0, shown(3.0))]
    assert len({change.event.id for change in tell(tracker(gap=2.0), story)}) == 2


def test_frame_after_a_longer_gap_begins_a_new_event():
    story = [(0.0, alarm(0.0, 0.4)), (1.0, quiet(1.0)), (9.0, alarm(9.0, 0.4))]
    changes = tell(tracker(gap=2.0), story)
    assert [change.event.end for change in changes] == [None, WALL, None]
    slow = [(float(k), alarm(float(k), 0.4)) for k in range(0, 40, 5)]  # a frame in 5 s
    assert len({change.event.id for change in tell(tracker(gap=2.0), slow)}) == 1


def test_condition_names_the_highest_score():
    story = [(0.0, shown(0.0, score=0.85)), (1.5, shown(1.5, score=0.97)), (3.0, shown(3.0, score=0.9))]
    figure = tell(tracker(), story)[-1].event.figure
    assert (figure.name, figure.value) == ("highest score", 0.97)


def test_lost_signal_is_an_event_from_the_last_frame_to_the_next():
    story = [(0.0, quiet(0.0)), (2.0, silent(2.0, 2.0)), (3.0, silent(3.0, 3.0, "unreachable")), (9.0, quiet(9.0))]
    changes = tell(tracker(), story)
    assert (changes[0].event.kind, changes[0].event.start, changes[0].event.text) == ("signal_loss", WALL, "refused")
    assert (changes[-1].event.end, changes[-1].event.text) == (WALL + 9.0, "unreachable")


def test_guard_goes_on_through_a_lost_signal():
    story = [(0.0, alarm(0.0, 0.4)), (2.0, silent(2.0, 2.0)), (9.0, alarm(9.0, 0.4)), (9.1, quiet(9.1))]
    guards = {change.event.id for change in tell(tracker(), story) if change.event.kind == "guard"}
    assert len(guards) == 1


def metrics(camera, psi, bound=0.25, shift=-1.8, statistic="focus_area"):
    labels = (("camera", camera), ("label", "ok"), ("statistic", statistic))
    values = {"drift_psi": psi, "drift_psi_bound": bound, "drift_shift": shift, "drift_other": 1.0}
    return [MetricSample(name, value, "", labels=labels) for name, value in values.items()]


def test_drift_is_one_event_from_its_bound_to_half_of_it():
    observer, tracked = DriftObserver(), tracker()
    changes = []
    for second, psi in enumerate((0.2, 0.3, 0.2, 0.4, 0.13, 0.12, 0.2)):
        observed = observer.observe([*metrics("line", psi), *metrics("line", 0.26, statistic="score")[:2]])
        changes += tracked.drift(observed, WALL + second)
        changes += tracked.update(quiet(second), WALL + second)
    begun, ended = changes[0].event, changes[-1].event
    assert (begun.kind, begun.rule, begun.camera, begun.start) == ("drift", "drift of ok", "line", WALL + 1.0)
    assert (ended.id, ended.end, tracked.begun_count) == (begun.id, WALL + 5.0, 1)
    assert ended.figure[:3] == ("PSI of focus_area", 0.4, 0.25)
    assert ended.text.startswith("focus_area of ok: population stability index 0.40, bound 0.25; mean -1.8")
    both = observer.observe([*metrics("line", 0.5), *metrics("line", 0.3, statistic="score")])
    assert both["line"][0].text.endswith("; 1 further statistic")


def test_long_event_is_reported_again():
    story = [(float(k), alarm(float(k), 0.4)) for k in range(int(3 * SEEN_SECONDS))]
    seen = [change.event.seen - WALL for change in tell(tracker(), story)]
    assert seen == [0.0, SEEN_SECONDS, 2 * SEEN_SECONDS]


def test_events_of_cameras_are_apart_and_end_with_their_camera():
    tracked = tracker()
    tell(tracked, [(0.0, alarm(0.0, 0.4, camera="a")), (0.0, alarm(0.0, 0.4, camera="b"))])
    [ended] = tracked.end_camera("a", WALL + 1.0)
    assert (ended.event.camera, ended.event.end, tracked.open_count) == ("a", WALL + 1.0, 1)
    assert [change.event.camera for change in tracked.end_all(WALL + 2.0)] == ["b"]


def test_clock_that_goes_back_ends_no_event_before_its_beginning():
    changes = tell(tracker(), [(100.0, alarm(0.0, 0.4)), (50.0, quiet(1.0))])
    assert changes[-1].event.end == changes[-1].event.start == WALL + 100.0


def test_guard_on_boxes_names_the_box_of_its_message():
    made = explanation(0.0)
    boxes = tuple(
        Finding(label, 0.9, made.first.heat, 0, Box(0, 0, 9, 9), track=k) for k, label in ((1, "car"), (2, "van"))
    )
    state = GuardState("seen", True, 1.0, "van #2: score >= 0.95, but is 0.90", 1)
    explained = replace(made, findings=boxes, guards=(state,))
    [begun] = tell(EventTracker([observe_guards]), [(0.0, Overlay(made.frame.image, explained))])
    assert (begun.event.label, begun.event.track) == ("van", 2)


def test_identifiers_sort_by_time():
    tracked = tracker(gap=0.0)
    story = [(float(k), alarm(float(k), 0.4) if k % 2 else quiet(float(k))) for k in range(20)]
    begun = [change.event for change in tell(tracked, story) if change.event.end is None]
    assert [event.id for event in begun] == sorted(event.id for event in begun)
    assert {event.kind for event in begun} <= set(KINDS)


def passing(recorded, *passages, repeated=1):
    """Give frames that carry passages to a tracker and return the changes."""
    tracked = EventTracker([make_passage_observer(recorded, PassageCursor())])
    carrying = with_passages(explanation(2.0, camera="road"), *passages)
    story = [(2.0 + k, Overlay(carrying.frame.image, carrying)) for k in range(repeated)]
    return tell(tracked, story)


def test_rejected_part_is_an_event_of_one_moment_with_its_own_image():
    rejected = part(2, label="dent", is_ok=False, score=0.8)
    [change] = passing("rejected", part(1), rejected, repeated=3)
    event = change.event
    assert (event.kind, event.rule, event.label, event.track) == ("part", "station", "dent", 2)
    assert event.text == "part 2 at station: dent 80%, rejected, 12 frames in 0.5 s"
    assert event.start == event.end == WALL + 2.0
    cut = change.overlay.explanation
    assert cut.frame.image.shape == rejected.image.shape
    assert cut.first.box == Box(10.0, 10.0, 50.0, 50.0)  # the image begins at (10, 20) of the frame


@pytest.mark.parametrize(("recorded", "kinds"), [("all", ["part", "part", "crossing"]), ("none", [])])
def test_passages_become_events_as_configured(recorded, kinds):
    crossing = part(3, kind="crossing", place="gate", is_ok=None, direction="forward")
    changes = passing(recorded, part(1), part(2, is_ok=False), crossing, repeated=2)
    assert [change.event.kind for change in changes] == kinds


def test_networks_that_differ_are_one_event_across_a_gap():
    def tried(seconds, difference):
        overlay = quiet(seconds)
        return Overlay(overlay.image, replace(overlay.explanation, trial=Trial("new", (), difference)))

    tracked = EventTracker([observe_disagreement], gap_seconds=2.0)
    story = [(k, tried(k, difference)) for k, difference in enumerate(("", "adds 1 ok", "", "adds 1 ok", "", "", ""))]
    changes = tell(tracked, story)
    begun, ended = changes[0].event, changes[-1].event
    assert (begun.kind, begun.rule, begun.text, begun.label) == ("disagreement", "new", "adds 1 ok", "ok")
    assert (begun.start, ended.id, ended.end) == (WALL + 1.0, begun.id, WALL + 3.0)
    assert tracked.begun_count == 1


def test_part_that_the_network_on_trial_decides_otherwise_is_an_event():
    [change] = passing("none", part(1, trial_label="ok"), part(2, trial_label=""), repeated=2)
    assert (change.event.kind, change.event.text) == ("disagreement", "part 2 at station: no box instead of ok")

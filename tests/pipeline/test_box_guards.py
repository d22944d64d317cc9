"""Guards on a detector's boxes: each track has its own times, and the guard fires while one of them violates it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError
from pipeline.frames import Box
from pipeline.guards.alert import MAX_TRACKS, AlertState, slack
from pipeline.guards.config import GuardConfig, check_boxes
from pipeline.guards.drift import BaselineRecorder, DriftDetector, numbers_of
from pipeline.guards.monitor import DriftTracking, ExplanationMonitor
from pipeline.guards.parser import parse_condition, parse_rule
from pipeline.guards.variables import RuleContext
from pipeline.ports import Explainer
from tests.support.detections import GRID, detection, detection_frame, detections, heat_at

BOX, CORNER = Box(100, 10, 140, 50), Box(0, 100, 20, 120)
HONEST, SHORTCUT = heat_at(BOX), heat_at(CORNER)
RULE = "evidence_outside_box <= 0.5 when label=car and score>0.5"
LEFT = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
RATE = 25.0


def guards(rule=RULE, **more):
    rules = [{"name": "grounded", "rule": rule, "hold_seconds": 0.4, "clear_seconds": 0.6, **more}]
    return validate_config({"guards": {"regions": [LEFT], "rules": rules}}, "run.yaml").guards


class Detecting(Explainer):
    """Returns the boxes of a script: a function of the frame's index."""

    def __init__(self, script, box_mode="keep"):
        self.script, self.box_mode = script, box_mode

    def explain(self, frames):
        return [detections(frame, self.script(frame.index)) for frame in frames]


def watched(script, count, settings=None, **frame):
    monitor = ExplanationMonitor(Detecting(script), settings or guards())
    return [monitor.explain([detection_frame(index, rate=RATE, **frame)])[0] for index in range(count)]


def firing(explained):
    return [each.frame.index for each in explained if each.firing]


def car(track, heat, index, **more):
    return detection(BOX, track=track, heat=heat, index=index, **more)


def test_guard_fires_within_a_second_when_the_evidence_of_a_track_moves_outside():
    explained = watched(lambda k: [car(1, HONEST, k), car(2, HONEST if k < 50 else SHORTCUT, k)], 100)
    assert firing(explained) == list(range(60, 100))
    assert explained[60].firing[0].message == "car #2: evidence_outside_box <= 0.5, but is 1.00"


def test_guard_is_silent_for_honest_maps():
    dice = np.random.default_rng(3)

    def script(k):
        heat = np.maximum(HONEST, 0.3 * dice.random(GRID).astype(np.float32))
        return [car(track, heat, k) for track in range(1, 1 + int(dice.integers(0, 6)))]

    assert firing(watched(script, 300)) == []


def test_violations_of_different_tracks_do_not_add_up():
    # In every frame one track violates the rule, but none for the hold time.
    assert firing(watched(lambda k: [car(k // 8, SHORTCUT, k)], 200)) == []


def test_guard_ends_after_the_clear_time_when_the_track_vanishes():
    explained = watched(lambda k: [car(2, SHORTCUT, k)] if k < 30 else [], 80)
    # The clear time counts from the first frame without the track, as it does for a classifier.
    assert firing(explained) == list(range(10, 45))
    gone = "car #2: evidence_outside_box <= 0.5; is not in this frame; last violated 0.2 s ago"
    assert explained[34].firing[0].message == gone


def test_guard_continues_while_any_track_violates():
    explained = watched(lambda k: [car(1 + (k >= 40), SHORTCUT, k), *([car(2, SHORTCUT, k)] if k >= 20 else [])], 80)
    assert firing(explained) == list(range(10, 80))
    assert {each.fire_count for one in explained for each in one.firing} == {1}


def test_message_names_the_worst_track_of_its_frame():
    half = np.maximum(HONEST, 0.0) + 0.5 * SHORTCUT * 16 / 4 * 3
    heats = {1: HONEST, 2: (half / half.max()).astype(np.float32), 3: SHORTCUT}
    explained = watched(lambda k: [car(t, heats[t if k < 30 else 5 - t if t > 1 else 1], k) for t in heats], 40)
    assert explained[20].firing[0].message.startswith("car #3: evidence_outside_box <= 0.5, but is 1.00; 1 more")
    assert explained[35].firing[0].message.startswith("car #2: evidence_outside_box <= 0.5, but is 1.00; 1 more")


def test_margin_is_kept_per_track():
    weak = HONEST + 0.9 * SHORTCUT * 16 / 4 / 1.0
    near = (weak / weak.max()).astype(np.float32)  # 0.47 of the evidence is outside
    settings = guards(margin=0.1)
    explained = watched(lambda k: [car(1, SHORTCUT if k < 20 else near, k), car(2, near, k)], 60, settings)
    assert firing(explained) == list(range(10, 60))
    message = explained[-1].firing[0].message
    assert message == "car #1: evidence_outside_box <= 0.5 by a margin of 0.1, but is 0.47"
    assert firing(watched(lambda k: [car(2, near, k)], 60, settings)) == []


def test_box_without_a_map_violates_nothing():
    assert firing(watched(lambda _: [car(1, None, 0)], 60)) == []
    assert firing(watched(lambda _: [car(1, None, 0)], 60, guards("not heat_inside(box) < 0.5"))) == []
    assert firing(watched(lambda k: [car(1, np.zeros(GRID, np.float32), k)], 60)) == []


def test_message_gives_the_age_of_an_older_map():
    (*_, last) = watched(lambda k: [car(1, SHORTCUT, 0, age_seconds=k / RATE)], 30)
    assert last.firing[0].message == "car #1: evidence_outside_box <= 0.5, but is 1.00 (measured 1.2 s ago)"
    (*_, last) = watched(lambda k: [car(1, SHORTCUT, 0, age_seconds=k / RATE)], 30, guards("score >= 0.95"))
    assert last.firing[0].message == "car #1: score >= 0.95, but is 0.90"


def test_rule_applies_to_boxes_of_its_class_and_region():
    settings = guards("heat_inside(left) <= 0.5 when label=person")
    assert firing(watched(lambda k: [car(1, SHORTCUT, k)], 60, settings)) == []
    explained = watched(lambda k: [car(1, SHORTCUT, k), car(2, SHORTCUT, k, label="person")], 60, settings)
    assert explained[-1].firing[0].message == "person #2: heat_inside(left) <= 0.5, but is 1.00"


def test_boxes_of_a_class_without_tracks_share_their_times():
    explained = watched(lambda k: [car(None, HONEST, k), car(None, SHORTCUT, k)], 30)
    assert firing(explained) == list(range(10, 30))
    assert explained[-1].firing[0].message == "car: evidence_outside_box <= 0.5, but is 1.00"


def test_tracks_of_another_file_are_other_tracks():
    monitor = ExplanationMonitor(Detecting(lambda k: [car(1, SHORTCUT, k)]), guards())
    frames = [detection_frame(k, rate=RATE, source_name=f"{k // 8}.jpg") for k in range(80)]
    assert not any(monitor.explain([frame])[0].firing for frame in frames)


def test_drop_of_a_box_is_that_of_the_frame_of_its_map():
    settings = guards("score_drop_when_masked >= 0.3")
    # The scale is 0.5: without the hottest cell the score is 0.05 to 0.5 lower, whatever the score is now.
    for heat, expected in ((HONEST, []), (0.1 * HONEST, list(range(10, 30)))):
        script = lambda k, heat=heat: [car(1, heat, 0, mode="drop", score=0.9 - 0.02 * k)]  # noqa: E731
        assert firing(watched(script, 30, settings)) == expected
    assert firing(watched(lambda k: [car(1, HONEST, k)], 30, settings)) == []
    finding = car(1, np.zeros(GRID, np.float32), 0, mode="drop")
    against = replace(finding, box_map=replace(finding.box_map, against=np.full(GRID, 0.4, np.float32)))
    assert parse_condition("score_drop_when_masked < -0.19")(detections(detection_frame(0), [against]))


@pytest.mark.parametrize(("mode", "warned"), [("keep", "set engine.boxes.mode: drop"), ("drop", "")])
def test_monitor_warns_of_a_drop_that_is_never_known(mode, warned, caplog):
    ExplanationMonitor(Detecting(lambda _: [], mode), guards("score_drop_when_masked >= 0.3"))
    assert warned in caplog.text
    assert bool(caplog.text) == bool(warned)


def test_guard_counts_the_boxes_of_a_frame_and_sees_when_there_are_none():
    settings = guards("boxes >= 1")
    explained = watched(lambda k: [car(1, HONEST, k)] if k < 20 else [], 60, settings)
    assert firing(explained) == list(range(30, 60))
    assert explained[-1].firing[0].message == "boxes >= 1, but is 0"
    crowd = guards("boxes <= 2 when label=car")
    assert firing(watched(lambda k: [car(t, HONEST, k) for t in range(3)], 20, crowd)) == list(range(10, 20))


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("evidence_outside_box > 0.5 and track=2", True),
        ("evidence_outside_box > 0.5 and track=1", False),
        ("heat_inside(box) > 0.9", True),
        ("boxes = 2", True),
        ("boxes > 2", False),
        ("guard", False),
    ],
)
def test_condition_holds_when_any_box_satisfies_it(text, held):
    (explained,) = watched(lambda k: [car(1, HONEST, k), car(2, SHORTCUT, k)], 1)
    assert parse_condition(text, {"region": set()})(explained) is held


def test_condition_on_the_number_of_boxes_holds_without_boxes():
    (explained,) = watched(lambda _: [], 1)
    assert parse_condition("boxes = 0")(explained)
    assert not parse_condition("boxes > 0")(explained)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("heat_inside(box) >= 0.5 when evidence_outside_box > 0.6 and heat_inside(box) > 0.4", "is never true"),
        ("heat_inside(box) >= 0.4 when evidence_outside_box < 0.6", "always true if the rule applies"),
        ("boxes >= 0", "always true"),
        ("boxes >= 1 when label=car", "always true if the rule applies"),
        ("boxes < 3 when boxes > 2 and boxes < 3", "after 'when' is never true"),
        ("boxes <= 1001", "character 10, '1001': boxes should be a number from 0 to 1000"),
        ("evidence_outside_box <= 1.5", "from 0 to 1"),
        ("evidence_outside_bx <= 0.5", "Did you mean 'evidence_outside_box'"),
        ("heat_inside(bux) >= 0.5", "unknown region"),
    ],
)
def test_rule_on_boxes_is_refused_with_the_reason(rule, message):
    with pytest.raises(ConfigError) as refused:
        guards(rule)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        "heat_inside(box) >= 0.5 when label=car and score>0.5",
        "evidence_outside_box <= 0.3 when heat_inside(box) > 0.5",
        "score_drop_when_masked >= 0.1 when boxes < 5",
        "score_drop_when_masked <= -0.1 when track > 3",
        "boxes >= 1",
        "boxes <= 20 when track = 7",
    ],
)
def test_rule_on_boxes_that_can_be_met_and_violated_is_accepted(rule):
    assert guards(rule).rules[0].rule == rule
    if rule.startswith("score"):
        assert "score_drop_when_masked" not in parse_rule(rule).needs_boxes


@pytest.mark.parametrize(
    "rule", [RULE, "heat_inside(box) > 0.5", "score > 0.5 when boxes < 3", "score > 0.5 when track=2"]
)
def test_rule_on_boxes_is_refused_for_a_classifier(rule):
    with pytest.raises(
        ConfigError,
        match=r"guards.rules\[0\].rule: .* exists only for the boxes of a detector, but the network is a class",
    ):
        check_boxes(guards(rule))
    check_boxes(guards("heat_inside(left) > 0.5 when score > 0.3"))


def test_condition_on_boxes_is_refused_for_a_classifier():
    with pytest.raises(
        ConfigError, match="character 15, 'evidence_outside_box': exists only for the boxes of a detector"
    ):
        parse_condition("label=car and evidence_outside_box > 0.5", {"box": set()})
    with pytest.raises(ConfigError, match=r"in mode keep; set engine\.boxes\.mode: drop"):
        parse_condition("score_drop_when_masked > 0.5", {"box": {"box"}, "check": set()})


@given(st.lists(st.lists(st.sampled_from([None, "honest", "shortcut", "blind"]), min_size=3, max_size=3), max_size=60))
def test_guard_equals_the_union_of_guards_on_single_tracks(story):
    heats = {"honest": HONEST, "shortcut": SHORTCUT, "blind": None}
    config = GuardConfig(name="grounded", rule="focus_area >= 0.05", hold_seconds=0.2, clear_seconds=0.3)

    def contexts(k, tracks):
        found = [car(t, heats[state], k) for t, state in enumerate(story[k]) if state is not None and t in tracks]
        explained = ExplanationMonitor(Detecting(lambda _: found)).process(detections(detection_frame(k), found))
        frame = RuleContext(explained, None, None)
        return frame, [frame._replace(finding=finding) for finding in explained.findings]

    together, alone = AlertState(config), [AlertState(config) for _ in range(3)]
    for k in range(len(story)):
        state = together.update_boxes(*contexts(k, {0, 1, 2}), k / 25)
        single = [alert.update_boxes(*contexts(k, {t}), k / 25).firing for t, alert in enumerate(alone)]
        assert state.firing == any(single)
        assert (state.message != "") == state.firing


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_slack_is_the_largest_margin_that_a_finding_meets(score, other, bound, bound_2):
    rule = parse_rule(f"score >= {bound} and not focus_area > {bound_2}")
    finding = car(1, HONEST, 0, score=score)
    (measured,) = (
        ExplanationMonitor(Detecting(lambda _: [])).process(detections(detection_frame(0), [finding])).findings
    )
    stats = replace(measured.heatmap_stats, focus_area=other)
    measured = replace(measured, heatmap_stats=stats)
    context = RuleContext(detections(detection_frame(0), [measured]), measured, None)
    assert slack(rule, context) == pytest.approx(min(score - bound, bound_2 - other), abs=1e-6)


def test_alert_keeps_a_bounded_number_of_tracks():
    alert = AlertState(GuardConfig(name="grounded", rule="score >= 0.95", hold_seconds=0, clear_seconds=3600))
    for k in range(50):
        found = [detection(BOX, track=60 * k + t) for t in range(60)]
        frame = RuleContext(detections(detection_frame(k), found), None, None)
        state = alert.update_boxes(frame, [frame._replace(finding=finding) for finding in found], k / 25)
    assert len(alert._subjects) == MAX_TRACKS
    assert state.firing


def test_drift_and_baseline_accept_boxes_with_and_without_maps():
    recorder = BaselineRecorder()
    monitor = ExplanationMonitor(Detecting(lambda k: [[], [car(1, None, k)], [car(1, HONEST, k)]][k % 3]),
                                 slow=DriftTracking(recorder=recorder))  # fmt: skip
    explained = [monitor.explain([detection_frame(k, rate=1.0)])[0] for k in range(120)]
    assert [set(numbers_of(each)) >= {"heat_inside(box)"} for each in explained[:3]] == [False, False, True]
    assert set(numbers_of(explained[0])) == set()
    assert set(numbers_of(explained[1])) == {"score"}
    baseline = recorder.baseline()
    assert baseline["cameras"]["road"]["car"]["samples"] == 80
    drift = DriftDetector(baseline, 600.0)
    for each in explained:
        drift.add(each)
    assert {report.statistic for report in drift.reports()} >= {"score", "heat_inside(box)"}
    samples = {(sample.name, *dict(sample.labels).values()): sample.value for sample in monitor.metrics()}
    assert samples["heat_inside", "road", "box"] == pytest.approx(1.0)

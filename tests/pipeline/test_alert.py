"""Guards fire and end by the clock of the frames; no test waits."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.frames import DeletionCheck, Explanation, Finding, Frame, HeatmapStats
from pipeline.guards.alert import AlertState
from pipeline.guards.config import GuardConfig
from pipeline.guards.state import GuardFigure
from pipeline.guards.variables import RuleContext

RULE = "heat_inside(part) >= 0.6 when label=scratch and score>0.5"


def alarm(rule=RULE, hold=0.5, clear=1.0, margin=0.0):
    return AlertState(GuardConfig(name="grounded", rule=rule, hold_seconds=hold, clear_seconds=clear, margin=margin))


def facts(inside=0.9, label="scratch", score=0.9, drop=None):
    grounds = HeatmapStats(0.1, 0.2, (1.0, 1.0), None, {} if inside is None else {"part": inside})
    finding = Finding(label, score, np.zeros((1, 1), np.float32), 0, heatmap_stats=grounds)
    checked = None if drop is None else DeletionCheck(label, score, score - drop, 0, 0.1)
    seen = Explanation(Frame(np.zeros((2, 2, 3), np.uint8), "line", 0, 0.0), (finding,), "m", "l", deletion=checked)
    return RuleContext(seen, finding, checked)


def run(guard, story):
    """Judge (seconds, inside) pairs and return when it fired."""
    return [seconds for seconds, inside in story if guard.update(facts(inside), seconds).firing]


def test_alert_fires_after_the_hold_time():
    story = [(k / 10, 0.1) for k in range(10)]
    assert run(alarm(), story)[0] == 0.5


def test_alert_fires_at_once_without_a_hold_time():
    assert run(alarm(hold=0), [(3.0, 0.1)]) == [3.0]


def test_alert_restarts_the_hold_time_after_a_frame_that_meets_the_rule():
    story = [(0.0, 0.1), (0.4, 0.1), (0.5, 0.7), (0.6, 0.1), (1.0, 0.1), (1.1, 0.1)]
    assert run(alarm(), story) == [1.1]


def test_alert_ends_after_the_clear_time():
    guard = alarm()
    run(guard, [(0.0, 0.1), (0.5, 0.1)])
    assert run(guard, [(k / 10, 0.9) for k in range(6, 30)])[-1] == 1.5


def test_alert_continues_through_single_frames_that_meet_the_rule():
    guard = alarm()
    story = [(0.0, 0.1), (0.5, 0.1)] + [(0.6 + k / 10, 0.9 if k % 9 else 0.1) for k in range(60)]
    assert len(run(guard, story)) == 61
    assert guard.fire_count == 1


def test_alert_bounds_are_stricter_by_the_margin_while_it_fires():
    guard = alarm(margin=0.1)
    assert run(guard, [(0.0, 0.59), (0.5, 0.59)]) == [0.5]
    assert len(run(guard, [(1 + k / 10, 0.65) for k in range(30)])) == 30
    assert run(guard, [(4 + k / 10, 0.71) for k in range(30)])[-1] == 4.9


def test_alert_margin_makes_bounds_stricter_through_not_and_or():
    for rule, alert, near in (
        ("focus_area <= 0.2", 0.05, 0.15),
        ("not focus_area > 0.2", 0.05, 0.15),
        ("not (focus_area > 0.2 or score < 0)", 0.05, 0.15),
    ):
        guard = alarm(rule, margin=0.1)
        for value, held in ((alert, True), (near, False)):
            seen = facts()
            grounds = HeatmapStats(value, 0.2, (1.0, 1.0), None)
            actual = Finding("scratch", 0.9, np.zeros((1, 1), np.float32), 0, heatmap_stats=grounds)
            assert guard.rule.requirement(RuleContext(seen.explanation, actual, None), 0.1) is held
            assert guard.rule.requirement(RuleContext(seen.explanation, actual, None), 0.0) is True


def test_alert_rule_is_met_where_its_condition_is_false():
    guard = alarm(hold=0)
    assert not guard.update(facts(0.1, label="dent"), 0.0).firing
    assert not guard.update(facts(0.1, score=0.4), 0.1).firing
    assert guard.update(facts(0.1), 0.2).firing


def test_alert_rule_is_met_where_a_number_is_unknown():
    guard = alarm(hold=0)
    assert not guard.update(facts(None), 0.0).firing
    assert not alarm("not heat_inside(part) < 0.5", hold=0).update(facts(None), 0.0).firing


def test_alert_restarts_the_hold_time_after_a_pause_or_a_clock_that_goes_back():
    assert run(alarm(), [(0.0, 0.1), (5.0, 0.1), (5.4, 0.1), (5.5, 0.1)]) == [5.5]
    assert run(alarm(), [(7.0, 0.1), (0.0, 0.1), (0.4, 0.1), (0.5, 0.1)]) == [0.5]


def test_alert_does_not_fire_without_findings():
    empty = Explanation(Frame(np.zeros((2, 2, 3), np.uint8), "line", 0, 0.0), (), "m", "l")
    assert not alarm(hold=0).update(RuleContext(empty, None, None), 0.0).firing
    assert not alarm("focus_area <= 0.1", hold=0).update(RuleContext(empty, None, None), 0.0).firing


def test_alert_message_names_the_rule_and_the_value():
    assert alarm(hold=0).update(facts(0.123), 0.0).message == "heat_inside(part) >= 0.6, but is 0.12"
    both = alarm("heat_inside(part) >= 0.6 and focus_area <= 0.2", hold=0).update(facts(0.123), 0.0)
    assert both.message.endswith("but heat_inside(part) is 0.12, focus_area is 0.10")


@pytest.mark.parametrize(("inside", "shown"), [(0.0, "0.00"), (0.004, "0.004"), (0.0004, "0.0004"), (0.25, "0.25")])
def test_alert_message_shows_a_small_value_not_as_zero(inside, shown):
    guard = alarm("heat_inside(part) >= 0.6", hold=0)
    assert guard.update(facts(inside), 1.0).message == f"heat_inside(part) >= 0.6, but is {shown}"


def test_alert_seconds_follow_the_clock_of_the_frames():
    guard = alarm(hold=0)
    assert [guard.update(facts(0.1), 100 + k / 2).seconds for k in range(4)] == [0.0, 0.5, 1.0, 1.5]


def test_alert_ignores_a_deletion_check_of_another_class():
    guard = alarm("score_drop_when_masked >= 0.2 when score>0.5", hold=0)
    assert guard.update(facts(drop=0.05), 0.0).firing
    stale = facts(drop=0.05)
    other = Finding("dent", 0.9, np.zeros((1, 1), np.float32), 1)
    assert guard.rule.requirement(RuleContext(stale.explanation, other, stale.explanation.deletion), 0.0) is None


@pytest.mark.parametrize("rate", [1.0, 12.5, 30.0, 59.94])
def test_alert_hold_time_is_exact_to_one_frame_at_any_rate(rate):
    fired = run(alarm(hold=0.5), [(k / rate, 0.1) for k in range(200)])[0]
    assert 0.5 - 1e-6 <= fired < 0.5 + 1 / rate


def number_in(message):
    return float(re.search(r"\bis (\d\.\d+)", message)[1])


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_alert_message_names_the_value_of_its_own_frame(margin):
    guard = alarm(hold=0.0, margin=margin)
    rng = np.random.default_rng(5)
    firing = []
    for k, inside in enumerate(rng.uniform(0.3, 0.9, 400).round(3).tolist()):
        state = guard.update(facts(inside), k / 10)
        if state.firing:
            firing.append((inside, state.message))
    assert len(firing) > 200
    assert any("met again" in message for _, message in firing)
    for inside, message in firing:
        assert number_in(message) == pytest.approx(inside, abs=0.0051)


def test_alert_message_names_no_value_where_the_rule_does_not_apply():
    guard = alarm(hold=0.0)
    guard.update(facts(0.03), 0.0)
    message = guard.update(facts(0.522, label="ok"), 0.4).message
    assert message == "heat_inside(part) >= 0.6; does not apply to this frame; last violated 0.4 s ago"


def test_alert_message_shows_more_decimals_near_the_bound():
    assert alarm(hold=0).update(facts(0.5996), 0.0).message == "heat_inside(part) >= 0.6, but is 0.5996"


def test_alert_message_names_the_margin_for_a_value_within_it():
    guard = alarm(hold=0, margin=0.05)
    guard.update(facts(0.1), 0.0)
    assert guard.update(facts(0.62), 0.1).message == "heat_inside(part) >= 0.6 by a margin of 0.05, but is 0.62"


def test_figure_is_the_number_of_the_frame_that_violates_the_rule():
    guard = alarm(hold=0)
    state = guard.update(facts(0.25), 0.0)
    assert state.figure == GuardFigure("heat_inside(part)", 0.25, 0.6, pytest.approx(-0.35))
    assert guard.update(facts(0.9), 0.1).figure is None  # it still fires, but this frame meets the rule


@pytest.mark.parametrize(("rule", "name"), [
    ("heat_inside(part) >= 0.6 and focus_area<0.05", "heat_inside(part)"),
    ("heat_inside(part) >= 0.1 and focus_area<0.05", "focus_area"),
    ("heat_inside(part) >= 0.6 or focus_area<0.05", "focus_area"),
])  # fmt: skip
def test_figure_is_the_number_that_decides_a_rule_with_several_comparisons(rule, name):
    state = alarm(rule, hold=0).update(facts(0.25), 0.0)
    assert state.figure.name == name
    assert state.figure.slack < 0

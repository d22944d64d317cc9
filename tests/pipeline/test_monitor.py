"""The explanation monitor: statistics, guards and the budget of deletion checks."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config_loader import validate_config
from pipeline.frames import Explanation, Finding, Frame
from pipeline.guards.drift import BaselineRecorder, DriftDetector
from pipeline.guards.monitor import DriftTracking, ExplanationMonitor
from pipeline.guards.parser import parse_condition
from pipeline.input_area import InputArea
from pipeline.loop import Pipeline
from pipeline.ports import Explainer, Renderer
from pipeline.result import RunLimits
from tests.support.fakes import FakeSource

REGIONS = [{"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}]
GROUNDED = {"name": "grounded", "rule": "heat_inside(left) >= 0.6 when label=scratch", "hold_seconds": 0.2}
MASKED = {"name": "stands", "rule": "score_drop_when_masked >= 0.2 when label=scratch", "hold_seconds": 0}


def guards(*rules, **more):
    return validate_config({"guards": {"regions": REGIONS, "rules": list(rules)} | more}, "t").guards


class Seer(Explainer):
    """Finds ``scratch`` on the left before a frame index, and on the right from it on; each batch takes 0.01 s."""

    def __init__(self, turns=10**9, label="scratch"):
        self.turns, self.label, self.now = turns, label, 0.0

    def explain(self, frames):
        self.now += 0.01 * len(frames)
        return [self.explained(frame) for frame in frames]

    def explained(self, frame):
        heat = np.zeros((2, 4), np.float32)
        heat[0, 0 if frame.index < self.turns else 3] = 1.0
        return Explanation(frame, (Finding(self.label, 0.9, heat, 1),), "m", "l")


class Doubting(Seer):
    """Returns a lower score when masked; a check takes a given time."""

    can_mask = True
    left, cost = 0.1, 0.01

    def score_when_masked(self, explanation, finding, masking):
        self.now += self.cost
        self.masked = getattr(self, "masked", 0) + 1
        return self.left


def frames(count, camera="line", rate=30.0):
    return [Frame(np.zeros((20, 40, 3), np.uint8), camera, k, k / rate, k / rate) for k in range(count)]


def guarded(monitor, options):
    results = []
    for frame in options:
        results.extend(monitor.explain([frame]))
        monitor.after_batch()
    return results


def test_monitor_computes_statistics_without_guards():
    result = guarded(ExplanationMonitor(Seer()), frames(3))
    assert [explanation.first.heatmap_stats.focus_area for explanation in result] == [0.125] * 3
    assert result[2].first.heatmap_stats.stability == pytest.approx(1.0)
    assert all(
        explanation.guards == () and explanation.regions == () and explanation.deletion is None
        for explanation in result
    )


def test_monitor_fires_for_heat_outside_the_region():
    result = guarded(ExplanationMonitor(Seer(turns=30), guards(GROUNDED)), frames(60))
    first = next(k for k, explanation in enumerate(result) if explanation.firing)
    assert first == 30 + 6
    assert result[first].firing[0].message == "heat_inside(left) >= 0.6, but is 0.00"
    assert result[-1].guards[0].fire_count == 1


def test_monitor_logs_the_start_and_the_end_of_firing_once(caplog):
    caplog.set_level(logging.INFO, "pipeline.guards.monitor")
    monitor = ExplanationMonitor(seer := Seer(turns=30), guards(GROUNDED))
    logged = frames(200)
    guarded(monitor, logged[:100])
    seer.turns = 10**9
    guarded(monitor, logged[100:])
    message = [record.getMessage() for record in caplog.records]
    assert message == [
        "line: guard grounded fires: heat_inside(left) >= 0.6, but is 0.00",
        "line: guard grounded ended; it fired for 3.1 s",
    ]


def test_monitor_keeps_alerts_by_camera():
    monitor = ExplanationMonitor(Seer(turns=0), guards(GROUNDED))
    guarded(monitor, frames(60, "a"))
    (other,) = guarded(monitor, frames(1, "b"))
    assert not other.firing
    assert monitor.fire_counts() == {("a", "grounded"): 1, ("b", "grounded"): 0}


def test_monitor_warns_once_of_a_region_outside_the_image(caplog):
    regions = [*REGIONS, {"name": "elsewhere", "polygon": [[500, 500], [600, 500], [600, 600]]}]
    monitor = validate_config({"guards": {"regions": regions}}, "t").guards
    guarded(ExplanationMonitor(Seer(), monitor), frames(5))
    assert [record.getMessage() for record in caplog.records] == [
        "line: region elsewhere lies outside the image of 40x20 pixels: it never contains heat"
    ]


def test_monitor_warns_of_a_region_outside_the_roi(caplog):
    regions = [{"name": name, "polygon": [[x, 0], [x + 10, 0], [x + 10, 10]]} for name, x in (("in", 5), ("out", 25))]
    options = validate_config({"guards": {"regions": regions}}, "t").guards
    area = InputArea.around(((0.0, 0.0), (20.0, 0.0), (20.0, 20.0), (0.0, 20.0)), (), 40, 20)
    guarded(ExplanationMonitor(Seer(), options), [replace(frame, area=area) for frame in frames(2)])
    assert [record.getMessage() for record in caplog.records] == [
        "line: region out lies outside the camera's roi of 20x20 pixels: it never contains heat"
    ]


@pytest.mark.parametrize(("draw", "calm", "alarmed"), [("always", 1, 1), ("firing", 0, 1), ("never", 0, 0)])
def test_monitor_shows_regions_as_configured(draw, calm, alarmed):
    result = guarded(ExplanationMonitor(Seer(turns=30), guards(GROUNDED, draw=draw)), frames(60))
    assert (len(result[0].regions), len(result[-1].regions)) == (calm, alarmed)


def test_monitor_states_match_the_condition_guard():
    result = guarded(ExplanationMonitor(Seer(turns=30), guards(GROUNDED)), frames(60))
    for text, held in (("guard", True), ("guard=grounded", True), ("guard!=grounded", False), ("not guard", False)):
        assert parse_condition(text, {"guard": {"grounded"}})(result[-1]) is held
        assert parse_condition(text, {"guard": {"grounded"}})(result[0]) is not held
    assert parse_condition("heat_inside(left) < 0.1 and focus_area < 0.2")(result[-1])


def test_monitor_keeps_the_budget_of_deletion_checks_and_gives_their_age():
    seer = Doubting()
    monitor = ExplanationMonitor(seer, guards(MASKED, deletion={"budget": 0.02}), clock=lambda: seer.now)
    result = guarded(monitor, frames(3000))
    assert monitor.overhead_budget.fraction <= 0.02
    assert monitor.overhead_budget.checks == seer.masked > 50
    items = [explanation.deletion for explanation in result if explanation.deletion is not None]
    assert items[0].drop == pytest.approx(0.8)
    assert items[0].age_seconds == pytest.approx(1 / 30, abs=1e-3)
    assert max(explanation.age_seconds for explanation in items) < 5.0
    assert not any(explanation.firing for explanation in result)


def test_monitor_fires_for_a_score_that_stays_with_masked_heat():
    seer = Doubting()
    seer.left = 0.85
    monitor = ExplanationMonitor(seer, guards(MASKED), clock=lambda: seer.now)
    result = guarded(monitor, frames(300))
    assert result[-1].firing[0].message == "score_drop_when_masked >= 0.2, but is 0.05 (measured 0.1 s ago)"


def test_monitor_checks_only_findings_to_which_a_rule_applies():
    seer = Doubting(label="ok")
    monitor = ExplanationMonitor(seer, guards(MASKED), clock=lambda: seer.now)
    guarded(monitor, frames(500))
    assert monitor.overhead_budget.checks == 0


def test_monitor_checks_cameras_in_turn():
    seer = Doubting()
    monitor = ExplanationMonitor(seer, guards(MASKED, deletion={"budget": 0.5}), clock=lambda: seer.now)
    checked = set()
    for k in range(60):
        pair = [replace(frames(1, name)[0], index=k, pts_seconds=k / 30) for name in ("a", "b")]
        checked |= {
            explanation.frame.camera for explanation in monitor.explain(pair) if explanation.deletion is not None
        }
        monitor.after_batch()
    assert checked == {"a", "b"}


def test_monitor_discards_an_old_deletion_check():
    seer = Doubting()
    monitor = ExplanationMonitor(seer, guards(MASKED, deletion={"max_age_seconds": 1.0}), clock=lambda: seer.now)
    guarded(monitor, frames(200))
    seer.label = "ok"
    result = guarded(
        monitor, [replace(explanation, pts_seconds=explanation.pts_seconds + 8) for explanation in frames(2)]
    )
    assert result[0].deletion is None


def test_monitor_warns_of_an_explainer_without_deletion_checks(caplog):
    guarded(ExplanationMonitor(Seer(), guards(MASKED)), frames(3))
    assert "rules that use it never fire" in caplog.text


def test_monitor_returns_metrics_of_the_explainer_and_its_own():
    baseline = BaselineRecorder()
    guarded(ExplanationMonitor(Seer(), slow=DriftTracking(recorder=baseline)), frames(1500))
    slow = DriftTracking(DriftDetector(baseline.baseline(), 60.0))
    seer = Doubting(turns=0)
    monitor = ExplanationMonitor(seer, guards(GROUNDED, MASKED), slow=slow, clock=lambda: seer.now)
    guarded(monitor, frames(1500))
    metrics = {
        (explanation.name, *dict(explanation.labels).values()): explanation.value for explanation in monitor.metrics()
    }
    assert metrics["guard_firing", "line", "grounded"] == 1.0
    assert metrics["guard_fired", "line", "grounded"] == 1.0
    assert metrics["focus_area", "line"] == pytest.approx(0.125)
    assert metrics["heat_inside", "line", "left"] == 0.0
    assert metrics["score_drop_when_masked", "line"] == pytest.approx(0.8)
    assert metrics["drift_psi", "line", "scratch", "centre_x"] > 0.25
    assert metrics["drift_psi", "line", "scratch", "entropy"] < 0.1
    assert 0.0 < metrics[("deletion_time_share",)] <= 0.02


def test_pipeline_calls_after_batch():
    seer = Doubting()
    monitor = ExplanationMonitor(seer, guards(MASKED, deletion={"budget": 0.5}), clock=lambda: seer.now)

    class Plain(Renderer):
        def render(self, explanation):
            raise AssertionError("nobody looks")

        def render_stale(self, explanation, silence):
            raise AssertionError("nobody looks")

    with FakeSource(50) as source:
        Pipeline([(source, "wait")], monitor, Plain(), [], limits=RunLimits(batch_size=1), stop=threading.Event()).run()
    assert monitor.overhead_budget.checks > 5


@pytest.mark.parametrize("where", ["score", "heat"])
def test_monitor_fires_no_guard_for_a_frame_that_is_not_finite(where):
    class Broken(Seer):
        def explained(self, frame):
            change = {"score": math.nan} if where == "score" else {"heat": np.full((2, 4), np.nan, np.float32)}
            seen = super().explained(frame)
            return replace(seen, findings=(replace(seen.first, **change),))

    monitor = ExplanationMonitor(Broken(), guards(GROUNDED | {"rule": "score >= 0.6 and heat_inside(left) >= 0.6"}))
    assert not any(explanation.firing for explanation in guarded(monitor, frames(60)))
    assert set(monitor.fire_counts().values()) <= {0}


def test_monitor_uses_other_rules_and_regions_from_the_next_frame_on():
    loose = GROUNDED | {"name": "loose", "rule": "score >= 0.95", "hold_seconds": 0}
    monitor = ExplanationMonitor(Seer(turns=0), guards(GROUNDED, loose))
    shown = frames(20)
    explained = [monitor.explain([each])[0] for each in shown[:10]]
    assert [guard.firing for guard in explained[-1].guards] == [True, True]
    right = {"regions": [{"name": "left", "polygon": [[0.5, 0], [1, 0], [1, 1], [0.5, 1]]}]}
    monitor.update(
        validate_config({"guards": right | {"rules": [GROUNDED, loose | {"rule": "score >= 0.5"}]}}, "t").guards
    )
    seen = monitor.explain([shown[10]])[0]
    grounded, other = seen.guards
    assert seen.regions[0].polygon[0] == (seen.frame.width / 2, 0)
    assert grounded.fire_count == 1, "an unchanged guard goes on"
    assert grounded.firing, "until its rule was met for clear_seconds"
    assert (other.firing, other.fire_count) == (False, 0), "a changed guard begins anew"
    assert monitor.fire_counts()["line", "loose"] == 1, "what it counted before is not lost"
    monitor.update(guards())
    assert monitor.explain([shown[11]])[0].guards == ()
    assert monitor.fire_counts()["line", "grounded"] == 1


def test_monitor_begins_deletion_checks_with_the_first_rule_that_needs_them():
    doubting, shown = Doubting(), frames(2)
    monitor = ExplanationMonitor(doubting, guards(GROUNDED), clock=lambda: doubting.now)
    monitor.explain([shown[0]])
    assert monitor.overhead_budget is None
    monitor.update(guards(GROUNDED, MASKED))
    monitor.explain([shown[1]])
    assert monitor.overhead_budget is not None

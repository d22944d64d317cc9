"""The history of what rules need: a rule fires on it as it fired live, within bounds of memory."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config_loader import validate_config
from pipeline.frames import Box, DeletionCheck, Explanation, Finding, Frame
from pipeline.guards.history import HISTORY_SECONDS, RuleHistory
from pipeline.guards.monitor import ExplanationMonitor
from pipeline.ports import Explainer
from tests.support.detections import detection, detection_frame, detections, heat_at

LEFT = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
TOP = {"name": "top", "polygon": [[0, 0], [1, 0], [0.7, 0.4]]}
RULES = (
    "heat_inside(left) >= 0.55 when label=scratch and score>0.4",
    "focus_area <= 0.3 and heat_inside(top) < 0.1",
    "centre_x < 0.6 and centre_y > 0.2 and entropy < 0.9",
    "stability > 0.9",
)
BOX_RULES = (
    "heat_inside(left) >= 0.4",
    "evidence_outside_box <= 0.6 when label=car",
    "score_drop_when_masked >= 0.3",
    "boxes <= 2",
    "heat_inside(box) > 0.3 and track < 3",
)


def guards(rules, regions=(LEFT, TOP)):
    listed = [{"name": f"r{number}", "rule": rule, "hold_seconds": 0.2, "clear_seconds": 0.3, "margin": 0.05}
              for number, rule in enumerate(rules)]  # fmt: skip
    return validate_config({"guards": {"regions": list(regions), "rules": listed}}, "t").guards


class Scripted(Explainer):
    """Returns the explanations of a function of the frame."""

    def __init__(self, script):
        self.script = script

    def explain(self, frames):
        return [self.script(frame) for frame in frames]


def frame_at(index, rate=10.0):
    return Frame(np.zeros((60, 80, 3), np.uint8), "door", index, 100.0 + index / rate)


def wandering(seed=3):
    """Return a script whose hot spot, label and score change over time."""
    generator = np.random.default_rng(seed)
    noise, spots = generator.random((400, 7, 7)), generator.integers(0, 7, (400, 2))

    def script(frame):
        heat = (0.4 * noise[frame.index]).astype(np.float32)
        heat[tuple(spots[frame.index // 9])] = 1.0
        if frame.index % 50 == 49:
            heat[:] = 0.0
        label = "scratch" if frame.index % 80 < 60 else "ok"
        return Explanation(frame, (Finding(label, 0.3 + 0.6 * float(noise[frame.index, 0, 0]), heat, 1),), "m", "l")

    return script


def watched(script, frames, rules):
    """Return the history, and the times at which each guard began to fire live."""
    settings, history = guards(rules), RuleHistory()
    monitor = ExplanationMonitor(Scripted(script), settings, history=history)
    begun = {guard.name: [] for guard in settings.rules}
    before = dict.fromkeys(begun, 0)
    for frame in frames:
        (seen,) = monitor.explain([frame])
        for guard in seen.guards:
            if guard.fire_count > before[guard.name]:
                before[guard.name] = guard.fire_count
                begun[guard.name].append(frame.captured_at)
    return history, settings, begun


def test_history_of_a_classifier_fires_as_the_guards_did_live():
    history, settings, begun = watched(wandering(), map(frame_at, range(400)), RULES)
    assert sum(map(len, begun.values())) > 8, "the script violates the rules"
    assert all(begun.values())
    for guard in settings.rules:
        past = history.alarms("door", guard, settings.regions)
        assert [start for start, _, _ in past.spans] == begun[guard.name], guard.rule
        assert (past.count, past.frames) == (len(begun[guard.name]), 400)
        assert past.known_seconds == pytest.approx(39.9)
        assert all(guard.parsed.text in text for _, _, text in past.spans)


def boxes_of(frame):
    """Return two or three boxes whose maps are made every fourth frame, and point elsewhere for a while."""
    index, made = frame.index, frame.index - frame.index % 4
    found = []
    for track in range(1, 3 + (index // 30) % 2):
        box = Box(40 * track - 30, 20, 40 * track, 60)
        place = box if (made // 40 + track) % 2 else Box(0, 60, 40, 100)
        heat = heat_at(place) * (0.3 if (made // 24) % 2 else 1.0)
        found.append(detection(box, heat=heat.astype(np.float32), track=track, label="car" if track % 2 else "person",
                               mode="drop", index=made, age_seconds=(index - made) / 25.0))  # fmt: skip
    return detections(frame, found)


def test_history_of_boxes_fires_as_the_guards_did_live():
    history, settings, begun = watched(boxes_of, map(detection_frame, range(180)), BOX_RULES)
    assert all(begun.values()), "the script violates each rule"
    for guard in settings.rules:
        past = history.alarms("road", guard, settings.regions)
        assert [start for start, _, _ in past.spans] == begun[guard.name], guard.rule
    # A map of 12 x 16 cells is kept once for the four frames that have it, not once for each.
    assert history.size < 180 * 1200


def test_history_of_a_regions_change_is_computed_for_the_new_region():
    history, _, _ = watched(wandering(), map(frame_at, range(400)), RULES[:1])
    other = guards(RULES[:1], [LEFT | {"polygon": [[0, 0], [0.9, 0], [0.9, 1], [0, 1]]}])
    _, _, begun = watched(wandering(), map(frame_at, range(400)), ())
    assert begun == {}
    live = ExplanationMonitor(Scripted(wandering()), other)
    counts = [live.explain([frame_at(index)])[0].guards[0].fire_count for index in range(400)]
    assert history.alarms("door", other.rules[0], other.regions).count == counts[-1]


def test_history_keeps_within_its_bytes_and_seconds():
    history = RuleHistory(max_camera_bytes=20_000, max_bytes=30_000)
    script = wandering()
    for index in range(300):
        history.record(script(frame_at(index)))
    assert 15_000 < history.size <= 20_000
    other = Frame(np.zeros((60, 80, 3), np.uint8), "gate", 0, 100.0)
    history.record(Explanation(other, script(frame_at(0)).findings, "m", "l"))
    history.record(script(frame_at(300)))
    assert history.size <= 30_000
    late = Frame(np.zeros((60, 80, 3), np.uint8), "door", 1, 200.0 + HISTORY_SECONDS)
    history.record(Explanation(late, script(frame_at(0)).findings, "m", "l"))
    guard = guards(["score < 0.1"]).rules[0]
    assert history.alarms("door", guard).frames == 1
    assert history.alarms("nobody", guard).frames == 0


def test_rule_is_tried_on_the_newest_frames_of_many(monkeypatch):
    history, script = RuleHistory(), wandering()
    for index in range(60):
        history.record(script(frame_at(index)))
    guard = guards(["score < 0.1"]).rules[0]
    whole = history.alarms("door", guard)
    monkeypatch.setattr("pipeline.guards.history.MAX_REPLAYED_FINDINGS", 20)
    part = history.alarms("door", guard)
    assert (whole.frames, part.frames) == (60, 20)
    assert part.since == pytest.approx(whole.since + 4.0)
    assert part.known_seconds == pytest.approx(1.9)


def test_history_keeps_a_deletion_check():
    history = RuleHistory()
    check = DeletionCheck("scratch", 0.9, 0.8, 0, 0.0)
    heat = np.eye(3, dtype=np.float32)
    for index in range(5):
        found = (Finding("scratch", 0.9, heat, 1),)
        history.record(Explanation(frame_at(index), found, "m", "l", deletion=check))
    rule = guards(["score_drop_when_masked >= 0.2"]).rules[0]
    assert history.alarms("door", rule).spans[0][2] == "score_drop_when_masked >= 0.2, but is 0.10"

"""A second network on trial: it sees the same frames, decides nothing, and is compared with the first."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest

from overlays.render.renderer import HeatRenderer
from pipeline.frames import NO_HEAT, Box, Explanation, Finding
from pipeline.loop import Pipeline
from pipeline.ports import Explainer
from pipeline.result import RunLimits
from pipeline.trial import Comparison, TimeBound, Trial, TrialExplainer
from tests.support.detections import detection, detection_frame, detections
from tests.support.fakes import FakeSource

BOX, NEAR, FAR = Box(10, 10, 50, 50), Box(12, 10, 52, 50), Box(40, 10, 80, 50)


def _classes(*scores):
    return Explanation(detection_frame(0), tuple(Finding(label, score, NO_HEAT) for label, score in scores), "m", "l")


def _boxes(*boxes):
    return detections(detection_frame(0), [detection(box, label=label, score=score) for label, score, box in boxes])


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ([("ok", 0.9)], [("ok", 0.7)], ""),
        ([("ok", 0.9)], [("ok", 0.5)], "ok 50% instead of ok 90%"),
        ([("ok", 0.9)], [("ok", 0.4), ("dent", 0.6)], "dent 60% instead of ok 90%"),
        ([("ok", 0.1), ("dent", 0.9)], [("dent", 0.95)], ""),
    ],
)
def test_classifiers_differ_by_their_top_class_or_its_score(first, second, difference):
    assert Comparison().difference(_classes(*first), _classes(*second)) == difference


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ([], [], ""),
        ([("ok", 0.9, BOX)], [("ok", 0.35, NEAR)], ""),  # the partner may have any score
        ([("ok", 0.45, BOX)], [], ""),  # too faint to differ
        ([("ok", 0.9, BOX)], [], "without 1 ok"),
        ([("ok", 0.9, BOX)], [("dent", 0.8, BOX)], "without 1 ok, adds 1 dent"),
        ([("ok", 0.9, BOX)], [("ok", 0.9, FAR)], "without 1 ok, adds 1 ok"),
        ([("ok", 0.9, BOX)], [("ok", 0.9, BOX), ("ok", 0.9, NEAR)], "adds 1 ok"),  # one partner each
        ([], [("ok", 0.9, BOX), ("dent", 0.9, BOX), ("ok", 0.9, FAR)], "adds 2 ok, 1 dent"),
    ],
)
def test_detectors_differ_by_boxes_without_a_partner(first, second, difference):
    assert Comparison().difference(_boxes(*first), _boxes(*second)) == difference


def test_largest_number_of_boxes_is_matched():
    """The best pair by overlap would leave two boxes without partners."""
    left, middle, right = (Box(x, 0, x + 40, 40) for x in (0, 8, 16))
    one, other = _boxes(("ok", 0.9, middle), ("ok", 0.9, left)), _boxes(("ok", 0.9, middle), ("ok", 0.9, right))
    assert Comparison().difference(one, other) == ""


class Seen(Explainer):
    """Finds one class in every frame, and keeps the frames."""

    def __init__(self, label, score=0.9, error_at=None):
        self.label, self.score, self.error_at = label, score, error_at
        self.frames, self.forgotten = [], []

    def explain(self, frames):
        self.frames += frames
        if self.error_at is not None and self.frames[-1].index >= self.error_at:
            raise RuntimeError("no memory")
        return [Explanation(each, (Finding(self.label, self.score, NO_HEAT),), "m", "l") for each in frames]

    def forget_camera(self, camera):
        self.forgotten.append(camera)


def _explained(explainer, count=1):
    return [explainer.explain([detection_frame(index)])[0] for index in range(count)]


def test_first_network_decides_and_the_second_is_named_beside_it():
    [explained] = _explained(TrialExplainer(Seen("ok"), Seen("dent"), "new"))
    assert explained.first.label == "ok"
    assert explained.trial is not None
    assert (explained.trial.name, explained.trial.findings[0].label) == ("new", "dent")
    assert explained.trial.difference


def test_both_networks_get_the_frames_of_one_decoding():
    source, first, second = FakeSource(5), Seen("ok"), Seen("dent")
    explainer = TrialExplainer(first, second, "new")
    limits, stop = RunLimits(batch_size=2), threading.Event()
    result = Pipeline([(source, "wait")], explainer, HeatRenderer(), [], limits=limits, stop=stop).run()
    assert source.given == result.explained == len(first.frames) == 5
    assert [id(each) for each in first.frames] == [id(each) for each in second.frames]


def test_error_of_the_second_network_ends_the_trial_and_not_the_run(caplog):
    explainer = TrialExplainer(Seen("ok"), Seen("dent", error_at=2), "new")
    explained = _explained(explainer, 5)
    assert [each.trial is not None for each in explained] == [True, True, False, False, False]
    assert [each.first.label for each in explained] == ["ok"] * 5
    assert caplog.text.count("network new on trial has failed") == 1
    assert {s.name: s.value for s in explainer.metrics()} == {
        "trial_frames": 2, "trial_left_out": 0, "disagreements": 2, "trial_failed": 1.0,
    }  # fmt: skip


def test_second_network_that_forgets_or_counts_wrongly_ends_the_trial_and_not_the_run(caplog):
    class Forgets(Seen):
        def forget_camera(self, camera):
            raise KeyError(camera)

    class Drops(Seen):
        def explain(self, frames):
            return super().explain(frames)[:-1]

    for second in (Forgets("ok"), Drops("ok")):
        first = Seen("ok")
        explainer = TrialExplainer(first, second, "new")
        explained = explainer.explain([detection_frame(0), detection_frame(1)])
        explainer.forget_camera("road")
        assert first.forgotten == ["road"]
        assert [each.first.label for each in explained] == ["ok", "ok"]
        assert [each.trial is not None for each in _explained(explainer, 2)] == [False, False]
    assert "1 explanations for 2 frames" in caplog.text


def test_numbers_of_the_second_network_that_are_not_finite_are_a_difference():
    [explained] = _explained(TrialExplainer(Seen("ok"), Seen("ok", math.nan), "new"))
    assert explained.trial is not None
    assert (explained.trial.findings, explained.trial.difference) == ((), "its numbers are not finite")


def test_summary_counts_frames_by_camera_also_after_it_left():
    first, second = Seen("ok"), Seen("ok")
    explainer = TrialExplainer(first, second, "new")
    _explained(explainer, 3)
    second.label = "dent"
    _explained(explainer, 1)
    explainer.forget_camera("road")
    assert first.forgotten == second.forgotten == ["road"]
    assert explainer.summary() == ["new on road: differs in 1 of 4 frames (25.0%)"]


def test_box_on_trial_at_a_place_is_the_one_that_overlaps_most():
    trial = Trial("new", (detection(FAR, label="a"), detection(NEAR, label="b"), detection(BOX, label="c")))
    assert (found := trial.at(Box(10, 10, 50, 51))) is not None
    assert found.label == "c"
    assert trial.at(Box(100, 100, 120, 120)) is None
    assert replace(trial, findings=()).at(BOX) is None


class Slow(Seen):
    """Takes some seconds of a clock for each frame."""

    def __init__(self, clock, seconds, label="ok"):
        super().__init__(label)
        self.clock, self.seconds = clock, seconds

    def explain(self, frames):
        self.clock[0] += self.seconds * len(frames)
        return super().explain(frames)


def _timed(seconds, ratio, drops_frames=lambda _camera: True):
    """Return a network of 1 s per frame with another one on trial beside it."""
    clock = [0.0]
    bound = TimeBound(ratio, drops_frames)
    second = Slow(clock, seconds)
    return TrialExplainer(Slow(clock, 1.0), second, "new", bound=bound, clock=lambda: clock[0]), second, clock


@pytest.mark.parametrize(("seconds", "explained"), [(0.5, 100), (2.0, 100), (4.0, 50), (10.0, 20), (40.0, 5)])
def test_slow_network_on_trial_takes_its_share_of_the_time_and_one_frame_more(seconds, explained):
    explainer, second, clock = _timed(seconds, ratio=2.0)
    found = _explained(explainer, 100)
    assert len(second.frames) == explained
    assert clock[0] - 100.0 <= 2.0 * 100.0 + seconds
    assert sum(each.trial.is_compared for each in found) == explained
    counts = {s.name: s.value for s in explainer.metrics() if s.name.startswith("trial_")}
    assert counts == {"trial_frames": explained, "trial_left_out": 100 - explained, "trial_failed": 0.0}
    left_out = f"; {100 - explained} frames were left out, because it is slower than max_time_ratio allows"
    assert explainer.summary() == [
        f"new on road: differs in 0 of {explained} frames (0.0%){left_out if explained < 100 else ''}"
    ]


@pytest.mark.parametrize(("ratio", "drops_frames"), [(None, True), (2.0, False)])
def test_without_a_bound_and_on_files_a_slow_network_explains_every_frame(ratio, drops_frames):
    explainer, second, _ = _timed(10.0, ratio, lambda _camera: drops_frames)
    _explained(explainer, 10)
    assert len(second.frames) == 10


def test_network_on_trial_that_holds_up_cameras_is_warned_of_once(caplog):
    for seconds, warnings in ((0.9, 0), (1.5, 1)):
        explainer, _, _ = _timed(seconds, ratio=2.0)
        _explained(explainer, 3)
        assert caplog.text.count(f"network new on trial takes {seconds} s for a frame") == warnings


def test_slow_network_on_trial_explains_frames_of_each_of_several_cameras():
    explainer, second, _ = _timed(4.0, ratio=2.0)
    for index in range(20):
        explainer.explain([replace(detection_frame(index), camera="left" if index % 2 else "right")])
    assert [each.camera for each in second.frames].count("left") == len(second.frames) // 2 == 5


def test_first_network_that_was_fast_saves_no_time_for_the_second():
    explainer, second, _ = _timed(0.1, ratio=2.0)
    _explained(explainer, 50)
    second.seconds = 20.0
    before = len(second.frames)
    _explained(explainer, 10)
    assert len(second.frames) - before == 1

"""Drift detection against a baseline, with formulas calculated by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.frames import Explanation, Finding, Frame, HeatmapStats
from pipeline.guards.drift import (
    BINS,
    MIN_SAMPLES,
    BaselineRecorder,
    DriftDetector,
    numbers_of,
    psi,
    psi_bound,
    read_baseline,
)

PIXELS = np.zeros((10, 20, 3), np.uint8)
HEAT = np.zeros((1, 1), np.float32)


def seen(seconds, focus=0.1, label="scratch", score=0.9, camera="line"):
    grounds = HeatmapStats(focus, 0.4, (10.0, 5.0), None, {"part": 0.8})
    return Explanation(
        Frame(PIXELS, camera, 0, 0.0, seconds), (Finding(label, score, HEAT, 1, heatmap_stats=grounds),), "m", "l"
    )


def recorded(values, **more):
    recorder = BaselineRecorder()
    for second, value in enumerate(values):
        recorder.add(seen(float(second), value, **more))
    return json.loads(json.dumps(recorder.baseline()))


def test_psi_equals_a_calculation_by_hand():
    assert psi([0.5, 0.5], [0.25, 0.75]) == pytest.approx(-0.25 * math.log(0.5) + 0.25 * math.log(1.5))
    assert psi([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.27465, abs=1e-5)
    assert psi([0.2] * 5, [0.2] * 5) == 0.0


def test_bound_is_a_large_change_and_more_than_chance():
    assert psi_bound(5, 3600, 600) == 0.25
    assert psi_bound(5, 30, 30) == pytest.approx(23.5 * 2 / 30, rel=0.04)  # chi-squared, 4 degrees of freedom, 0.0001
    random = np.random.default_rng(1)
    drawn = random.multinomial(40, [0.2] * 5, size=(2000, 2)) + 0.5
    by_chance = [psi(*(pair / pair.sum(axis=1, keepdims=True)).tolist()) for pair in drawn]
    assert np.mean(np.array(by_chance) > psi_bound(5, 40, 40)) <= 0.001
    assert np.mean(np.array(by_chance) > 0.25) > 0.1  # the rule of thumb alone


def test_numbers_of_returns_the_numbers_of_the_top_class():
    assert numbers_of(seen(0.0)) == {
        "score": 0.9, "focus_area": 0.1, "entropy": 0.4, "centre_x": 0.5, "centre_y": 0.5, "heat_inside(part)": 0.8,
    }  # fmt: skip
    assert numbers_of(Explanation(Frame(PIXELS, "line", 0, 0.0), (), "m", "l")) == {}


def test_sampler_accepts_one_frame_per_second_camera_and_label():
    recorder = BaselineRecorder()
    for k in range(100):
        recorder.add(seen(k / 10))
        recorder.add(seen(k / 10, label="dent"))
    result = recorder.baseline()["cameras"]["line"]
    assert (result["scratch"]["samples"], result["dent"]["samples"]) == (10, 10)


def test_baseline_bins_have_equal_counts():
    spread = recorded(np.linspace(0, 1, 100))["cameras"]["line"]["scratch"]["statistics"]["focus_area"]
    assert len(spread["edges"]) == BINS - 1
    assert spread["shares"] == pytest.approx([1 / BINS] * BINS, abs=0.02)
    assert spread["mean"] == pytest.approx(0.5)
    assert spread["quantiles"][5] == pytest.approx(0.5)


def drifted(baseline, values, seconds=600.0):
    drift = DriftDetector(baseline, seconds)
    for second, value in enumerate(values):
        drift.add(seen(float(second), value))
    return {report.statistic: report for report in drift.reports()}


def test_detector_reports_a_changed_distribution_alone():
    dice = np.random.default_rng(5)
    baseline = recorded(dice.normal(0.3, 0.05, 600))
    same = drifted(baseline, dice.normal(0.3, 0.05, 300))["focus_area"]
    other = drifted(baseline, dice.normal(0.45, 0.05, 300))["focus_area"]
    assert same.psi < 0.1
    assert abs(same.shift) < 0.3
    assert other.psi > 0.25
    assert other.shift == pytest.approx(3.0, abs=0.3)


def test_detector_reports_a_changed_spread_with_the_same_mean():
    dice = np.random.default_rng(6)
    wide = drifted(recorded(dice.normal(0.3, 0.02, 600)), dice.normal(0.3, 0.1, 300))["focus_area"]
    assert wide.psi > 0.25
    assert abs(wide.shift) < 1.0


def test_detector_reports_nothing_with_few_samples():
    assert drifted(recorded([0.1] * 100), [0.5] * (MIN_SAMPLES - 2)) == {}
    assert drifted(recorded([0.1] * (MIN_SAMPLES - 2)), [0.5] * 100) == {}


def test_detector_weights_samples_by_age():
    baseline = recorded(np.linspace(0.0, 1.0, 200))
    came_back = drifted(baseline, [0.99] * 100 + list(np.tile(np.linspace(0, 1, 50), 6)), seconds=60.0)["focus_area"]
    assert came_back.psi < 0.1


def test_baseline_gives_a_constant_value_a_bin_of_its_own():
    items = [drifted(recorded([0.1] * 100), [value] * 100)["focus_area"].psi for value in (0.1, 0.05, 0.15)]
    assert items[0] < 0.01
    assert min(items[1:]) > 0.25


SPREAD = {"count": 50, "mean": 0.5, "std": 0.1, "edges": [0.4, 0.6], "shares": [0.2, 0.6, 0.2]}


@pytest.mark.parametrize(
    "damage",
    [
        {"count": math.inf}, {"count": -50}, {"mean": math.nan}, {"std": math.inf}, {"edges": [0.6, 0.4]},
        {"edges": [0.4, math.nan]}, {"shares": [-0.2, 1.0, 0.2]},
    ],
)  # fmt: skip
def test_read_baseline_refuses_impossible_numbers(damage):
    def text(spread):
        cameras = {"line": {"ok": {"samples": 50, "statistics": {"score": spread}}}}
        return json.dumps({"format": "recipro-stream baseline 1", "cameras": cameras})

    read_baseline(text(SPREAD), "base.json")
    with pytest.raises(ConfigError, match="damaged"):
        read_baseline(text(SPREAD | damage), "base.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a baseline"),
        ("[" * 100_000, "not a baseline"),
        ("[1]", "record the baseline again"),
        ('{"format": "recipro-stream baseline 9"}', "is not 'recipro-stream baseline 1'"),
        ('{"format": "recipro-stream baseline 1"}', "damaged"),
        ('{"format": "recipro-stream baseline 1", "cameras": {"a": {"b": {"statistics": {"c": {}}}}}}', "damaged"),
    ],
)
def test_read_baseline_refuses_other_files(text, message):
    with pytest.raises(ConfigError, match=message):
        read_baseline(text, "base.json")

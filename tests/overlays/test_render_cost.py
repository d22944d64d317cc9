"""The benchmark times what it says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench" / "render_cost.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("render_cost", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_render_cost_prints_one_json_line_with_every_option(bench, capsys):
    text = bench.main(["--height", "90", "--width", "160", "--repeats", "3"])
    assert json.loads(capsys.readouterr().out) == text
    assert set(text["options"]) == {*bench.OPTIONS, "crop"}
    for times in text["options"].values():
        assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"]
    assert text["size"] == "160x90"
    assert cv2.getNumThreads() == 1


def test_render_cost_refuses_to_time_a_renderer_that_draws_nothing(bench):
    explanation = bench.explanations(90, 160, 7, crop=False)[0]
    with pytest.raises(AssertionError):
        bench.check(explanation, bench.HeatRenderer(opacity=0.0, legend=False))

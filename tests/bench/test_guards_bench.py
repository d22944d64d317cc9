"""The benchmark of guards measures what it says."""

from __future__ import annotations

import json

import pytest

from tests.bench import box_guards, guards


@pytest.mark.slow
def test_guards_bench_prints_cost_alarm_and_delay(capsys):
    result = guards.main(
        ["--backend", "eager", "--frames", "4", "--shortcut-frames", "20", "--honest-seconds", "0.5", "--seeds", "7"]
    )
    assert json.loads(capsys.readouterr().out) == result
    assert result["cost"]["alone_ms_p50"] > result["cost"]["added_ms_p50"] > 0
    assert (result["shortcut"]["defects"], result["shortcut"]["alarmed"]) == (1, 1)
    assert result["shortcut"]["latest_after_seconds"] <= 1.0
    assert result["honest"]["fired"] == {}
    assert result["honest"]["video_seconds"] == 0.5


def test_box_guards_bench_prints_the_time_of_each_case(capsys):
    result = box_guards.main(["--boxes", "3", "--frames", "20"])
    assert json.loads(capsys.readouterr().out) == result
    assert all(0 < result[case]["min_ms"] <= result[case]["p50_ms"] for case in ("older", "fresh", "firing", "finite"))


@pytest.mark.slow
def test_bundled_network_raises_no_alarm():
    """On five seconds of two belts; ``python -m tests.bench.guards --honest-seconds 300`` takes five minutes."""
    result = guards.honest(guards.configured("auto", None), [7, 11], 5.0)
    assert result["defect_verdicts"] > 30
    assert result["fired"] == {}

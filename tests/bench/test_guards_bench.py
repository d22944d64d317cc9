"""The benchmark of guards measures what it says."""

from __future__ import annotations

import json

import pytest

from tests.bench import guards


def test_a_short_run_tells_cost_alarm_and_silence(capsys):
    told = guards.main(
        ["--backend", "eager", "--frames", "4", "--shortcut-frames", "20", "--honest-seconds", "0.5", "--seeds", "7"]
    )
    assert json.loads(capsys.readouterr().out) == told
    assert told["cost"]["alone_ms_p50"] > told["cost"]["added_ms_p50"] > 0
    assert (told["shortcut"]["defects"], told["shortcut"]["alarmed"]) == (1, 1)
    assert told["shortcut"]["latest_after_seconds"] <= 1.0
    assert told["honest"]["fired"] == {}
    assert told["honest"]["video_seconds"] == 0.5


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_five_minutes_of_the_honest_network_raise_no_alarm():
    told = guards.honest(guards.configured("auto", None), [7, 11, 23, 41, 59], 300.0)
    assert told["defect_verdicts"] > 3000
    assert told["fired"] == {}
    assert told["deletion_share"] <= 0.02

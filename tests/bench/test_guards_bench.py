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
def test_the_honest_network_raises_no_alarm():
    """On ten seconds of two belts; ``python -m tests.bench.guards --honest-seconds 300`` looks at five minutes."""
    told = guards.honest(guards.configured("auto", None), [7, 11], 10.0)
    assert told["defect_verdicts"] > 60
    assert told["fired"] == {}

"""The benchmark of events measures what it says."""

from __future__ import annotations

import json

from tests.bench import events


def test_events_bench_prints_the_time_of_each_case(capsys):
    result = events.main(["--events", "200", "--rounds", "2", "--size", "48", "64"])
    assert json.loads(capsys.readouterr().out) == result
    assert result["put"].keys() == {"nothing", "quiet", "going_on", "begins", "ends"}
    assert result["put"]["begins"]["min_ms"] > result["put"]["nothing"]["min_ms"]
    assert result["path"].keys() == {"alone", "quiet", "begins", "next"}
    assert all(case["arrive"]["min_ms"] > 0.0 for case in result["path"].values())
    assert {"newest", "last_hour", "summary", "one_event"} <= result["query"].keys()

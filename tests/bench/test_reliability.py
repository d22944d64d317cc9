"""The output of the fault matrix and the soak test agrees with the events."""

import json
import sys

import pytest

from tests.bench import faults, fuzz, overload, reconnects, soak
from tests.support.footage import Mark
from tests.support.probes import NullExplainer, Observation


def test_fault_matrix_prints_time_to_detect_and_to_recover(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["faults", "--faults", "close", "--repeats", "2", "--table"])
    faults.main()
    line, *table = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["reconnects"], record["wrong"], record["reason"]) == (2, 0, "the stream ended")
    assert 0 <= record["detect_s"]["p50"] <= record["detect_s"]["max"] < 5
    assert 0 < record["recover_s"]["p50"] <= record["recover_s"]["max"] < 10
    assert record["healthy_share"] > 0.5
    assert table[2].startswith("| close | ")


def test_undetected_fault_has_no_time_to_detect():
    result = faults.measure("none", 1, {})
    assert result["detect_s"] is None
    assert result["reconnects"] == 0
    assert faults.table([result]).endswith("|  |")


@pytest.mark.parametrize("name", faults.FAULTS)
def test_faults_of_the_matrix_have_a_description(name):
    fault = faults.FAULTS[name]
    assert callable(fault.submit)
    assert fault.hold_seconds[0] <= fault.hold_seconds[1]


@pytest.mark.slow
def test_short_soak_prints_its_intervals_and_the_summary(capsys):
    soak.soak(soak.Plan(3.5, cameras=3, flapping=1, every_seconds=1.0), NullExplainer())
    *rows, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(rows) >= 2
    assert rows[-1]["age_s"]["p50"] < 5
    assert rows[-1]["wrong"] == 0
    assert rows[-1]["threads"] > 3
    assert whole["healthy_share_worst"] > 0.3
    assert len(whole["faults"]) == 1


def test_reconnects_are_counted_with_their_memory(capsys):
    reconnects.endure(reconnects.Plan(3, every=1, warm_up=1, size="320x240", pictures=1), NullExplainer())
    *rows, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["reconnects"] for row in rows] == [1, 2, 3]
    assert all(row["rss_mb"] > 20 and row["threads"] > 3 for row in rows)
    assert rows[-1]["shown"]["faulty"] >= 3
    assert whole["rss_growth_mb"] == round(rows[-1]["rss_mb"] - rows[0]["rss_mb"], 1)


def test_shares_are_the_fraction_of_captured_frames_that_left():
    seen = [Observation("a", Mark(n, 0), 1.0, (1, 1)) for n in range(10, 20)]
    seen += [Observation("b", Mark(n, 0), 2.0, (1, 1)) for n in range(10, 15)]
    assert soak.shares(seen, ["a", "b", "c"]) == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert soak.shares([], ["a"]) == {"a": 0.0}
    assert soak.ages(seen) == {"p50": 1.0, "p95": 2.0, "p99": 2.0, "max": 2.0}
    assert soak.ages([Observation("a", None, 1.0, (1, 1))]) is None


def test_overload_accounts_for_every_frame_as_the_images_do():
    result = overload.measure(2.0, engine_rate=10.0, times=4.0)
    assert result["every_frame_is_accounted_for"]
    assert result["dropped"] > 0
    assert result["numbers_missing_in_the_pictures"] == result["indices_missing"]
    assert result["unreadable"] == 0


@pytest.mark.slow
def test_fuzz_of_media_gives_images_or_a_typed_error():
    counts = fuzz.measure(60, 3, None)
    assert counts["escaped"] == []
    assert sum(counts["endings"].values()) == 60
    assert {name.split(":")[0] for name in counts["endings"]} == {"description", "answer", "file"}

"""The benchmarks measure what they say: both answers checked, both sides run the same number of times."""

import json
import sys

import pytest

from tests.bench import explain_cost, peers
from tests.bench.figures import interleaved, paired_ratio, quantiles


def test_cases_run_in_turn_and_warm_up_is_not_counted():
    order = []
    seconds = interleaved({"a": lambda k: order.append(("a", k)), "b": lambda k: order.append(("b", k))}, 4, warmup=2)
    assert order == [(name, k) for k in range(6) for name in "ab"]
    assert [len(taken) for taken in seconds.values()] == [4, 4]


def test_figures_are_in_milliseconds_and_ratios_in_pairs():
    assert quantiles([0.001 * k for k in range(1, 102)]) == {"p50_ms": 51, "p95_ms": 96, "p99_ms": 100, "min_ms": 1}
    ratio = paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert ratio == {"ratio_of_medians": 2.0, "ratio_median": 2.0, "ratio_quartiles": [2.0, 2.0]}


def test_explain_cost_prints_a_line_with_both_sides(monkeypatch, capsys):
    words = ["explain_cost", "--models", "squeezenet1_1", "--backends", "eager", "--rounds", "3", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", words)
    explain_cost.main()
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["plain"]["p50_ms"] > 0
    assert told["explained"]["p50_ms"] > 0
    assert {"ratio_of_medians", "commit", "versions", "threads"} <= set(told)


def test_explain_cost_refuses_to_time_two_different_networks(monkeypatch):
    monkeypatch.setattr(explain_cost.Plain, "forward", lambda self, images: self.net(images).softmax(1).flip(1))
    with pytest.raises(RuntimeError, match="not the same network"):
        explain_cost.measure("resnet18", "eager", "fp32", 1, 2)


def test_peers_that_are_not_installed_are_named_with_the_cure(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", ("no_such_peer",))
    monkeypatch.setattr(sys, "argv", ["peers"])
    with pytest.raises(SystemExit, match=r"no_such_peer.*--group bench"):
        peers.main()

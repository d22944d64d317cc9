"""The benchmarks check both answers and run both sides the same number of times."""

import json
import sys

import numpy as np
import pytest

from pipeline.result import RunLimits
from tests.bench import batches, exactness, explain_cost, peers, per_frame, precision
from tests.bench.figures import interleaved, paired_ratio, quantiles
from tests.support.limits import LIMIT_SECONDS


def test_interleaved_runs_cases_in_turn_without_counting_warm_up():
    order = []
    seconds = interleaved({"a": lambda k: order.append(("a", k)), "b": lambda k: order.append(("b", k))}, 4, warmup=2)
    assert order == [(name, k) for k in range(6) for name in "ab"]
    assert [len(durations) for durations in seconds.values()] == [4, 4]


def test_quantiles_are_in_milliseconds_and_ratios_in_pairs():
    assert quantiles([0.001 * k for k in range(1, 102)]) == {"p50_ms": 51, "p95_ms": 96, "p99_ms": 100, "min_ms": 1}
    ratio = paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert ratio == {"ratio_of_medians": 2.0, "ratio_median": 2.0, "ratio_quartiles": [2.0, 2.0]}


def test_explain_cost_prints_a_line_with_both_sides(monkeypatch, capsys):
    arguments = ["explain_cost", "--models", "squeezenet1_1", "--backends", "eager", "--rounds", "3", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    explain_cost.main()
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["plain"]["p50_ms"] > 0
    assert record["explained"]["p50_ms"] > 0
    assert {"ratio_of_medians", "commit", "versions", "threads"} <= set(record)


@pytest.mark.slow
def test_explain_cost_refuses_to_time_two_different_networks(monkeypatch):
    monkeypatch.setattr(explain_cost.Plain, "forward", lambda self, images: self.net(images).softmax(1).flip(1))
    with pytest.raises(RuntimeError, match="not the same network"):
        explain_cost.measure("resnet18", "eager", "fp32", 1, 2)


@pytest.mark.slow
def test_batches_prints_age_and_shares_of_every_batch_size(monkeypatch, capsys):
    arguments = [
        "--model",
        "squeezenet1_1",
        "--backend",
        "eager",
        "--cameras",
        "2",
        "--rate",
        "5",
        "--batches",
        "2",
        "1",
    ]
    arguments += ["--seconds", "2", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["batches", *arguments])
    batches.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["batch"] for line in lines] == [2, 1]
    for line in lines:
        assert 0 < line["frames_per_second"] <= 12
        assert 0 < line["age_p50_ms"] <= line["age_p99_ms"]
        assert 0 <= line["least_to_most_share"] <= 1


@pytest.mark.slow
def test_batches_accounts_for_every_frame_of_simulated_lines():
    line = batches.measure_line(1, 5.0, LIMIT_SECONDS, frames=2)
    drops = sum(line["drops_in_first_2_s"].values()) + sum(line["later_drops"].values())
    assert line["received"] == line["delivered"] + drops
    assert line["delivered"] > 0
    assert line["fairness"] >= 1
    assert 0 < line["share_of_cores"] <= 1


def test_peers_that_are_not_installed_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", ("no_such_peer",))
    monkeypatch.setattr(sys, "argv", ["peers"])
    with pytest.raises(SystemExit, match=r"no_such_peer.*--group bench"):
        peers.main()


def test_rank_correlation_is_one_for_the_same_order_and_nan_for_a_flat_map():
    first = np.array([[0.0, 0.2], [0.5, 1.0]], np.float32)
    assert precision.rank_correlation(first, first**3) == pytest.approx(1.0)
    assert precision.rank_correlation(first, 1 - first) == pytest.approx(-1.0)
    assert np.isnan(precision.rank_correlation(first, np.zeros_like(first)))


def test_exactness_detects_a_plan_that_is_not_the_definition(monkeypatch):
    net = exactness.network("shufflenet_v2_x1_0")
    case = exactness.Case("shufflenet_v2_x1_0", "stage4", (64, 64), "point", 4)
    assert exactness.measure(net, case)["heat_error"] < 1e-3
    honest = exactness.choose_plan

    def wrong(*arguments):
        plan = honest(*arguments)
        monkeypatch.setattr(
            plan, "forward", lambda features: tuple(part.flip(1) for part in type(plan).forward(plan, features))
        )
        return plan

    monkeypatch.setattr(exactness, "choose_plan", wrong)
    assert exactness.measure(net, case)["heat_error"] > 1e-2


def test_per_frame_counts_every_frame_that_arrives():
    sink = per_frame.Ages()
    cameras = [per_frame.Camera(f"camera {k}", 50.0, 0.0) for k in range(3)]
    _, outcome = per_frame.run(cameras, sink, RunLimits(batch_size=2, frames=6))
    assert 0 < len(sink.seconds) == outcome.delivered <= 6 <= outcome.received
    assert min(sink.seconds) > 0

"""The benchmark of inner layers: one JSON line per case with the counts of both plans."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "bench" / "inner_layers.py"


@pytest.mark.slow
def test_benchmark_prints_one_line_per_case_with_both_plans(capsys):
    spec = importlib.util.spec_from_file_location("inner_layers", FILE)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    sizes = ["64x64", "64x96"]
    bench.main(["--models", "resnet18", "--sizes", *sizes, "--rounds", "1", "--sample", "4", "--threads", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["grid"] for line in lines] == [[4, 4], [4, 6]]
    for line in lines:
        assert line["local_seconds"]["median"] > 0
        assert line["dense_seconds"]["low"] <= line["dense_seconds"]["high"]
        assert line["local_giga_multiply_adds"] < line["dense_giga_multiply_adds"]
        assert line["error_share_of_signal"] < 1e-3
        assert line["threads"] == 1

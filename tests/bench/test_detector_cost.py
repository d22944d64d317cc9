"""The benchmark of explained boxes checks its answers, and states every case beside the plain pass."""

from __future__ import annotations

import json

import pytest
import torch

from engine.detectors.cones.plan import ConePlan
from tests.bench import detector_cost


@pytest.fixture
def arguments(monkeypatch):
    monkeypatch.setattr(detector_cost, "ANCHOR_SETS", 2)
    monkeypatch.setattr(detector_cost, "DRISE_MASKS", 2)
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["detector_cost", "--size", "128", "128", "--rounds", "3", "--threads", "1"])
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_detector_cost_prints_every_case_beside_the_plain_pass(arguments, capsys):
    detector_cost.main()
    line = json.loads(capsys.readouterr().out)
    assert line["bench"] == "detector_cost"
    assert line["plain"]["p50_ms"] > 0
    names = {case.name for case in detector_cost.CASES}
    ours = names | {f"{name}_moving" for name in names}
    peers = {"odam", "eigen_cam", f"d_rise_{detector_cost.DRISE_MASKS}_masks"}
    assert set(line["cases"]) == ours | peers
    assert all(case["ratio_median"] > 0 for case in line["cases"].values())
    assert all(line["cases"][name]["multiply_adds"] > 0 for name in ours)


@pytest.mark.slow
def test_detector_cost_refuses_to_time_wrong_answers(arguments, monkeypatch):
    windows = ConePlan.windows

    def shifted(*args):
        found = windows(*args)
        for responses in found:
            responses.vectors[0] = responses.vectors[0].flip(0)
        return found

    monkeypatch.setattr(ConePlan, "windows", shifted)
    with pytest.raises(RuntimeError, match="responses differ"):
        detector_cost.main()

"""The benchmark of regions compares the same pixels, and states every case beside frames of the region's size."""

from __future__ import annotations

import json

import pytest

from engine.models import preprocess
from tests.bench import region_cost


@pytest.fixture
def arguments(monkeypatch):
    small = region_cost.Sizes((320, 180), 64, (120, 60))
    monkeypatch.setattr(region_cost, "Sizes", lambda: small)
    options = ["--model", "squeezenet1_1", "--input-size", "64", "--rounds", "3"]
    monkeypatch.setattr("sys.argv", ["region_cost", *options])


def test_region_cost_states_every_case_beside_small_frames(arguments, capsys):
    region_cost.main()
    line = json.loads(capsys.readouterr().out)
    assert line["bench"] == "region_cost"
    assert set(line["engine"]) == {"small", "region", "masked", "whole"}
    assert set(line["end_to_end"]) == {"small", "region"}
    for part in ("engine", "end_to_end"):
        assert line[part]["small"]["p50_ms"] > 0
        assert line[part]["region"]["by_small"]["ratio_median"] > 0


def test_region_cost_refuses_to_time_wrong_answers(arguments, monkeypatch):
    def whole(frame, _colour):
        return frame.image

    monkeypatch.setattr(preprocess, "input_image", whole)
    with pytest.raises(RuntimeError, match="the same pixels"):
        region_cost.main()

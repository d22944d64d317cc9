"""The benchmark of exported files checks both outputs and states both sizes."""

import json
import shutil
import sys

import pytest

from tests.bench import export_cost


@pytest.fixture(scope="module", autouse=True)
def exported_once(tmp_path_factory):
    """Export the network at the first request; later requests get a copy of the file."""
    kept, export = tmp_path_factory.mktemp("exported") / "line.onnx", export_cost.export_network
    results = []

    def export_or_copy(network, config, path):
        if not results:
            results.append(export(network, config, kept))
        shutil.copyfile(kept, path)
        return results[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_cost, "export_network", export_or_copy)
        yield


@pytest.mark.slow
def test_export_cost_prints_a_line_for_each_runtime(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export_cost", "--models", "line_net", "--rounds", "3", "--threads", "1"])
    export_cost.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["runtime"] for line in lines] == ["onnxruntime", "openvino"]
    for line in lines:
        assert line["plain"]["p50_ms"] > 0
        assert line["explained"]["p50_ms"] > 0
        assert 0.95 < line["ratio_of_bytes"] < 1.05


@pytest.mark.slow
def test_export_cost_refuses_to_time_two_different_networks(monkeypatch, tmp_path):
    monkeypatch.setattr(export_cost.Plain, "forward", lambda self, images: self.net(images).softmax(1).flip(1) + 1)
    with pytest.raises(RuntimeError, match="not the same network"):
        export_cost.measure("line_net", ["onnxruntime"], 1, 2, tmp_path)

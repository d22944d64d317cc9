"""`run.py export`, and `run.py stream` with its files."""

import pytest

from tests.support.logs import log_lines

LINE = "line:?fps=30&size=160x120&seed=3&paced=0&frames={}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["explained.onnx", "explained.pt2"])
def test_exported_network_explains_a_stream_like_the_network(command, tmp_path, name):
    code, result, errors = command("export", "--model", "line_net", "--input-size", "120x160", "--output", name)
    assert code == 0, errors
    assert "same results" in result
    assert [path.name for path in tmp_path.iterdir()] == [name]
    source = ("--source", LINE.format(5), "--source", LINE.format(5), "--frames", 8)
    code, result, errors = command("stream", "--model", name, *source, "--sink", "exported.jsonl")
    assert code == 0, errors
    assert "8 explained" in result
    command("stream", "--source", LINE.format(5), "--input-size", "120x160", "--sink", "engine.jsonl")
    result, true = (
        {line["index"]: line for line in log_lines(tmp_path / file)} for file in ("exported.jsonl", "engine.jsonl")
    )
    assert set(result) <= set(true)
    for index, line in result.items():
        assert {line[key] for key in ("model", "layer", "method")} == {"line_net", "features", "recipro-cam/point"}
        assert line["findings"][0]["label"] == true[index]["findings"][0]["label"]
        assert line["findings"][0]["score"] == pytest.approx(true[index]["findings"][0]["score"], abs=1e-3)


@pytest.mark.slow
def test_exported_detector_is_one_file_that_stream_refuses(command, tmp_path, shared_data):
    weights = shared_data / "weights" / "detectors" / "yolox_nano.onnx"
    if not weights.is_file():
        pytest.skip(f"needs {weights}")
    code, result, errors = command("export", "--model", weights, "--input-size", "64x96", "--output", "detector.onnx")
    assert code == 0, errors
    assert "the maps of 10 boxes cost" in result
    assert "same results as the engine" in result
    assert [path.name for path in tmp_path.iterdir()] == ["detector.onnx"]
    code, _, errors = command("stream", "--source", "line:", "--model", "detector.onnx")
    assert code == 2
    assert "which only other programs can run" in errors


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--output", "a.pt2"], "name the file NAME.onnx"),
        (["--output", "a.onnx", "--layer", "head"], "--layer: does not apply to a detector"),
        (["--output", "a.onnx", "--input-size", "60x60"], "multiples of 32"),
    ],
    ids=lambda arguments: " ".join(arguments) if isinstance(arguments, list) else "",
)
def test_export_refuses_options_that_do_not_fit_a_detector(command, tmp_path, arguments, rule):
    code, _, errors = command("export", "--model", "yolox_nano", "--weights", "random", *arguments)
    assert code == 2
    assert rule in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--output", "no/such/folder/a.onnx"], "no/such/folder"),
        (["--output", "a.bin"], ".onnx or .pt2"),
        (["--output", "a.onnx", "--format", "torch"], "must end in .pt2"),
        (["--output", "a.onnx", "--layer", "featurs"], "Did you mean 'features'"),
        (["--output", "a.onnx", "--target", "scrach"], "Did you mean 'scratch'"),
        (["--output", "a.onnx", "--input-size", "big"], "HEIGHTxWIDTH"),
        (["--output", "a.onnx", "--weights", "a.onnx"], "overwrite"),
    ],
    ids=lambda arguments: " ".join(arguments) if isinstance(arguments, list) else "",
)
def test_export_that_fails_leaves_no_file(command, tmp_path, arguments, rule):
    code, _, errors = command("export", "--model", "line_net", *arguments)
    assert code == 2
    assert rule in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_stream_refuses_a_missing_or_foreign_exported_file(command, tmp_path):
    code, _, errors = command("stream", "--source", "line:", "--model", "missing.onnx")
    assert code == 2
    assert "run.py export" in errors
    (tmp_path / "text.pt2").write_text("hello")
    code, _, errors = command("stream", "--source", "line:", "--model", "text.pt2")
    assert code == 2
    assert "text.pt2" in errors

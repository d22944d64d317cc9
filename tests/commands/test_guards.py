"""Guards by the command line: a correct class with its heat in the wrong place; a baseline, and drift from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.baseline import _NoExplainer
from overlays.wire.header import decode_header
from pipeline.errors import ConfigError
from pipeline.frames import Box, Overlay
from pipeline.guards.monitor import ExplanationMonitor
from tests.support.detections import detection, detection_frame, detections, heat_at

ROOT = Path(__file__).resolve().parents[2]
GUARDED = ROOT / "configs" / "guards.yaml"
SHORTCUT = ROOT / "configs" / "models" / "line-shortcut.safetensors"
LINE = "line:?fps=30&size=320x240&seed=7&paced=0&frames={}"


def headers(path):
    return [decode_header(line) for line in path.read_bytes().splitlines()[1:]]


@pytest.mark.slow
def test_guard_detects_a_shortcut_within_a_second_of_video(command, tmp_path, caplog):
    stamped = LINE.format(60) + "&stamp=1"
    code, output, errors = command(
        "stream", GUARDED, "--source", stamped, "--weights", SHORTCUT, "--backend", "eager",
        "--sink", "out.jsonl", "--sink", "clips/", "--record-when", "guard=on-the-belt",
    )  # fmt: skip
    assert code == 0, errors
    seen = headers(tmp_path / "out.jsonl")
    wrong = next(
        sighting.pts_seconds for sighting in seen if sighting.truth is not None and sighting.truth.label != "ok"
    )
    firing = [sighting for sighting in seen if any(g.firing and g.name == "on-the-belt" for g in sighting.guards)]
    assert firing[0].pts_seconds - wrong <= 1.0
    assert firing[0].findings[0].label == firing[0].truth.label
    assert "guard on-the-belt on line: fired 1 time" in output
    assert "line: guard on-the-belt fires: heat_inside(belt) >= 0.6, but is" in caplog.text
    assert list((tmp_path / "clips").glob("*.mp4"))


@pytest.mark.slow
def test_guard_does_not_fire_for_the_bundled_network(command, tmp_path):
    code, output, errors = command(
        "stream", GUARDED, "--source", LINE.format(60), "--backend", "eager", "--sink", "out.jsonl"
    )
    assert code == 0, errors
    assert output.count("fired 0 times") == 3
    seen = headers(tmp_path / "out.jsonl")
    assert all(not state.firing for header in seen for state in header.guards)
    assert seen[-1].regions[0].name == "belt"
    assert all(header.findings[0].grounds.heat_inside.keys() == {"belt"} for header in seen)


@pytest.mark.slow
def test_baseline_of_a_run_equals_that_of_its_log_and_drift_is_reported(command, tmp_path, caplog):
    line = LINE.format(90)
    assert command("stream", "--source", line, "--backend", "eager", "--sink", "out.jsonl")[0] == 0
    code, result, errors = command("baseline", "out.jsonl", "-o", "log.json")
    assert code == 0, errors
    assert "samples, one per second  (fewer than 30: its drift is not reported)" in result
    (tmp_path / "run.yaml").write_text(f'sources: ["{line}"]\nengine: {{backend: eager}}\n', encoding="utf-8")
    assert command("baseline", "run.yaml", "-o", "run.json")[0] == 0
    assert "no sink" not in caplog.text
    spreads = [json.loads((tmp_path / name).read_text())["cameras"]["line"] for name in ("log.json", "run.json")]
    assert spreads[0].keys() == spreads[1].keys()
    for label, spread in spreads[0].items():
        assert spread["samples"] == spreads[1][label]["samples"]
        for name, numbers in spread["statistics"].items():
            assert numbers["mean"] == pytest.approx(spreads[1][label]["statistics"][name]["mean"], abs=1e-3)
    again = ("stream", "run.yaml", "--baseline", "run.json", "--sink", "again.jsonl", "--frames", 3)
    code, _, errors = command(*again)
    assert code == 0, errors
    assert "which the network does not have" not in caplog.text
    result = json.loads((tmp_path / "run.json").read_text())
    result["cameras"]["line"] = {f"no {label}": spread for label, spread in result["cameras"]["line"].items()}
    (tmp_path / "run.json").write_text(json.dumps(result))
    assert command(*again)[0] == 0
    assert "which the network does not have; no drift is reported" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--baseline", "none.json"], "baseline 'none.json': cannot be read"),
        (["--baseline", "."], "give a file that `run.py baseline` wrote"),
        (["--sink", "c/", "--record-when", "guard=on-the-bel"], "Did you mean 'on-the-belt'"),
        (["--sink", "c/", "--record-when", "heat_inside(bel)>0.5"], "Did you mean 'belt'"),
        (["--sink", "c/", "--record-when", "label=scrach"], "Did you mean 'scratch'"),
    ],
)
def test_guards_refuse_missing_files_and_names(command, arguments, rule):
    sink = [] if "--sink" in arguments else ["--sink", "out.jsonl"]
    code, _, errors = command("stream", GUARDED, "--source", LINE.format(3), *sink, *arguments)
    assert code == 2
    assert rule in errors


def test_guards_refuse_a_camera_that_the_run_does_not_have(command, tmp_path):
    (tmp_path / "run.yaml").write_text(
        'sources: ["line:"]\nguards:\n  rules:\n    - {name: a, rule: focus_area <= 0.1, cameras: [lime]}\n',
        encoding="utf-8",
    )
    code, _, errors = command("stream", "run.yaml")
    assert code == 2
    assert "guards.rules[0].cameras: 'lime': the run has no such camera, only 'line'. Did you mean 'line'" in errors


def test_guards_refuse_a_class_that_the_network_does_not_have(command, tmp_path):
    (tmp_path / "run.yaml").write_text(
        'sources: ["line:?paced=0&frames=3"]\nengine: {model: line_net, backend: eager}\nguards:\n  rules:\n'
        "    - {name: a, rule: focus_area <= 0.1 when label=schratch}\n",
        encoding="utf-8",
    )
    code, _, errors = command("stream", "run.yaml")
    assert code == 2
    assert "'schratch': unknown class" in errors
    assert "Did you mean 'scratch'" in errors


def test_record_when_refuses_a_check_that_no_rule_requires(command):
    arguments = ("--source", LINE.format(3), "--sink", "c/", "--record-when", "score_drop_when_masked<0.1")
    code, _, errors = command("stream", *arguments)
    assert code == 2
    assert "only if a guard's rule uses it" in errors


@pytest.mark.parametrize(
    ("overlay", "on_gpu"),
    [({}, True), ({"contour": True}, False), ({"hottest_box": True}, False), ({"smoothing_seconds": 1.0}, False)],
)
def test_frames_with_guards_are_rendered_on_the_gpu_unless_the_overlay_needs_the_host(overlay, on_gpu):
    from commands.wiring.gpu import renders_on_gpu
    from pipeline.config_loader import read_yaml, validate_config

    settings = read_yaml(GUARDED.read_text(encoding="utf-8"), "guards") | {"overlay": overlay}
    assert renders_on_gpu(validate_config(settings, "guards"), "cuda") == on_gpu
    assert not renders_on_gpu(validate_config(settings, "guards"), "cpu")


@pytest.mark.parametrize(
    ("arguments", "position"),
    [
        (
            ["--sink", "c/", "--record-when", "evidence_outside_box>0.5"],
            "character 1, 'evidence_outside_box': exists only",
        ),
        (["--sink", "c/", "--record-when", "heat_inside(box)>0.5"], "character 1, 'heat_inside': exists only"),
    ],
)
def test_record_when_refuses_the_numbers_of_boxes_for_a_classifier(command, arguments, position):
    code, _, errors = command("stream", "--source", LINE.format(3), *arguments)
    assert code == 2
    assert position in errors
    assert "only for the boxes of a detector; this network is a classifier" in errors


def test_guards_on_boxes_need_a_detector_and_its_mode():
    from commands.wiring.guards import load_drift_tracking
    from commands.wiring.kinds import load_config

    def load(model, mode="keep", record_when="boxes>3", rule="heat_inside(box) >= 0.5 when score>0.5"):
        settings = {"engine": {"model": model, "boxes": {"mode": mode}}, "sources": ["line:"]}
        settings["guards"] = {"rules": [{"name": "own", "rule": rule}]}
        settings["sinks"] = [{"uri": "c/", "record_when": record_when}]
        load_drift_tracking(load_config(settings, "run.yaml", {}), ["line"])

    load("yolox_nano")
    load("yolox_nano", "drop", "score_drop_when_masked < 0.1")
    with pytest.raises(ConfigError, match=r"in mode keep; set engine\.boxes\.mode: drop"):
        load("yolox_nano", "keep", "score_drop_when_masked < 0.1")
    with pytest.raises(
        ConfigError, match=r"rules\[0\].rule: .*: heat_inside\(box\) exists only for the boxes of a detector"
    ):
        load("line_net")


def test_baseline_reads_a_log_with_boxes_with_and_without_maps(command, tmp_path):
    from overlays.sinks.jsonl import JsonlSink

    heat = heat_at(Box(100, 10, 140, 50))
    monitor = ExplanationMonitor(_NoExplainer())
    with JsonlSink(tmp_path / "boxes.jsonl") as log:
        for index in range(12):
            boxes = [detection(Box(100, 10, 140, 50), heat=heat if index % 3 else None, index=index)][: index % 4]
            explanation = monitor.process(detections(detection_frame(index, rate=1.0), boxes))
            log.put(Overlay(explanation.frame.image, explanation))
    code, output, errors = command("baseline", "boxes.jsonl", "-o", "boxes.json")
    assert code == 0, errors
    assert "road  car: 9 samples" in output
    statistics = json.loads((tmp_path / "boxes.json").read_text())["cameras"]["road"]["car"]["statistics"]
    assert (statistics["score"]["count"], statistics["heat_inside(box)"]["count"]) == (9, 6)

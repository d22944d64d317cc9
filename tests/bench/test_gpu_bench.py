"""The GPU benchmark runs on the CPU at its smallest, and reports only figures that were measured."""

import importlib.util
import json
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress

import cv2
import numpy as np
import pytest
import torch

from engine.gpu.batch_pipeline import FrameKind
from engine.gpu.streams import CpuStreams
from overlays.render import text
from pipeline.frames import Frame
from tests.bench import gpu, gpu_cost, gpu_frames, gpu_pack, gpu_smoke
from tests.bench.figures import ROOT
from tests.bench.gpu_clock import Settings, captured, timed
from tests.support.limits import LIMIT_SECONDS

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.leaves_things  # torch keeps its threads
def test_gpu_bench_runs_on_a_cpu_and_reports_not_measured(tmp_path, capsys, monkeypatch):
    # inductor compiles for most of this test's time; tests/engine/test_inductor.py runs it
    pieces = gpu_smoke.pieces(Settings(CPU, small=True))
    del pieces["inductor"]
    monkeypatch.setattr(gpu_smoke, "pieces", lambda settings: pieces)
    photos = tmp_path / "photos.npz"
    np.savez(photos, images=np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8))
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--out", str(out), "--photos", str(photos), "--weights", str(tmp_path)]
    arguments += ["--only", "smoke", "agreement", "frame_to_jpeg", "inner_layer", "cost", "cameras"]
    result = gpu.main(arguments)
    assert json.loads(out.read_text())["goals"] == result["goals"]
    assert len(result["goals"]) == len(gpu.GOALS)
    assert all(record["measured"].startswith("not measured") for record in result["goals"])
    for name in ("smoke", "frame_to_jpeg", "inner_layer", "cost", "cameras"):
        assert result[name], name
        assert not [record for record in result[name] if "error" in record], name
    assert {record["way"] for record in result["cost"]} == {"eager", "eager, graph"}
    assert "squeezenet1_1.pt was not sent along" in capsys.readouterr().out


def test_failed_section_does_not_end_the_others(monkeypatch):
    def broken():
        yield {"fine": 1}
        raise RuntimeError("the card fell out")

    monkeypatch.setattr(gpu, "sections", lambda settings, **_: {"peers": broken, "cost": lambda: iter([{"fine": 2}])})
    saved = []
    result = gpu.measured(Settings(CPU, small=True), saved.append)
    assert result["peers"] == [{"fine": 1}, {"error": "RuntimeError: the card fell out"}]
    assert result["cost"] == [{"fine": 2}]
    assert len(saved) == 3


def test_missing_time_is_reported_as_not_measured(monkeypatch):
    monkeypatch.setattr(gpu, "sections", lambda settings, **_: {"cost": lambda: iter([{"fine": 2}])})
    result = gpu.measured(Settings(CPU, small=True, seconds=1.0), lambda result: None)
    assert result["cost"] == [{"skipped": "out of time"}]
    (late,) = gpu_cost.measure(Settings(CPU, small=True), deadline=0.0)
    assert late["skipped"] == "out of time"


def test_slow_section_ends_with_its_results_and_does_not_delay_the_others(monkeypatch):
    def endless():
        yield {"fine": 1}
        while True:
            with suppress(Exception):  # a section that ignores every exception, the limit's too
                threading.Event().wait(LIMIT_SECONDS)

    monkeypatch.setattr(gpu, "sections", lambda settings, **_: {"peers": endless, "cost": lambda: iter([{"fine": 2}])})
    monkeypatch.setattr(gpu, "LIMITS", {"peers": 0.001, "cost": 1.0})
    result = gpu.measured(Settings(CPU, small=True), lambda result: None)
    assert result["peers"] == [{"fine": 1}, {"skipped": "out of time, in the middle"}]
    assert result["cost"] == [{"fine": 2}]


def test_sections_for_goals_run_before_slow_compilation():
    settings = Settings(CPU)
    assert list(gpu.sections(settings)) == list(gpu.LIMITS)
    assert sorted(gpu.LIMITS.values()) == list(gpu.LIMITS.values())
    assert not {"inductor"} & {backend for _, backend in gpu_cost.cases(settings)}
    assert {backend for _, backend in gpu_cost.cases(settings, late=True)} == {"tensorrt", "inductor"}
    all_cases = [*gpu_cost.cases(settings), *gpu_cost.cases(settings, late=True)]
    assert len(all_cases) == len(set(all_cases))


def test_smoke_tries_every_piece_and_names_failures_once(monkeypatch):
    settings = Settings(CPU, small=True)

    def broken():
        raise RuntimeError("this card has no such thing\nand more")

    monkeypatch.setattr(gpu_smoke, "pieces", lambda settings: {"upload": lambda: "fine", "TensorRT": broken})
    lines = [gpu.brief(record) for record in gpu_smoke.measure(settings)]
    assert lines == ["ok      upload fine", "FAILED  TensorRT RuntimeError: this card has no such thing"]
    assert settings.lacking("tensorrt") == "smoke check: RuntimeError: this card has no such thing"


@pytest.mark.parametrize(
    "piece",
    [
        "OpenCV text",
        "a graph on its own device",
        "upload",
        "graph capture",
        "a capture that fails",
        "inner layer, local and dense",
    ],
)
def test_smallest_pieces_pass_on_a_cpu(piece):
    assert gpu_smoke.pieces(Settings(CPU, small=True))[piece]()


def test_smoke_says_first_that_this_opencv_has_no_fonts(monkeypatch):
    monkeypatch.delattr(cv2, "FontFace")
    assert next(iter(gpu_smoke.pieces(Settings(CPU)))) == "OpenCV text"
    with pytest.raises(AssertionError, match=r"OpenCV .* has no FontFace: send opencv-python-headless 5 along"):
        gpu_smoke.opencv_text()
    specification = importlib.util.spec_from_file_location("text_without_fonts", text.__file__)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "text_without_fonts", module)
    specification.loader.exec_module(module)  # the smoke check imports it before it can say anything


def test_captures_that_failed_are_counted():
    lanes = CpuStreams()
    lanes.failed_captures.append((None, "operation not permitted"))
    assert gpu_smoke.given_up(lanes) == 1


def test_stages_run_the_graph_before_the_clock_of_the_answers():
    settings = Settings(CPU, small=True)
    card = gpu_frames.explainer(settings, 1)
    frame = Frame(gpu_frames.make_images((72, 128), 1)[0], "bench", 0, 0.0)
    graphs, runs = card._batches.prepare(FrameKind((72, 128))).graphs, []
    honest = graphs[1]
    graphs[1] = lambda: runs.append(1) or honest()
    stages = gpu_frames._stages(card, [frame], settings)
    assert len(runs) == 1 + 1 + 6, "the frame, the answers before the clock, and the row of the graph"
    assert {"of that, resize and normalise, call by call", "of that, paint, call by call"} <= set(stages)


def test_overlay_and_jpeg_pass_on_a_cpu():
    assert "levels off" in gpu_smoke.overlay(Settings(CPU, small=True))


def test_goals_are_printed_beside_their_measurements():
    cost = {"plain": {"p50_ms": 1.0, "images_per_second": 900.0}, "model": "resnet50", "batch": 1, "way": "tensorrt"}
    cost |= {"explained": {"p50_ms": 0.5, "images_per_second": 22000.0}, "ratio_of_medians": 1.02}
    measured = {row["what"]: row["measured"] for row in gpu.goals({"device": {"kind": "cuda"}, "cost": [cost]})}
    assert measured["ResNet-50 explained, best batch"] == "22,000 images/s (tensorrt, 1)"
    assert measured["ResNet-50 explained, batch 1"] == "0.500 ms (tensorrt)"
    assert measured["frame to JPEG 720p, p50"] == "not measured"


def test_timed_cases_take_turns_and_run_equally_often():
    called = []
    settings = timed(
        {"a": lambda k: called.append("a"), "b": lambda k: called.append("b")}, Settings(CPU, small=True), 8
    )
    assert called.count("a") > 4
    assert settings["a"]["rounds"] == settings["b"]["rounds"]
    assert captured(str, torch.zeros(1), Settings(CPU)) is str


def test_gpu_bench_refuses_to_run_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU here" in capsys.readouterr().err


def test_pack_names_every_wheel_once_and_photos_are_arrays(tmp_path, shared_data):
    names = [name.partition("==")[0] for wheels in gpu_pack.WHEELS.values() for name in wheels]
    assert len(names) == len(set(names))
    target = tmp_path / "photos.npz"
    gpu_pack.pack_photos(shared_data / "photos" / "imagenet", target, 3)
    images = np.load(target)["images"]
    assert images.shape == (3, gpu_pack.SIDE, gpu_pack.SIDE, 3)
    assert images.dtype == np.uint8
    assert zipfile.is_zipfile(target)


@pytest.mark.parametrize("script", ["gpu_run.sh"])
def test_scripts_are_valid_shell(script):
    assert subprocess.run(["bash", "-n", ROOT / "tests" / "bench" / script], check=False).returncode == 0
    assert sys.executable

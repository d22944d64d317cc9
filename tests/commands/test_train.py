"""`run.py train`: from a folder of classes to a stream that the trained network explains."""

import json
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from engine.export.metadata import read_metadata
from engine.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from engine.models.loader import build_untrained
from engine.models.registry import MODELS
from tests.conftest import ROOT
from tests.support.logs import log_lines

KINDS = ("blank", "spot")


@pytest.fixture
def command(command, tmp_path):
    """Run a command in this process, in a folder with two classes of parts; return exit code, output, errors."""
    for kind in KINDS:
        (tmp_path / "parts" / kind).mkdir(parents=True)
        for number in range(20):
            rng = np.random.default_rng((number, len(kind)))
            image = rng.integers(0, 60, (48, 48, 3), np.uint8)
            y, x = rng.integers(4, 28, 2)
            if kind == "spot":
                image[y : y + 16, x : x + 16] = 250
            cv2.imwrite(str(tmp_path / "parts" / kind / f"{kind}{number // 2}_{number % 2}.png"), image)

    return command


OPTIONS = (
    "--model", "line_net", "--weights", "random", "--input-size", "48x48", "--epochs", "14", "--batch", "8",
    "--learning-rate", "0.005", "--augment", "hflip,vflip", "--output", "part.safetensors", "--threads", "1",
)  # fmt: skip


@pytest.mark.slow
def test_train_on_a_folder_gives_a_network_that_evaluates_and_streams(command, tmp_path):
    (tmp_path / "parts" / "spot" / "broken.png").write_bytes(b"not an image")
    pattern = ("--group-pattern", r"(\D+\d+)_\d|broken")
    code, output, errors = command("train", "parts", *OPTIONS, *pattern)
    assert code == 0, errors
    assert "left out      1 images that cannot be decoded" in output
    assert "it is not known which images show the same part" not in output
    report = json.loads((tmp_path / "part.report.json").read_text())
    assert [line.partition(":")[0] for line in report["left_out"]] == ["parts/spot/broken.png"]
    groups = [{sample["group"] for sample in samples} for samples in report["splits"].values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20
    metrics = report["metrics"]["test"]
    assert metrics["accuracy"] > 0.8, output
    assert sum(map(sum, metrics["confusion"])) == metrics["images"] == len(report["splits"]["test"])
    page = (tmp_path / "part.report.html").read_text()
    assert "<h2>Test: confusion matrix</h2>" in page
    assert not any(word in page for word in ("http:", "https:", "src=http", "<script src", "<link"))

    code, output, errors = command(
        "evaluate", "part.test.txt", "--model", "part.safetensors", "--output", "out", "--steps", 0
    )
    assert code == 0, errors
    summary = json.loads((tmp_path / "out" / "result.json").read_text())["summary"]
    assert summary["accuracy"] == pytest.approx(metrics["accuracy"])

    code, output, errors = command(
        "stream", "--model", "part.safetensors", "--source", "parts/spot", "--sink", "out.jsonl", "--backend", "eager"
    )
    assert code == 0, errors
    lines = log_lines(tmp_path / "out.jsonl")
    labels = [line["findings"][0]["label"] for line in lines if "findings" in line]
    assert len(labels) == 20
    assert labels.count("spot") >= 16


@pytest.mark.slow
def test_train_killed_goes_on_to_the_same_file(command, tmp_path):
    options = (*OPTIONS, "--epochs", "4", "--group-pattern", r"\D+\d+")
    words = [str(word) for word in ("train", "parts", *options)]
    process = subprocess.Popen(
        [sys.executable, ROOT / "run.py", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    progress = tmp_path / "part.progress.pt"
    for _ in process.stdout:
        if progress.exists():
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "part.safetensors").exists()

    code, output, errors = command(*words)
    assert code == 0, errors
    assert "continues after" in output
    assert not progress.exists()
    resumed = load_checkpoint(tmp_path / "part.safetensors")
    code, output, errors = command(*words, "--no-resume")
    assert code == 0, errors
    assert "continues after" not in output
    whole = load_checkpoint(tmp_path / "part.safetensors")
    for name, value in whole.state.items():
        assert torch.equal(value, resumed.state[name]), name


@pytest.mark.slow
def test_export_keeps_labels_and_fit_of_a_checkpoint(command, tmp_path):
    net = build_untrained(MODELS["line_net"], 2)
    mean, std = (0.5,) * 3, (0.25,) * 3
    file = Checkpoint(dict(net.state_dict()), "line_net", KINDS, (48, 48), mean, std, "features", fit="letterbox")
    save_checkpoint(tmp_path / "part.safetensors", file)
    code, output, errors = command("export", "--model", "part.safetensors", "--output", "part.pt2")
    assert code == 0, errors
    assert "same results" in output
    metadata = read_metadata(tmp_path / "part.pt2")
    assert (metadata.labels, metadata.fit, metadata.mean) == (KINDS, "letterbox", mean)


def test_train_reads_paths_labels_and_groups_of_a_csv(command, tmp_path):
    rows = [
        f"parts/{kind}/{kind}{number // 2}_{number % 2}.png,{kind.upper()},{kind}{number // 2}"
        for kind in KINDS
        for number in range(20)
    ]
    (tmp_path / "parts.csv").write_text("\n".join(["\ufeffpath,label,group", *rows]), encoding="utf-8")
    code, output, errors = command("train", "parts.csv", *OPTIONS, "--epochs", 1)
    assert code == 0, errors
    assert "BLANK" in output
    report = json.loads((tmp_path / "part.report.json").read_text())
    assert report["labels"] == ["BLANK", "SPOT"]
    assert {sample["group"] for sample in report["splits"]["test"]} <= {f"{k}{n}" for k in KINDS for n in range(10)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words", "rule"),
    [
        ("empty", (), "class 'empty': parts/empty contains no images"),
        ("one", (), "one class (spot)"),
        ("twins", (), "select the images with a glob, such as --pictures"),
        (None, ("--pictures", "*.jpg"), "contains no images like '*.jpg'"),
        (None, ("--output", "part.pth"), "must end in .safetensors"),
        (None, ("--output", "file/part.safetensors"), "cannot be written"),
        ("report", (), "cannot be written"),
        (None, ("--pictures", "../*/*.png"), "leaves the class's folder"),
        (None, ("--pictures", "/parts/*.png"), "leaves the class's folder"),
        (None, ("--balance", "even"), "choose one of sampler, weights, none"),
        (None, ("--augment", "hflp"), "Did you mean 'hflip'"),
        (None, ("--test-fraction", 0.6, "--val-fraction", 0.5), "give smaller fractions"),
        (None, ("--group-gap", 3), "add --group-pattern"),
        (None, ("--group-pattern", "(blank|spot)"), "1 group for 3 splits"),
        (None, ("--weights", "nowhere.pth"), "no such file"),
        (None, ("--truncate-at", "featurs"), "Did you mean 'features'"),
        (None, ("--layer", "featurs"), "Did you mean 'features'"),
        (None, ("--freeze-until", "featurs"), "Did you mean 'features'"),
        (None, ("--model", "line_nat"), "Did you mean 'line_net'"),
        (None, ("--learning-rate", 1e30), "choose a lower --learning-rate"),
        ("twice", (), "parts/blank/blank0_0.png (blank) and parts/spot/again.png (spot)"),
    ],
)
def test_train_reports_a_mistake_in_one_line(command, tmp_path, change, words, rule):
    if change == "twice":
        image = cv2.imread(str(tmp_path / "parts" / "blank" / "blank0_0.png"))
        cv2.imwrite(str(tmp_path / "parts" / "spot" / "again.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if change == "empty":
        (tmp_path / "parts" / "empty").mkdir()
    (tmp_path / "file").touch()
    if change == "report":
        (tmp_path / "part.report.html").mkdir()
    if change == "one":
        (tmp_path / "parts" / "blank").rename(tmp_path / "blank")
    if change == "twins":
        (tmp_path / "parts" / "spot" / "spot0_0.jpg").write_bytes(
            (tmp_path / "parts" / "spot" / "spot0_0.png").read_bytes()
        )
    code, _, errors = command("train", "parts", *OPTIONS, *words)
    assert code == 2
    assert rule in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "part.safetensors").exists()


def test_train_without_groups_draws_no_conclusion_for_other_parts(command, tmp_path, caplog):
    rows = [f"parts/{kind}/{kind}{n // 2}_{n % 2}.png; {kind}" for kind in KINDS for n in range(20)]
    (tmp_path / "parts.csv").write_text("\r\n".join(["\ufeffpath; label", *rows]), encoding="utf-8")
    code, output, errors = command("train", "parts.csv", *OPTIONS, "--epochs", 1)
    assert code == 0, errors
    report = json.loads((tmp_path / "part.report.json").read_text())
    assert report["labels"] == list(KINDS)
    assert "it is not known which images show the same part" in caplog.text
    assert report["metrics"]["test"]["interval"] is None
    assert "No conclusion for other parts" in output
    assert "confidence" not in output + (tmp_path / "part.report.html").read_text()
    for name, encoding in (("schön", "latin-1"), ("ok", "utf-16-le")):
        (tmp_path / "parts.csv").write_bytes(f"path,label\na.png,{name}\n".encode(encoding))
        code, _, errors = command("train", "parts.csv", *OPTIONS)
        assert code == 2
        assert "not UTF-8 text; save it as UTF-8" in errors


def test_train_refuses_a_csv_without_its_columns(command, tmp_path):
    (tmp_path / "parts.csv").write_text("file,class\na.png,b\n")
    code, _, errors = command("train", "parts.csv", *OPTIONS)
    assert code == 2
    assert "has no 'path' and no 'label'" in errors
    (tmp_path / "parts.csv").write_text("path,label\na.png,\n")
    code, _, errors = command("train", "parts.csv", *OPTIONS)
    assert "parts.csv:2" in errors


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("--augment", "hflp"), "Did you mean 'hflip'"),
        (("--weights", "nowhere.pth"), "no such file"),
        (("--layer", "featurs"), "Did you mean 'features'"),
        (("--group-pattern", "(blank|spot)"), "1 group for 3 splits"),
    ],
)
def test_train_checks_options_before_it_reads_images(command, tmp_path, words, rule):
    for path in (tmp_path / "parts").rglob("*.png"):
        path.write_bytes(b"not an image")
    code, _, errors = command("train", "parts", *OPTIONS, *words)
    assert code == 2
    assert rule in errors
    code, _, errors = command("train", "parts", *OPTIONS)
    assert "none of its images can be decoded" in errors


@pytest.mark.parametrize("option", ["--model", "--weights"])
def test_train_refuses_to_overwrite_the_weights_it_starts_from(command, tmp_path, option):
    (tmp_path / "start.safetensors").write_bytes(b"weights")
    words = ("--model", "yolox_nano") if option == "--weights" else ()
    code, _, errors = command("train", "parts", *words, option, "start.safetensors", "--output", "start.safetensors")
    assert code == 2
    assert f"is the file of {option}, which would be overwritten" in errors


@pytest.mark.slow
def test_train_continues_from_a_checkpoint_with_new_images(command, tmp_path, caplog):
    assert command("train", "parts", *OPTIONS, "--epochs", 2, "--fit", "letterbox")[0] == 0
    before = load_checkpoint(tmp_path / "part.safetensors")
    (tmp_path / "parts" / "bar").mkdir()
    for number in range(30):
        image = np.random.default_rng((number, 9)).integers(0, 60, (48, 48, 3), np.uint8)
        image[:, 20 : 24 + number % 3] = 250
        cv2.imwrite(str(tmp_path / "parts" / ("bar" if number < 20 else "spot") / f"new{number}.png"), image)
    (tmp_path / "parts" / "bar" / "copy.png").write_bytes((tmp_path / "parts" / "bar" / "new3.png").read_bytes())
    options = ("--epochs", 1, "--batch", 8, "--threads", 1, "--model", "part.safetensors")
    for number in range(2):  # shows no part, so it is no copy
        cv2.imwrite(str(tmp_path / "parts" / KINDS[number] / "dark.png"), np.zeros((48, 48), np.uint8))
    code, output, errors = command("train", "parts", *options, "--output", "next.safetensors")
    assert code == 0, errors
    assert "2 images have a single colour" in caplog.text
    assert "known classes: blank, spot" in output
    assert "new classes: bar" in output
    assert "copies        1 images have the same pixels as another one" in output
    assert "images of an earlier training; none of them is in the test split" in output
    after = load_checkpoint(tmp_path / "next.safetensors")
    assert (after.labels, after.fit, after.input_size) == (("bar", "blank", "spot"), "letterbox", (48, 48))
    assert after.provenance["began_with"]["file"] == "part.safetensors"
    report = json.loads((tmp_path / "next.report.json").read_text())
    assert not {sample["digest"] for sample in report["splits"]["test"]} & before.trained_digests
    assert before.trained_digests < after.trained_digests
    assert len(after.perceptual_hashes) == len(before.perceptual_hashes) + 1
    assert "part.safetensors" in (tmp_path / "next.report.html").read_text()

    code, _, errors = command("train", "parts", *options, "--output", "part.safetensors")
    assert code == 2
    assert "is the file of --model, which would be overwritten" in errors


@pytest.mark.slow
def test_train_on_boxes_gives_a_detector_that_streams_and_answers_why(command, tmp_path, caplog):
    for name in ("images", "labels"):
        (tmp_path / "boxes" / name).mkdir(parents=True)
    (tmp_path / "boxes" / "data.yaml").write_text("names: [spot, never]\n")
    for number in range(12):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 60, (64, 64, 3), np.uint8)
        y, x = rng.integers(0, 40, 2)
        image[y : y + 24, x : x + 24] = 250
        cv2.imwrite(str(tmp_path / "boxes" / "images" / f"{number}.png"), image)
        line = f"0 {(x + 12) / 64} {(y + 12) / 64} 0.375 0.375\n"
        (tmp_path / "boxes" / "labels" / f"{number}.txt").write_text(line)
    code, output, errors = command(
        "train", "boxes", "--model", "yolox_nano", "--weights", "random", "--input-size", "64x64", "--epochs", 2,
        "--output", "spot.safetensors", "--group-pattern", ".+", "--threads", 1,
    )  # fmt: skip
    assert code == 0, errors
    assert "YOLO annotations, 1 class: spot" in output
    assert "'never' has no boxes" in caplog.text
    report = json.loads((tmp_path / "spot.report.json").read_text())
    assert set(report["metrics"]) == {"validation", "test"}
    assert sum(map(sum, report["confusion"][:1])) == report["metrics"]["test"]["boxes"]
    page = (tmp_path / "spot.report.html").read_text()
    assert "Test: confusion matrix" in page
    assert not any(word in page for word in ("http:", "https:", "src=http", "<script", "<link"))
    assert len((tmp_path / "spot.test.txt").read_text().splitlines()) == report["metrics"]["test"]["images"]
    code, output, errors = command(
        "stream", "--model", "spot.safetensors", "--source", "boxes/images", "--sink", "out.jsonl", "--backend", "eager"
    )
    assert code == 0, errors
    code, output, errors = command(
        "why", "boxes/images/0.png", "--model", "spot.safetensors", "--box", "0,0,64,64", "--class", "spot"
    )
    assert code == 0, errors
    assert "spot: score" in output

    code, _, errors = command("train", "parts", "--model", "yolox_nano", "--output", "x.safetensors")
    assert code == 2
    assert "has no boxes to train the detector yolox_nano on" in errors
    code, output, errors = command(
        "evaluate", "spot.test.txt", "--boxes", "boxes/labels", "--box-names", "boxes/data.yaml", "--model",
        "spot.safetensors", "--output", "out", "--limit", 1,
    )  # fmt: skip
    assert code == 0, errors

"""`run.py train` as a person meets it: from a folder of classes to a stream explained by what was learned."""

import json

import cv2
import numpy as np
import pytest

from engine.export.metadata import read_metadata
from engine.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from engine.models.loader import build_untrained
from engine.models.registry import MODELS
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


LESSON = (
    "--model", "line_net", "--weights", "random", "--input-size", "48x48", "--epochs", "14", "--batch", "8",
    "--learning-rate", "0.005", "--augment", "hflip,vflip", "--output", "part.safetensors", "--threads", "1",
)  # fmt: skip


def test_a_folder_becomes_a_network_that_streams_and_is_examined_and_exported(command, tmp_path):
    (tmp_path / "parts" / "spot" / "broken.png").write_bytes(b"no picture")
    pattern = ("--group-pattern", r"(\D+\d+)_\d|broken")
    code, told, errors = command("train", "parts", *LESSON, *pattern)
    assert code == 0, errors
    assert "left out      1 images that cannot be decoded" in told
    assert "which images show the same part is not known" not in told
    report = json.loads((tmp_path / "part.report.json").read_text())
    assert [line.partition(":")[0] for line in report["left_out"]] == ["parts/spot/broken.png"]
    sources = [{one["group"] for one in several} for several in report["splits"].values()]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 20
    found = report["metrics"]["test"]
    assert found["accuracy"] > 0.8, told
    assert sum(map(sum, found["confusion"])) == found["images"] == len(report["splits"]["test"])
    page = (tmp_path / "part.report.html").read_text()
    assert "<h2>Test: confusion matrix</h2>" in page
    assert not any(word in page for word in ("http:", "https:", "src=http", "<script src", "<link"))

    code, told, errors = command(
        "evaluate", "part.test.txt", "--model", "part.safetensors", "--output", "out", "--steps", 0
    )
    assert code == 0, errors
    summary = json.loads((tmp_path / "out" / "result.json").read_text())["summary"]
    assert summary["accuracy"] == pytest.approx(found["accuracy"])

    code, told, errors = command(
        "stream", "--model", "part.safetensors", "--source", "parts/spot", "--sink", "out.jsonl", "--backend", "eager"
    )
    assert code == 0, errors
    lines = log_lines(tmp_path / "out.jsonl")
    given = [line["findings"][0]["label"] for line in lines if "findings" in line]
    assert len(given) == 20
    assert given.count("spot") >= 16


def test_a_model_file_is_exported_with_its_own_labels_and_fit(command, tmp_path):
    net = build_untrained(MODELS["line_net"], 2)
    mean, std = (0.5,) * 3, (0.25,) * 3
    file = Checkpoint(dict(net.state_dict()), "line_net", KINDS, (48, 48), mean, std, "features", fit="letterbox")
    save_checkpoint(tmp_path / "part.safetensors", file)
    code, told, errors = command("export", "--model", "part.safetensors", "--output", "part.pt2")
    assert code == 0, errors
    assert "same results" in told
    passport = read_metadata(tmp_path / "part.pt2")
    assert (passport.labels, passport.fit, passport.mean) == (KINDS, "letterbox", mean)


def test_a_csv_names_pictures_labels_and_groups(command, tmp_path):
    rows = [
        f"parts/{kind}/{kind}{number // 2}_{number % 2}.png,{kind.upper()},{kind}{number // 2}"
        for kind in KINDS
        for number in range(20)
    ]
    (tmp_path / "parts.csv").write_text("\n".join(["\ufeffpath,label,group", *rows]), encoding="utf-8")
    code, told, errors = command("train", "parts.csv", *LESSON, "--epochs", 1)
    assert code == 0, errors
    assert "BLANK" in told
    report = json.loads((tmp_path / "part.report.json").read_text())
    assert report["labels"] == ["BLANK", "SPOT"]
    assert {one["group"] for one in report["splits"]["test"]} <= {f"{k}{n}" for k in KINDS for n in range(10)}


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
        (None, ("--group-pattern", "(blank|spot)"), "1 source for 3 parts"),
        (None, ("--weights", "nowhere.pth"), "no such file"),
        (None, ("--truncate-at", "featurs"), "Did you mean 'features'"),
        (None, ("--layer", "featurs"), "Did you mean 'features'"),
        (None, ("--freeze-until", "featurs"), "Did you mean 'features'"),
        (None, ("--model", "line_nat"), "Did you mean 'line_net'"),
        (None, ("--learning-rate", 1e30), "choose a lower --learning-rate"),
        ("twice", (), "parts/blank/blank0_0.png (blank) and parts/spot/again.png (spot)"),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_line(command, tmp_path, change, words, rule):
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
    code, _, errors = command("train", "parts", *LESSON, *words)
    assert code == 2
    assert rule in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "part.safetensors").exists()


def test_a_csv_without_groups_concludes_nothing_for_other_parts(command, tmp_path, caplog):
    rows = [f"parts/{kind}/{kind}{n // 2}_{n % 2}.png; {kind}" for kind in KINDS for n in range(20)]
    (tmp_path / "parts.csv").write_text("\r\n".join(["\ufeffpath; label", *rows]), encoding="utf-8")
    code, told, errors = command("train", "parts.csv", *LESSON, "--epochs", 1)
    assert code == 0, errors
    report = json.loads((tmp_path / "part.report.json").read_text())
    assert report["labels"] == list(KINDS)
    assert "which images show the same part is not known" in caplog.text
    assert report["metrics"]["test"]["interval"] is None
    assert "No conclusion for other parts" in told
    assert "confidence" not in told + (tmp_path / "part.report.html").read_text()
    for name, encoding in (("schön", "latin-1"), ("ok", "utf-16-le")):
        (tmp_path / "parts.csv").write_bytes(f"path,label\na.png,{name}\n".encode(encoding))
        code, _, errors = command("train", "parts.csv", *LESSON)
        assert code == 2
        assert "not UTF-8 text; save it as UTF-8" in errors


def test_a_csv_without_its_columns_is_refused(command, tmp_path):
    (tmp_path / "parts.csv").write_text("file,class\na.png,b\n")
    code, _, errors = command("train", "parts.csv", *LESSON)
    assert code == 2
    assert "has no 'path' and no 'label'" in errors
    (tmp_path / "parts.csv").write_text("path,label\na.png,\n")
    code, _, errors = command("train", "parts.csv", *LESSON)
    assert "parts.csv:2" in errors


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("--augment", "hflp"), "Did you mean 'hflip'"),
        (("--weights", "nowhere.pth"), "no such file"),
        (("--layer", "featurs"), "Did you mean 'features'"),
        (("--group-pattern", "(blank|spot)"), "1 source for 3 parts"),
    ],
)
def test_words_are_looked_at_before_any_picture_is(command, tmp_path, words, rule):
    for place in (tmp_path / "parts").rglob("*.png"):
        place.write_bytes(b"no picture")
    code, _, errors = command("train", "parts", *LESSON, *words)
    assert code == 2
    assert rule in errors
    code, _, errors = command("train", "parts", *LESSON)
    assert "none of its images can be decoded" in errors


def test_what_was_learned_is_gone_on_with_when_there_are_new_pictures(command, tmp_path, caplog):
    assert command("train", "parts", *LESSON, "--epochs", 2, "--fit", "letterbox")[0] == 0
    before = load_checkpoint(tmp_path / "part.safetensors")
    (tmp_path / "parts" / "bar").mkdir()
    for number in range(30):
        image = np.random.default_rng((number, 9)).integers(0, 60, (48, 48, 3), np.uint8)
        image[:, 20 : 24 + number % 3] = 250
        cv2.imwrite(str(tmp_path / "parts" / ("bar" if number < 20 else "spot") / f"new{number}.png"), image)
    (tmp_path / "parts" / "bar" / "copy.png").write_bytes((tmp_path / "parts" / "bar" / "new3.png").read_bytes())
    lesson = ("--epochs", 1, "--batch", 8, "--threads", 1, "--model", "part.safetensors")
    for number in range(2):  # shows nothing, and so is no copy
        cv2.imwrite(str(tmp_path / "parts" / KINDS[number] / "dark.png"), np.zeros((48, 48), np.uint8))
    code, told, errors = command("train", "parts", *lesson, "--output", "next.safetensors")
    assert code == 0, errors
    assert "2 images have a single colour" in caplog.text
    assert "known classes: blank, spot" in told
    assert "new classes: bar" in told
    assert "copies        1 images have the same pixels as another one" in told
    assert "images of an earlier training; none of them is in the test split" in told
    after = load_checkpoint(tmp_path / "next.safetensors")
    assert (after.labels, after.fit, after.input_size) == (("bar", "blank", "spot"), "letterbox", (48, 48))
    assert after.provenance["began_with"]["file"] == "part.safetensors"
    report = json.loads((tmp_path / "next.report.json").read_text())
    assert not {one["digest"] for one in report["splits"]["test"]} & before.trained_digests
    assert before.trained_digests < after.trained_digests
    assert len(after.perceptual_hashes) == len(before.perceptual_hashes) + 1
    assert "part.safetensors" in (tmp_path / "next.report.html").read_text()

    code, _, errors = command("train", "parts", *lesson, "--output", "part.safetensors")
    assert code == 2
    assert "is the file of --model, which would be overwritten" in errors

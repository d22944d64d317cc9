"""`run.py evaluate` with a detector: maps judged box by box, from annotations to the report."""

from __future__ import annotations

import csv
import json

import cv2
import pytest

from tests.support.tiny_detector import LABELS, calm_detector, coarse_image

OPTIONS = ("--boxes", "coco.json", "--steps", "2", "--cell", "32", "--method", "keep,odam")
MEASURED = {"keep", "odam", "gaussian-anchor", "gaussian-box", "random"}


@pytest.fixture(scope="module")
def detector():
    return calm_detector()


@pytest.fixture(scope="module")
def objects(detector):
    """The two best detections of the image as COCO annotations, an object that is missed, and one of another class."""
    image = coarse_image()
    found = detector.detect(detector.input.prepare([image]))[0]
    corners = detector.input.place(*image.shape[:2]).to_image(found.boxes[:2]).clamp(min=0.0).tolist()
    entries = [
        {"image_id": 0, "category_id": int(c), "bbox": [left, top, right - left, bottom - top]}
        for (left, top, right, bottom), c in zip(corners, found.classes.tolist(), strict=False)
    ]
    entries += [{"image_id": 0, "category_id": k, "bbox": [0, 0, 2, 2]} for k in (0, len(LABELS))]
    return {
        "images": [{"id": 0, "file_name": "a.png"}],
        "categories": [{"id": k, "name": name} for k, name in enumerate((*LABELS, "ship"))],
        "annotations": entries,
    }


@pytest.fixture
def command(command, tmp_path, detector, objects, monkeypatch):
    """Run `evaluate` with the small detector on a folder of two images, of which one has objects."""
    import commands.wiring.detectors

    monkeypatch.setattr(commands.wiring.detectors, "load_configured_detector", lambda _config: detector)
    monkeypatch.setattr("commands.evaluate_detector.BACKEND", "eager")
    (tmp_path / "photos").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), coarse_image()[..., ::-1])
    (tmp_path / "coco.json").write_text(json.dumps(objects))

    def call(*arguments):
        return command("evaluate", "photos", "--model", "yolox_nano", "--input-size", "96x128", *arguments)

    return call


@pytest.mark.slow
def test_evaluate_judges_the_maps_of_a_detector_and_continues(command, tmp_path):
    assert command("--output", "out", *OPTIONS, "--limit", "1")[0] == 0
    first = (tmp_path / "out" / "images.jsonl").read_text()
    code, output, errors = command("--output", "out", *OPTIONS)
    assert code == 0, errors
    assert "1 of 2 images were evaluated before" in output
    assert (tmp_path / "out" / "images.jsonl").read_text().startswith(first)
    summary = json.loads((tmp_path / "out" / "result.json").read_text())["summary"]
    boxes = summary["boxes"]
    assert boxes >= 1
    assert summary["objects"] == boxes + summary["missed"] + summary["unknown"] == 4
    assert summary["unknown"] == 1
    assert set(summary["methods"]) == MEASURED
    assert summary["methods"]["keep"]["difference"]["n"] == boxes
    rows = list(csv.DictReader((tmp_path / "out" / "result.csv").read_text().splitlines()))
    assert len(rows) == boxes * len(MEASURED)
    assert {row["image"] for row in rows} == {"a.png"}
    assert float(rows[0]["insertion"]) <= 1.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert not any(word in page for word in ("http:", "https:", "<script", "<link"))
    for text in (output, page):
        assert "A dot at the anchor scores" in text
        assert "proves nothing by itself" in text
        assert "have a class that it does not know" in text
    assert "| keep |" in output
    code, _, errors = command("--output", "out", *OPTIONS, "--boxes-per-image", "1")
    assert code == 2
    assert "was started with boxes_per_image None, not 1" in errors


@pytest.mark.slow
def test_evaluate_of_a_detector_without_a_match_says_so(command, tmp_path, objects, caplog):
    (tmp_path / "coco.json").write_text(json.dumps({**objects, "annotations": objects["annotations"][-1:]}))
    code, output, errors = command("--output", "out", *OPTIONS)
    assert code == 0, errors
    assert "no detection matches an annotated object" in caplog.text
    assert "0 boxes of 2 images are judged" in output


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ([], "is a detector, whose maps are judged on annotated objects; give --boxes"),
        (["--boxes", "coco.json", "--kernel", "point"], "--kernel 'point': not an option of a detector"),
        (["--boxes", "coco.json", "--masks", "photos"], "--masks 'photos': not an option of a detector"),
        (["--boxes", "coco.json", "--method", "grad-cam"], "unknown method"),
        (["--boxes", "coco.json", "--steps", "225"], "--steps 225: must be at most 224"),
        (["--boxes", "coco.json", "--class-map", "far.json"], "'part' maps to class 6; the network has the classes 0"),
        (["--boxes", "coco.json", "--model", "line_net", "--cell", "32"], "--cell '32': an option of detectors"),
    ],
)
def test_evaluate_of_a_detector_refuses_what_does_not_fit(command, tmp_path, arguments, rule):
    (tmp_path / "far.json").write_text('{"part": [5, 6]}')
    code, _, errors = command("--output", "out", *arguments)
    assert code == 2
    assert rule in errors
    assert "Traceback" not in errors


def test_evaluate_refuses_a_detector_of_two_stages(command, monkeypatch):
    import commands.wiring.detectors
    from engine.detectors.loader import load_detector

    two_stage = load_detector("fasterrcnn_mobilenet_v3_large_320_fpn", weights="random")
    monkeypatch.setattr(commands.wiring.detectors, "load_configured_detector", lambda _config: two_stage)
    code, _, errors = command("--output", "out", "--boxes", "coco.json")
    assert code == 2
    assert "is a two-stage detector" in errors

"""`run.py evaluate` as a person meets it."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from commands.evaluation_inputs import file_digests
from engine.io.perceptual_hash import KnownImages, hashes_of, medians_of, spectrum_of
from engine.models.checkpoint import Checkpoint, save_checkpoint
from engine.models.loader import build_untrained
from engine.models.registry import MODELS

LABELS = ("ok", "scratch")


@pytest.fixture
def command(command, tmp_path):
    """Run `evaluate` in this process, in a folder with three pictures; return exit code, output, errors."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number} <b>.png"), image)

    def call(*arguments, images="photos"):
        return command("evaluate", images, "--model", "line_net", "--input-size", "64x64", "--steps", "2", *arguments)

    return call


def test_evaluate_writes_result_table_and_self_contained_page(command, tmp_path):
    code, output, errors = command("--output", "out")
    assert code == 0, errors
    assert "3 of 3 images" in output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["summary"]["images"] == 3
    assert result["settings"]["layer"] == "features"
    rows = list(csv.DictReader((tmp_path / "out" / "result.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [f"{number} <b>.png" for number in range(3)]
    mean = sum(float(row["coherency"]) for row in rows) / 3
    assert result["summary"]["coherency"] == pytest.approx(mean)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "<svg" in page
    assert "<b>" not in page
    assert not any(word in page for word in ("http:", "https:", "<script", "<link"))


def test_evaluate_continues_an_earlier_run_but_not_with_another_network(command, tmp_path):
    assert command("--output", "out", "--limit", 1)[0] == 0
    first = (tmp_path / "out" / "images.jsonl").read_text()
    code, output, errors = command("--output", "out")
    assert code == 0, errors
    assert "1 of 3 images were evaluated before" in output
    assert (tmp_path / "out" / "images.jsonl").read_text().startswith(first)
    code, _, errors = command("--output", "out", "--kernel", "gaussian")
    assert code == 2
    assert "was started with kernel 'point', not 'gaussian'" in errors


def test_evaluate_skips_a_broken_image(command, tmp_path):
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, output, _ = command("--output", "out")
    assert code == 0
    assert "3 of 4 images" in output


def test_evaluate_reads_yolo_and_coco_boxes(command, tmp_path):
    for number in range(3):
        (tmp_path / "photos" / f"{number} <b>.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "names.yaml").write_text("names:\n  0: part\n")
    (tmp_path / "map.json").write_text('{"map": {"part": [0, 1, 2, 3, 4]}}')
    arguments = ("--boxes", "photos", "--box-names", "names.yaml", "--class-map", "map.json")
    code, _, errors = command("--output", "yolo", *arguments)
    assert code == 0, errors
    summary = json.loads((tmp_path / "yolo" / "result.json").read_text())["summary"]
    records = [json.loads(line) for line in (tmp_path / "yolo" / "images.jsonl").read_text().splitlines()]
    assert summary["images_pointed"] == 3
    assert summary["pointing"] == sum(any(map(any, record["heat"])) for record in records) / 3
    annotated = {
        "images": [{"id": 1, "file_name": "0 <b>.png"}], "categories": [{"id": 1, "name": "part"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 80, 60]}],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(annotated))
    code, _, errors = command("--output", "coco", "--boxes", "coco.json", "--any-box")
    assert code == 0, errors
    assert json.loads((tmp_path / "coco" / "result.json").read_text())["summary"]["images_pointed"] == 1


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--boxes", "nowhere"], "contains no .txt or .xml"),
        (["--class-map", "map.json"], "cannot be read"),
        (["--layer", "featurs"], "Did you mean 'features'"),
        (["--kernel", "round"], "--kernel"),
        (["--masks", "nowhere"], "not a folder"),
        (["--masks", "empty"], "contains no images"),
        (["--method", "cam", "--kernel", "gaussian"], "an option of recipro-cam, not of cam"),
        (["--model", "net.onnx"], "an exported file cannot be split"),
        (["--masks", "photos", "--boxes", "photos"], "only one of them can be used"),
        (["--steps", "225"], "--steps 225: must be at most 224"),
        (["--boxes", "none.json"], "no annotation for any of the 3 images, such as photos/0 <b>.png"),
        (["--masks", "parts"], "no annotation for any of the"),
        (["--class-map", "far.json"], "'part' maps to class 5; the network has the classes 0 to 4"),
    ],
)
def test_evaluate_refuses_bad_input_in_one_line(command, tmp_path, arguments, rule):
    (tmp_path / "empty").mkdir()
    (tmp_path / "parts").mkdir()
    cv2.imwrite(str(tmp_path / "parts" / "a.png"), np.zeros((4, 4), np.uint8))
    (tmp_path / "far.json").write_text('{"part": [4, 5]}')
    (tmp_path / "none.json").write_text('{"images": [], "categories": [], "annotations": []}')
    code, _, errors = command("--output", "out", *arguments)
    assert code == 2
    assert rule in errors
    assert "Traceback" not in errors


def test_masks_are_found_by_name_and_class_folders_give_the_true_class(command, tmp_path):
    kinds = [tmp_path / "photos" / kind for kind in LABELS]
    for number, kind in enumerate(kinds):
        kind.mkdir()
        (tmp_path / "photos" / f"{number} <b>.png").rename(kind / "a.png")
        (tmp_path / "masks" / kind.name).mkdir(parents=True)
        mask = np.full((60, 80), 3, np.uint8)
        cv2.imwrite(str(tmp_path / "masks" / kind.name / "a.bmp"), mask)
    (tmp_path / "list.txt").write_text("photos/ok/a.png\nphotos/scratch/a.png\nphotos/2 <b>.png\n")
    code, output, errors = command("--output", "out", "--masks", "masks", images="list.txt")
    assert code == 0, errors
    assert "a random cell: 100.0%" in output
    records = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert [record.get("mask_share") for record in records] == [1.0, 1.0, None]
    chances = ("pointing_chance", "pointing_15px_chance", "energy_chance")
    assert [[record.get(key) for key in chances] for record in records[:2]] == [pytest.approx([1.0, 1.0, 1.0])] * 2
    assert [record["right"] for record in records[:2]] == [
        record["label"] == kind for record, kind in zip(records, LABELS, strict=False)
    ]
    assert "right" not in records[2]
    code, _, errors = command("--output", "dim", "--masks", "masks", "--mask-above", 3, images="list.txt")
    assert code == 0, errors
    assert json.loads((tmp_path / "dim" / "result.json").read_text())["summary"]["pointing"] is None
    cv2.imwrite(str(tmp_path / "masks" / "2 <b>.png"), np.zeros((6, 8), np.uint8))
    code, _, errors = command("--output", "small", "--masks", "masks", images="list.txt")
    assert code == 2
    assert "the mask is 6x8 and its image 60x80" in errors


def test_evaluate_reports_boxes_of_other_classes_and_images_in_subfolders(command, tmp_path, caplog):
    (tmp_path / "coco.json").write_text(coco_of("0 <b>.png"))
    assert command("--output", "out", "--boxes", "coco.json", "--steps", "0")[0] == 0
    assert "map box classes to network classes" in caplog.text
    (tmp_path / "above").mkdir()
    (tmp_path / "photos").rename(tmp_path / "above" / "photos")
    code, _, errors = command("--output", "in", images="above")
    assert code == 2
    assert "use 'above/**/*'" in errors
    assert command("--output", "in", "--steps", "0", images="above/**/*")[0] == 0


def coco_of(*names):
    """Return annotations in which image k has a box of k + 1 pixels."""
    return json.dumps({
        "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
        "categories": [{"id": 1, "name": "part"}],
        "annotations": [
            {"image_id": k, "category_id": 1, "bbox": [0, 0, k + 1, k + 1]} for k in range(len(names))
        ],
    })  # fmt: skip


@pytest.fixture
def two_folders(tmp_path):
    """Write an image of the same name into each of two folders, and a list of both."""
    for number, kind in enumerate(LABELS):
        (tmp_path / kind).mkdir()
        (tmp_path / "photos" / f"{number} <b>.png").rename(tmp_path / kind / "a.png")
    (tmp_path / "list.txt").write_text("ok/a.png\nscratch/a.png\n")


def test_images_of_equal_name_get_the_boxes_of_their_own_folder(command, two_folders, tmp_path):
    arguments = ("--boxes", "coco.json", "--any-box")
    (tmp_path / "coco.json").write_text(coco_of("ok/a.png", "scratch/a.png"))
    code, _, errors = command("--output", "out", *arguments, images="list.txt")
    assert code == 0, errors
    records = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert [record["boxes"][0][2] for record in records] == [1, 2]
    (tmp_path / "coco.json").write_text(coco_of("a.png"))
    code, _, errors = command("--output", "one", *arguments, images="list.txt")
    assert code == 2
    assert "a.png matches both ok/a.png and scratch/a.png" in errors
    (tmp_path / "coco.json").write_text(coco_of("x/a.png", "y/a.png"))
    code, _, errors = command("--output", "two", *arguments, images="list.txt")
    assert code == 2
    assert "ok/a.png matches both x/a.png and y/a.png" in errors


def test_label_files_may_lie_in_folders_like_the_images_and_belong_to_one_image(command, two_folders, tmp_path):
    for folder, number in (("labels/ok", 1), ("labels/scratch", 2)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text(f"0 0.5 0.5 {number / 80} 1\n")
    arguments = ("--boxes", "labels", "--any-box")
    code, _, errors = command("--output", "out", *arguments, images="list.txt")
    assert code == 0, errors
    records = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert [record["boxes"][0][2] - record["boxes"][0][0] for record in records] == [1, 2]
    for kind in LABELS:
        (tmp_path / "labels" / kind / "a.txt").rename(tmp_path / "labels" / "a.txt")
    code, _, errors = command("--output", "one", *arguments, images="list.txt")
    assert code == 2
    assert "labels/a.txt matches both ok/a.png and scratch/a.png" in errors


def test_evaluate_refuses_to_continue_with_a_retrained_network(command, tmp_path):
    for seed in range(2):
        torch.manual_seed(seed)
        net = build_untrained(MODELS["line_net"], 2)
        file = Checkpoint(dict(net.state_dict()), "line_net", LABELS, (64, 64), (0.5,) * 3, (0.5,) * 3, "features")
        save_checkpoint(tmp_path / "part.safetensors", file)
        code, _, errors = command("--output", "out", "--model", "part.safetensors", "--limit", 1)
        assert (code, "was started with files" in errors) == ((0, False), (2, True))[seed], errors


@pytest.mark.parametrize("changed", ["photos/0 <b>.png", "labels/0 <b>.txt"])
def test_evaluate_refuses_to_continue_with_changed_images_or_boxes(command, tmp_path, changed):
    (tmp_path / "labels").mkdir()
    for number in range(3):
        (tmp_path / "labels" / f"{number} <b>.txt").write_text("0 0.5 0.5 0.5 1\n")
    arguments = ("--output", "out", "--boxes", "labels", "--any-box")
    assert command(*arguments, "--limit", 1)[0] == 0
    code, output, errors = command(*arguments)
    assert (code, "1 of 3 images were evaluated before" in output) == (0, True), errors
    (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b"\n")
    code, _, errors = command(*arguments)
    assert code == 2
    assert "0 <b>.png or its boxes or mask have changed" in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, a disk that is always full")
def test_evaluate_reports_a_page_that_cannot_be_written_in_one_line(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").symlink_to("/dev/full")
    code, _, errors = command("--output", "out")
    assert code == 2
    assert "report.html: cannot be written (No space left on device)" in errors


@pytest.fixture
def video(command, tmp_path):
    """Nine frames: a bright square walks over a grey ground; the fifth frame is the fourth again."""
    path = tmp_path / "walk.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "bgr0"
        for step in (0, 1, 2, 3, 3, 5, 6, 7, 8):
            image = np.full((60, 80, 3), 90, np.uint8)
            image[10:40, 5 * step : 5 * step + 30] = (200, 180, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return path


def test_evaluate_compares_the_frames_of_a_video_with_their_successors(command, video, tmp_path):
    code, output, errors = command("--output", "out", images="walk.mkv")
    assert code == 0, errors
    assert "8 of 8 images" in output
    assert "Temporal stability" in output
    records = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert [record["image"] for record in records] == [f"frame {index:06d}" for index in range(8)]
    assert records[7]["at_seconds"] == pytest.approx(0.7, abs=0.01)
    assert records[3]["picture_stability"] == pytest.approx(1.0)
    assert all(record["picture_stability"] < 0.99 for index, record in enumerate(records) if index != 3)
    if any(map(any, records[3]["heat"])):
        assert records[3]["stability"] == pytest.approx(1.0)
    summary = json.loads((tmp_path / "out" / "result.json").read_text())["summary"]
    assert summary["neighbours"] == 8
    assert summary["stability"] == pytest.approx(sum(record["stability"] for record in records) / 8)
    moved = sum(1 - record["picture_stability"] for record in records)
    assert summary["unrest"] == pytest.approx(sum(1 - record["stability"] for record in records) / moved)
    assert {"stability", "picture_stability", "at_seconds"} <= set((tmp_path / "out" / "result.csv").read_text()
                                                                   .splitlines()[0].split(","))  # fmt: skip
    assert "Temporal stability" in (tmp_path / "out" / "report.html").read_text()


def test_evaluate_samples_a_video_evenly_and_continues(command, video, tmp_path):
    assert command("--output", "out", "--limit", 2, images="walk.mkv")[0] == 0
    first = (tmp_path / "out" / "images.jsonl").read_text()
    assert [json.loads(line)["image"] for line in first.splitlines()] == ["frame 000000", "frame 000004"]
    code, output, _ = command("--output", "out", "--limit", 4, images="walk.mkv")
    assert code == 0
    assert "2 of 4 images were evaluated before" in output
    assert (tmp_path / "out" / "images.jsonl").read_text().startswith(first)


def test_evaluate_refuses_to_continue_with_another_video(command, video, tmp_path):
    assert command("--output", "out", "--limit", 1, images="walk.mkv")[0] == 0
    video.write_bytes(video.read_bytes() + b"\0")
    code, _, errors = command("--output", "out", "--limit", 1, images="walk.mkv")
    assert code == 2
    assert "was started with files" in errors


def test_evaluate_refuses_boxes_for_a_video(command, video, tmp_path):
    (tmp_path / "coco.json").write_text('{"images": [], "categories": [], "annotations": []}')
    code, _, errors = command("--output", "out", "--boxes", "coco.json", images="walk.mkv")
    assert code == 2
    assert "walk.mkv is a video" in errors


def test_settings_name_the_method_and_an_unknown_method_is_refused(command, tmp_path):
    code, _, errors = command("--output", "out", "--method", "cam")
    assert code == 0, errors
    assert json.loads((tmp_path / "out" / "result.json").read_text())["settings"]["method"] == "cam"
    code, _, errors = command("--output", "other", "--method", "gradcam")
    assert code == 2
    assert "method 'gradcam' is unknown" in errors
    assert "'grad-cam'" in errors


def test_digests_distinguish_files_of_equal_name(tmp_path):
    for folder, content in (("a", "boxes"), ("b", "classes")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "list.json").write_text(content)
    (tmp_path / "net.pth").write_text("weights")
    result = file_digests(tmp_path / "net.pth", tmp_path / "a" / "list.json", tmp_path / "b" / "list.json", None)
    assert set(result) == {"net.pth", str(tmp_path / "a" / "list.json"), str(tmp_path / "b" / "list.json")}
    assert len(set(result.values())) == 3


def test_records_name_their_file_and_distinguish_equal_names(command, tmp_path):
    for number, kind in enumerate(("left", "right")):
        (tmp_path / "photos" / kind).mkdir()
        (tmp_path / "photos" / f"{number} <b>.png").rename(tmp_path / "photos" / kind / "a.png")
    code, _, errors = command("--output", "out", images="photos/*/*.png")
    assert code == 0, errors
    rows = list(csv.DictReader((tmp_path / "out" / "result.csv").read_text().splitlines()))
    assert [row["source"] for row in rows] == ["photos/left/a.png", "photos/right/a.png"]
    assert len({row["digest"] for row in rows}) == 2


def test_evaluate_reads_a_windows_list_and_reports_repeated_images(command, tmp_path, caplog):
    (tmp_path / "list.txt").write_bytes("\ufeffphotos\\0 <b>.png\r\nphotos\\1 <b>.png\r\nphotos/0 <b>.png\r\n".encode())
    code, output, errors = command("--output", "out", images="list.txt")
    assert code == 0, errors
    assert "2 of 2 images" in output
    assert "1 lines repeat an image" in caplog.text


def test_evaluate_reports_near_duplicates_of_training_images(command, tmp_path, caplog):
    net = build_untrained(MODELS["line_net"], 2)
    images = [cv2.imread(str(tmp_path / "photos" / f"{k} <b>.png"))[..., ::-1] for k in range(3)]
    smooth = [cv2.resize(cv2.resize(image, (12, 9)), (80, 60), interpolation=cv2.INTER_CUBIC) for image in images]
    spectra = [spectrum_of(image) for image in smooth]
    known = KnownImages(medians_of(spectra), hashes_of(spectra[:1], medians_of(spectra)))
    file = Checkpoint(dict(net.state_dict()), "line_net", LABELS, (64, 64), (0.5,) * 3, (0.25,) * 3, "features")
    save_checkpoint(tmp_path / "part.safetensors", replace(file, perceptual_hashes=(known,)))
    (tmp_path / "mine").mkdir()
    for number, image in enumerate(smooth):
        cv2.imwrite(str(tmp_path / "mine" / f"{number}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])
    code, _, errors = command("--output", "out", "--model", "part.safetensors", images="mine")
    assert code == 0, errors
    assert "1 of 3 images are near duplicates of training images: 0.jpg" in caplog.text
    rows = list(csv.DictReader((tmp_path / "out" / "result.csv").read_text().splitlines()))
    assert [row["like_learned"] for row in rows] == ["True", "False", "False"]
    assert "Images similar to training images" in (tmp_path / "out" / "report.html").read_text()

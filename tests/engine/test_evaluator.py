"""Measures follow their formulas, boxes are read from the formats of data sets, and a stopped run continues."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.evaluation import metrics
from engine.evaluation.boxes import boxes_of_class, coco_boxes, voc_boxes, yolo_boxes
from engine.evaluation.evaluator import (
    batched,
    blurred,
    centres_of,
    fraction_of,
    inside,
    interpolate_pixels,
    shuffled,
    upsample,
)
from engine.evaluation.factory import EvaluationOptions, build_evaluator
from engine.evaluation.masks import covered, distance_to, energy_on, lies_within
from engine.evaluation.results import ResultsLog, write_result
from engine.evaluation.summary import summarise
from engine.methods.recipro import recipro_cam
from engine.models.loader import LoadedModel
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError
from pipeline.frames import Box, Frame, GroundTruth

LABELS = tuple("abcde")


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(16, 5),
        ).eval()  # fmt: skip
    with torch.no_grad():
        net[6].weight.mul_(8)
    return LoadedModel(net, "small", LABELS, (32, 32), (0.5,) * 3, (0.25,) * 3, None)


@pytest.fixture
def frame():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    return Frame(image, "test", 0, 0.0)


def test_evaluator_record_follows_the_definitions(network, frame):
    examiner = build_evaluator(network, EngineConfig(fit="stretch"), EvaluationOptions(steps=1))
    record = examiner.evaluate(frame, None)
    image = examiner._preprocessing.normalised(examiner._preprocessing.pixels([frame]))
    split = split_network(network.module, None, (32, 32))
    scores, heat = recipro_cam(split, image)
    target = int(scores.argmax())
    wide = upsample(heat[0], (32, 32))
    after, other = recipro_cam(split, image * wide, target)

    def score(inputs):
        return float(torch.softmax(network.module(inputs), 1)[0, target].detach())

    assert record["class"] == target
    assert record["label"] == LABELS[target]
    assert record["score"] == pytest.approx(score(image), abs=1e-6)
    assert record["score_masked"] == pytest.approx(score(image * wide), abs=1e-6)
    assert record["drop"] == pytest.approx(max(0, score(image) - float(after[0, target])) / score(image), abs=1e-5)
    first, two = wide.numpy().ravel(), upsample(other[0], (32, 32)).numpy().ravel()
    assert record["correlation"] == pytest.approx(np.corrcoef(first, two)[0, 1], abs=1e-5)
    assert record["complexity"] == pytest.approx(first.mean(), abs=1e-6)
    assert record["deletion"] == pytest.approx((score(image) + score(torch.zeros_like(image))) / 2, abs=1e-5)
    assert record["insertion"] == pytest.approx((score(blurred(image)) + score(image)) / 2, abs=1e-5)
    assert -1 <= record["randomised"] <= 1
    assert "pointing" not in record
    json.dumps(record, allow_nan=False)


def test_deletion_removes_the_hottest_pixels_first(network, frame):
    examiner = build_evaluator(network, EngineConfig(), EvaluationOptions(steps=2, randomize=False))
    seen = []
    head = examiner.split.head
    object.__setattr__(examiner.split, "head", lambda images: seen.append(images.clone()) or head(images))
    record = examiner.evaluate(frame)
    wide = upsample(torch.tensor(record["heat"]), (32, 32)).flatten()
    deleted, inserted = (sighting for sighting in seen if len(sighting) == 3)
    gone = (deleted[1] == 0).all(0).flatten()
    assert gone.sum() == 512
    assert wide[gone].min() >= wide[~gone].max() - 1e-3
    assert torch.equal(inserted[2], deleted[0])
    assert not deleted[2].any()


def test_pointing_game_uses_boxes_of_the_explained_class_only(network, frame):
    examiner = build_evaluator(
        network, EngineConfig(), EvaluationOptions(steps=0, randomize=False, class_map={"thing": [0, 1]})
    )
    label = examiner.evaluate(frame)["label"]
    whole = Box(0, 0, 96, 64)
    record = examiner.evaluate(frame, [GroundTruth(label.upper(), (whole,))])
    assert record["pointing"] is record["pointing_15px"] is True
    assert record["energy_inside"] == pytest.approx(1.0)
    assert examiner.evaluate(frame, [GroundTruth("else", (whole,))])["pointing"] is None
    anything = build_evaluator(network, EngineConfig(), EvaluationOptions(steps=0, randomize=False, any_box=True))
    assert anything.evaluate(frame, [GroundTruth("else", (whole,))])["pointing"] is True


def test_pixels_are_inside_a_box_by_their_centres_and_boxes_follow_the_frame_to_the_input():
    mask = inside([Box(10, 0, 30, 20)], Box(0, 0, 40, 40), (4, 4))
    assert mask.astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_compare_frames_uses_maps_of_one_class(network, frame):
    examiner = build_evaluator(network, EngineConfig(), EvaluationOptions(steps=0, randomize=False))
    other = Frame(np.ascontiguousarray(frame.image[:, ::-1]), "test", 1, 0.0)
    record = examiner.compare_frames(frame, other, 2)
    images = [examiner._preprocessing.normalised(examiner._preprocessing.pixels([image])) for image in (frame, other)]
    heats = [recipro_cam(examiner.split, image, 2)[1][0] for image in images]
    maps = [upsample(heat, (32, 32)).numpy().ravel() for heat in heats]
    assert record["stability"] == pytest.approx(np.corrcoef(*maps)[0, 1], abs=1e-5)
    greys = [image[0].mean(0).numpy().ravel() for image in images]
    assert record["picture_stability"] == pytest.approx(np.corrcoef(*greys)[0, 1], abs=1e-5)
    assert record["label_kept"] is bool(recipro_cam(examiner.split, images[1])[0].argmax() == 2)
    same = examiner.compare_frames(frame, frame, 2)
    assert (same["stability"], same["picture_stability"]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_summary_has_stability_only_for_videos():
    record = {"drop": 0.2, "coherency": 1.0, "complexity": 0.4, "heat": [[0, 1]], "seconds": 1.0}
    pairs = [(0.9, 0.95), (0.5, 0.75), (0.8, 0.9)]
    row = summarise(
        [record, *(record | {"stability": r, "picture_stability": s, "label_kept": True} for r, s in pairs)]
    )
    assert (row["neighbours"], row["label_kept"]) == (3, 1.0)
    assert row["stability"] == pytest.approx(2.2 / 3)
    assert row["unrest"] == pytest.approx(0.8 / 0.4)
    assert row["follows"] == pytest.approx(1.0)
    alone = summarise([record])
    assert (alone["neighbours"], alone["stability"], alone["unrest"], alone["follows"]) == (0, None, None, None)


def test_shuffled_weights_have_the_same_values_and_do_not_change_the_network(network):
    before = [p.clone() for p in network.module.parameters()]
    other = shuffled(network.module)
    assert all(map(torch.equal, before, network.module.parameters()))
    for first, two in zip(before, other.parameters(), strict=True):
        assert torch.equal(first.flatten().sort().values, two.detach().flatten().sort().values)
        assert not torch.equal(first, two)


def test_blur_preserves_a_uniform_colour_and_the_sum_of_a_point():
    assert torch.allclose(blurred(torch.full((1, 3, 32, 32), 0.7)), torch.tensor(0.7))
    point = torch.zeros(1, 3, 32, 32)
    point[..., 16, 16] = 1.0
    assert blurred(point).sum() == pytest.approx(3.0, abs=1e-5)
    assert blurred(point)[0, 0, 16, 10] == 0.0


def test_yolo_boxes_and_polygons_become_pixels():
    text = "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.3 0.1 0.3 0.5\n7 0.5 0.5 1 1\n"
    actual = yolo_boxes(text, ["cat", "dog"], (100, 200), "a.txt")
    assert [truth.label for truth in actual] == ["dog", "cat", "class 7"]
    assert actual[0].boxes[0] == pytest.approx((80, 30, 120, 70))
    assert actual[1].boxes[0] == pytest.approx((20, 10, 60, 50))
    for broken in ("1 0.5 0.5", "x 1 1 1 1", "1 nan 0 0 0", "-1 0 0 1 1"):
        with pytest.raises(ConfigError, match=r"a\.txt:1"):
            yolo_boxes(broken, [], (10, 10), "a.txt")


def test_coco_boxes_are_found_by_file_name():
    record = {
        "images": [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "b.jpg"}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 5, "category_id": 18, "bbox": [1, 2, 10, 20]}],
    }
    assert coco_boxes(json.dumps(record), "x.json") == {
        "a.jpg": (GroundTruth("dog", (Box(1, 2, 11, 22),)),),
        "b.jpg": (),
    }
    for broken in ("[]", "{", '{"images": 3}'):
        with pytest.raises(ConfigError, match=r"x\.json"):
            coco_boxes(broken, "x.json")


def test_coco_images_of_equal_name_are_distinguished_by_folder_or_refused():
    record = {"categories": [], "annotations": [], "images": [{"id": k, "file_name": "a.jpg"} for k in range(2)]}
    with pytest.raises(ConfigError, match=r"two images have the name 'a\.jpg'"):
        coco_boxes(json.dumps(record), "x.json")
    for entry, folder in zip(record["images"], ("x\\", "y/"), strict=True):
        entry["file_name"] = folder + "a.jpg"
    assert set(coco_boxes(json.dumps(record), "x.json")) == {"x/a.jpg", "y/a.jpg"}


def test_pixels_are_moved_part_by_part_and_no_more_are_held_than_are_run():
    start, end = torch.zeros(1, 3, 2, 4), torch.ones(1, 3, 2, 4)
    order = torch.tensor([3, 0, 1, 2, 7, 6, 5, 4])
    seen = list(batched(interpolate_pixels(start, end, order.tensor_split(3)), 3))
    assert list(map(len, seen)) == [3, 1]
    assert [int(image[0, 0].sum()) for some in seen for image in some] == [0, 3, 6, 8]
    assert seen[0][1][0, 1].flatten().tolist() == [1, 1, 0, 1, 0, 0, 0, 0]
    assert not start.any()


def test_voc_boxes_count_from_one_and_entities_are_refused():
    box = "<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>"
    text = f"<annotation><object><name>dog</name>{box}</object></annotation>"
    assert voc_boxes(text, "a.xml") == (GroundTruth("dog", (Box(0, 2, 10, 20),)),)
    for broken in ("<a", "<a><object><name>x</name></object></a>", "<!DOCTYPE a><a/>"):
        with pytest.raises(ConfigError, match=r"a\.xml"):
            voc_boxes(broken, "a.xml")


def test_boxes_of_class_match_by_name_or_class_map():
    truths = [GroundTruth("Dog", (Box(0, 0, 1, 1),)), GroundTruth("car", (Box(1, 1, 2, 2),))]
    assert boxes_of_class(truths, "dog", 3, {}) == truths[0].boxes
    assert boxes_of_class(truths, "sports car", 817, {"car": [817, 511]}) == truths[1].boxes
    assert boxes_of_class(truths, "sports car", 817, {}) == ()


def test_results_log_continues_drops_a_torn_line_and_refuses_another_evaluation(tmp_path):
    with ResultsLog(tmp_path / "new", {"model": "x", "size": (1, 2)}) as journal:
        journal.add({"image": "a"})
        journal.add({"image": "b"})
    with (tmp_path / "new" / "images.jsonl").open("a") as file:
        file.write('{"image": "c", "sco')
    with ResultsLog(tmp_path / "new", {"model": "x", "size": (1, 2)}) as journal:
        assert list(journal.records) == ["a", "b"]
        journal.add({"image": "c"})
    lines = (tmp_path / "new" / "images.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="was started with model 'x', not 'y'"):
        ResultsLog(tmp_path / "new", {"model": "y", "size": (1, 2)}).__enter__()


@pytest.mark.parametrize("settings", [None, "", "[]", '{"model": '])
def test_records_whose_settings_are_lost_are_not_taken_for_those_of_any(tmp_path, settings):
    with ResultsLog(tmp_path, {"model": "x"}) as journal:
        journal.add({"image": "a"})
    (tmp_path / "settings.json").unlink()
    if settings is not None:
        (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(ConfigError, match="does not contain the settings of the records beside it"):
        ResultsLog(tmp_path, {"model": "y"}).__enter__()
    assert (tmp_path / "images.jsonl").read_text() == '{"image": "a"}\n'


def test_settings_torn_before_the_first_record_are_written_anew(tmp_path):
    (tmp_path / "settings.json").write_text("")
    with ResultsLog(tmp_path, {"model": "x"}):
        pass
    assert json.loads((tmp_path / "settings.json").read_text()) == {"model": "x"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, a disk that is always full")
@pytest.mark.parametrize("name", ["result.json", "result.csv"])
def test_full_disk_is_reported_in_one_line(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"No space left on device.*check its permissions and free space"):
        write_result(tmp_path, {}, {}, [{"image": "a"}])


def test_summary_takes_each_mean_over_the_images_that_have_the_value():
    record = {"drop": 0.2, "coherency": 1.0, "complexity": 0.4, "increase": False, "pointing": True, "heat": [[0, 1]]}
    two = {"drop": 0.0, "coherency": 0.8, "complexity": 0.2, "increase": True, "pointing": None, "heat": [[0, 0]]}
    row = summarise([record | {"seconds": 1.0}, two | {"seconds": 3.0}])
    assert row["average_drop"] == pytest.approx(0.1)
    assert row["increase"] == 0.5
    assert (row["pointing"], row["images_pointed"], row["flat_maps"], row["deletion"]) == (1.0, 1, 1, None)
    assert row["adcc_of_means"] == pytest.approx(metrics.adcc(0.1, 0.9, 0.3))
    assert row["adcc_per_image"] == pytest.approx((metrics.adcc(0.2, 1.0, 0.4) + metrics.adcc(0.0, 0.8, 0.2)) / 2)
    assert not any(isinstance(value, float) and math.isnan(value) for value in summarise([]).values())


def mask_of(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_distance_to_a_mask_is_measured_to_the_nearest_pixel_square():
    mask = mask_of("....", ".##.", "....")
    assert distance_to(mask, (1.0, 1.0)) == 0.0
    assert distance_to(mask, (2.9, 1.99)) == 0.0
    assert distance_to(mask, (0.25, 1.5)) == 0.75
    assert distance_to(mask, (3.0 + 0.3, 2.0 + 0.4)) == pytest.approx(0.5)
    assert distance_to(mask_of("..", ".."), (0.0, 0.0)) == math.inf


def test_mask_coverage_follows_the_resize_and_counts_fractions_of_pixels():
    mask = mask_of("##..", "##..", "....", "...#")
    assert covered(mask, Box(0, 0, 4, 4), (2, 2)).tolist() == [[1.0, 0.0], [0.0, 0.25]]
    assert covered(mask, Box(1, 0, 3, 2), (1, 1)).tolist() == [[0.5]]
    letterboxed = covered(mask, Box(0, -4, 4, 8), (3, 1))
    assert letterboxed.tolist() == [[0.0], [5 / 16], [0.0]]
    assert covered(mask, Box(0, 0, 4, 4), (8, 8))[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_energy_on_a_mask_is_the_share_of_the_heat_that_lies_there():
    heat = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    assert energy_on(heat, np.array([[1.0, 1.0], [0.0, 0.5]])) == pytest.approx(1.25 / 2.0)
    assert energy_on(np.zeros((2, 2)), np.ones((2, 2))) == 0.0


def test_pointing_at_a_mask_ignores_classes_and_uses_frame_pixels(network, frame):
    examiner = build_evaluator(network, EngineConfig(), EvaluationOptions(steps=0, randomize=False))
    plain = examiner.evaluate(frame)
    heat = np.array(plain["heat"])
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    x, y = (column + 0.5) * 96 / heat.shape[1], (row + 0.5) * 64 / heat.shape[0]
    mask = np.zeros((64, 96), bool)
    mask[int(y), int(x)] = True
    record = examiner.evaluate(frame, None, mask)
    assert (record["pointing"], record["pointing_15px"]) == (True, True)
    assert record["boxes"] == [[int(x), int(y), int(x) + 1, int(y) + 1]]
    assert record["mask_share"] == pytest.approx(1 / (64 * 96))
    across = 16 if x < 48 else -16
    for step, near in ((across, False), (across - (1 if across > 0 else -1), True)):
        beside = np.zeros((64, 96), bool)
        beside[int(y), int(x) + step] = True
        record = examiner.evaluate(frame, None, beside)
        assert record["pointing"] is False
        assert record["pointing_15px"] is (near or abs(int(x) + step + 0.5 - x) - 0.5 <= 15)
    everywhere = examiner.evaluate(frame, None, np.ones((64, 96), bool))
    assert everywhere["energy_inside"] == pytest.approx(1.0)
    assert examiner.evaluate(frame, None, np.zeros((64, 96), bool))["pointing"] is None


def test_object_outside_the_crop_has_no_pointing_game(network, frame):
    examiner = build_evaluator(network, EngineConfig(fit="crop"), EvaluationOptions(steps=0, randomize=False))
    left, right = np.zeros((64, 96), bool), np.zeros((64, 96), bool)
    left[:, :16] = True
    right[:, 40:48] = True
    assert examiner.evaluate(frame, None, left)["pointing"] is None
    assert examiner.evaluate(frame, None, right)["pointing"] is not None


def test_summary_counts_right_images_and_their_pointing_hits():
    records = [
        {"right": True, "pointing_15px": True, "heat": [[1]]}, {"right": True, "pointing_15px": False, "heat": [[1]]},
        {"right": False, "pointing_15px": False, "heat": [[1]]}, {"right": True, "pointing_15px": None, "heat": [[1]]},
    ]  # fmt: skip
    row = summarise(records)
    assert (row["accuracy"], row["images_known"]) == (0.75, 4)
    assert row["pointing_15px"] == pytest.approx(1 / 3)
    assert row["pointing_15px_right"] == 0.5


@pytest.mark.parametrize("tolerance", [0.0, 15.0])
def test_pointing_chance_is_the_fraction_of_cells_that_hit(tolerance):
    region, grid = Box(0, 0, 140, 70), (7, 14)
    box = Box(20, 10, 60, 40)
    mask = np.zeros((70, 140), bool)
    mask[10:40, 20:60] = True
    centres = centres_of(grid, region)
    hits = [
        math.hypot(max(box.left - x, 0, x - box.right), max(box.top - y, 0, y - box.bottom)) <= tolerance
        for x, y in centres
    ]
    assert 0.0 < fraction_of(hits) < 1.0
    assert [lies_within(mask, centre, tolerance) for centre in centres] == hits
    assert [metrics.points_at(centre, [box], tolerance) for centre in centres] == hits

"""Methods side by side: the same pictures, the same feature maps, errors of paired differences."""

import json
import math
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from engine.evaluation.evaluator import ClassMapping, Evaluator
from engine.methods.registry import find_method
from engine.models.loader import build_untrained
from engine.models.preprocess import Preprocessing
from engine.models.registry import IMAGENET_MEAN, IMAGENET_STD, MODELS
from pipeline.frames import Frame
from tests.bench import authors_table, average_drop, pointing
from tests.bench.side_by_side import Remembering, values_of, with_error


def test_cached_head_runs_once_per_image_and_masked_image():
    ran = []

    class Head(nn.Module):
        def forward(self, images):
            ran.append(float(images[0]))
            return 2 * images

    head = Remembering(Head())
    for masked in (2.0, 3.0, 4.0):
        for value in (1.0, masked, masked):
            assert head(torch.tensor([value])) == 2 * value
    assert ran == [1.0, 2.0, 3.0, 4.0]
    head(torch.tensor([1.0])).add_(5)
    assert head(torch.tensor([1.0])) == 2.0


def test_errors_are_standard_errors_in_percent():
    assert with_error([0.0, 1.0, 1.0, 0.0]) == [50.0, pytest.approx(100 * math.sqrt(1 / 3) / 2, abs=0.01)]
    assert with_error([0.25]) == [25.0, 0.0]
    assert values_of([{"a": True}, {"a": None}, {}, {"a": 0.5}], "a") == [1.0, 0.5]


def test_differences_are_paired_by_image():
    ours = [{"pointing": hit} for hit in (True, True, False, None, True)]
    theirs = [{"pointing": hit} for hit in (True, False, True, None, False)]
    result = pointing.against(ours, theirs, "pointing")
    assert (result["only_ours"], result["only_theirs"]) == (2, 1)
    # differences 0 1 -1 1: mean 0.25, standard deviation sqrt(11 / 12)
    assert result["points"] == [25.0, pytest.approx(100 * math.sqrt(11 / 12) / 2, abs=0.01)]


def test_centre_is_a_pointing_game():
    record = {"pointing": True, "region": [0, 0, 100, 50], "boxes": [[40, 20, 60, 30]]}
    assert pointing.centre_hits([record, record | {"boxes": [[0, 0, 9, 9]]}, record | {"pointing": None}]) == [1.0, 0.0]


@pytest.mark.slow
def test_table_has_a_row_per_method_and_continues(tmp_path, monkeypatch, capsys):
    torch.save(build_untrained(MODELS["squeezenet1_1"]).state_dict(), tmp_path / "squeezenet1_1.pt")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), image)
    arguments = ["--photos", tmp_path / "photos", "--weights", tmp_path, "--output", tmp_path / "out", "--subset", 2,
             "--networks", "squeezenet1_1", "--methods", "Recipro-CAM, point", "CAM", "--steps", 2]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["authors_table", *map(str, arguments)])
    authors_table.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["part"], line["method"], line["photos"]) for line in lines] == [
        ("all", "Recipro-CAM, point", 3), ("all", "CAM", 3), ("subset", "Recipro-CAM, point", 2), ("subset", "CAM", 2),
    ]  # fmt: skip
    assert {"drop", "coherency", "complexity", "adcc_of_means", "adcc"} <= set(lines[0]["percent"])
    assert {"deletion", "insertion"} <= set(lines[2]["percent"])
    assert (tmp_path / "out" / "table.md").read_text().count("| squeezenet1_1 | CAM |") == 2
    written = sorted((tmp_path / "out").rglob("images.jsonl"))
    before = [path.read_text() for path in written]
    authors_table.main()
    assert [path.read_text() for path in written] == before
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"resnet18\.pth"):
        authors_table.find_weights([tmp_path], "resnet18.pth")


def test_average_drop_equals_the_evaluators_on_the_same_photo(tmp_path):
    torch.save(build_untrained(MODELS["squeezenet1_1"]).state_dict(), tmp_path / "squeezenet1_1.pt")
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    reader = average_drop.Reader("squeezenet1_1", [tmp_path])
    with torch.inference_mode():
        readings = dict(zip(average_drop.READINGS, reader.read(image, "point"), strict=True))
        colours = reader.colours(image, "crop")
        _, cell_logits, target = reader.explain(colours, "point", None)
        most = reader.map_of(cell_logits, target, average_drop.Reading(scaled="max"))
    examiner = Evaluator(
        reader.split, Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD, "crop"), find_method("recipro-cam"),
        ClassMapping(tuple(map(str, range(1000))), {}), steps=0,
    )  # fmt: skip
    ours = examiner.evaluate(Frame(image, "test", 0, 0.0))
    for key in ("drop", "coherency", "complexity"):
        assert readings[average_drop.OURS][key] == pytest.approx(ours[key], abs=1e-4)
    assert readings[average_drop.OURS]["class"] == ours["class"]
    assert most.max() == pytest.approx(1.0, abs=1e-3)
    assert most.min() > 0.0
    assert tuple(colours.shape) == (1, 3, 224, 224)
    assert 0.0 <= colours.min() < colours.max() <= 1.0

"""Annotations of an evaluation: read completely, or refused in one line."""

import json
import random

import pytest

from commands.annotations import read_box_names, read_class_map
from engine.evaluation.boxes import coco_boxes, voc_boxes, yolo_boxes
from pipeline.errors import ConfigError
from pipeline.frames import GroundTruth


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [car, bus]\nnc: 2\n", {0: "car", 1: "bus"}),
        ("names:\n  1: a\n  5: b\n", {1: "a", 5: "b"}),
        ("names: {'0': a, 2: b}\n", {0: "a", 2: "b"}),
    ],
)
def test_names_of_box_classes_go_by_their_numbers(tmp_path, text, names):
    (tmp_path / "data.yaml").write_text(text)
    assert read_box_names(tmp_path / "data.yaml") == names


def test_box_of_a_class_without_a_name_is_called_by_its_number():
    actual = yolo_boxes("1 .5 .5 1 1\n2 .5 .5 1 1\n5 .5 .5 1 1\n", {1: "a", 5: "b"}, (10, 10), "a.txt")
    assert [box.label for box in actual] == ["a", "class 2", "b"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("names: {0: a, b: c}\n", "'b' is not a class index"),
        ("names: {0: a, 1.5: c}\n", "'1.5' is not a class index"),
        ("names: {-1: a}\n", "'-1' is not a class index"),
        ("names: {true: a}\n", "is not a class index"),
        ("names: {0: a, '0': b}\n", "'0' is given twice"),
        ("names: [yes, no]\n", "put it in quotes"),
        ("names: [a, ]\nnames: [b]\n", "given twice"),
        ("names: [[a], b]\n", "class 0 has the name ['a']"),
        ("names: abc\n", "has no list 'names'"),
        ("train: images\n", "has no list 'names'"),
        ("names: {}\n", "has no list 'names'"),
        (f"names: {{{'9' * 5000}: a}}\n", ""),
        ("[" * 5000, "not YAML"),
    ],
)
def test_yaml_without_usable_names_is_refused(tmp_path, text, rule):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_box_names(tmp_path / "data.yaml")
    assert rule in str(refused.value)
    assert len(str(refused.value)) < 500


def test_class_map_of_several_maps_is_the_first(tmp_path):
    (tmp_path / "map.json").write_text('{"one": {"car": [1, 2]}, "other": {"car": [3]}}')
    assert read_class_map(tmp_path / "map.json") == {"car": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        '{"car": [1e400]}', '{"car": [NaN]}', '{"car": [8.5]}', '{"car": ["8"]}', '{"car": [true]}', '{"car": 8}',
        '{"car": [1], "car": [2]}', '{"car": {"a": {"b": 1}}}', "[]", "{}", "8", "null", '{"a": {}}', "",
        "[" * 100_000, '{"car":' * 100_000, f'{{"car": [{"9" * 5000}]}}',
    ],
)  # fmt: skip
def test_class_map_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ConfigError, match=r"--class-map '.*map.json': ") as refused:
        read_class_map(tmp_path / "map.json")
    assert len(str(refused.value)) < 500


def coco(bbox):
    return (
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "car"}], "annotations": '
        f'[{{"image_id": 1, "category_id": 1, "bbox": {bbox}}}]}}'
    )


def voc(side):
    return (
        f"<a><object><name>car</name><bndbox><xmin>{side}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></a>"
    )


@pytest.mark.parametrize(
    "read",
    [
        *(
            pytest.param(lambda bbox=bbox: coco_boxes(coco(bbox), "x.json"), id=f"coco {bbox[:20]}")
            for bbox in (
                "[NaN, 0, 1, 1]", "[0, 0, 1e308, 1]", "[1e308, 0, 1e308, 1]", "[0, 0, -5, 1]", "[0, 0, 1e400, 1]",
                f"[{'9' * 4000}, 0, 1, 1]", f"[{'9' * 5000}, 0, 1, 1]", "[0, 0, 1]", "[[], 0, 1, 1]", "[" * 90_000,
            )
        ),
        *(
            pytest.param(lambda side=side: voc_boxes(voc(side), "x.xml"), id=f"voc {side[:20]}")
            for side in ("nan", "inf", "1e308", "30", "", "9" * 5000)
        ),
        *(
            pytest.param(lambda line=line: yolo_boxes(line, {}, (10, 10), "x.txt"), id=f"yolo {line[:20]}")
            for line in ("0 nan .5 1 1", "0 1e308 .5 1 1", "0 320 240 100 50", "0 .5 .5 -1 1", "0.5 .5 .5 1 1",
                         "1e300 .5 .5 1 1", "9" * 5000 + " .5 .5 1 1", "0 .1 .1 .9 .1 .9 1e308")
        ),
    ],
)  # fmt: skip
def test_box_that_no_picture_has_is_refused(read):
    with pytest.raises(ConfigError, match=r"^x\.") as refused:
        read()
    assert "\n" not in str(refused.value)


WHOLE = {
    "coco": (coco("[1, 2, 3, 4.5]"), lambda text: coco_boxes(text, "x")),
    "voc": (voc("1"), lambda text: voc_boxes(text, "x")),
    "yolo": ("0 .5 .5 .2 .2\n1 .1 .1 .9 .1 .9 .9\n", lambda text: yolo_boxes(text, {0: "a"}, (20, 30), "x")),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_labels_give_boxes_or_a_typed_error(kind):
    whole, read = WHOLE[kind]
    assert read(whole)
    rng = random.Random(kind)
    pieces = [
        "NaN",
        "1e400",
        "-",
        "{",
        "}",
        "[",
        "]",
        "null",
        "true",
        '"',
        "<",
        ">",
        "&",
        "9" * 400,
        "\x01",
        "é",
        " ",
        "",
    ]
    for _ in range(1500):
        damaged = whole
        for _ in range(rng.randint(1, 4)):
            first = rng.randrange(len(damaged) + 1)
            damaged = damaged[:first] + rng.choice(pieces) + damaged[first + rng.randint(0, 5) :]
        try:
            actual = read(damaged)
        except ConfigError:
            continue
        truths = [box for several in actual.values() for box in several] if isinstance(actual, dict) else actual
        assert all(isinstance(box, GroundTruth) for box in truths)
        json.dumps([list(box) for truth in truths for box in truth.boxes], allow_nan=False)

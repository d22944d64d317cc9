"""Data sets with boxes: recognised formats, classes, splits, and clear errors."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands.annotations import load_boxes
from commands.box_dataset import BACKGROUND, check_copies, find_boxes, list_boxes, with_common_labels
from commands.train_detector import SplitOptions, train_detector
from engine.finetuning.setup import FinetuneConfig
from engine.finetuning.splits import Sample
from pipeline.errors import ConfigError
from pipeline.frames import Box, GroundTruth

SIZE = (40, 80)
"""Height and width of the images."""
VOC = (
    "<annotation><object><name>{name}</name><bndbox><xmin>9</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax>"
    "</bndbox></object></annotation>"
)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 255, (*SIZE, 3), np.uint8)
    cv2.imwrite(str(path), noise)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_yolo(folder, lines, names="[dent, scratch]", extra=""):
    """Write a data set in which image k has the label file ``lines[k]``."""
    write(folder / "data.yaml", f"names: {names}\n{extra}")
    for number, text in enumerate(lines):
        write_image(folder / "images" / f"{number}.png")
        if text is not None:
            write(folder / "labels" / f"{number}.txt", text)


def listed(data, pattern=None, gap=None):
    found = find_boxes(data)
    assert found is not None
    return list_boxes(*found, pattern, gap)


def test_yolo_folder_gives_boxes_in_pixels_and_background_images(tmp_path):
    write_yolo(tmp_path, ["0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.2\n", "", "1 0.5 0.5 0.5 0.5\n"])
    listing = listed(tmp_path)
    assert listing.labels == ("dent", "scratch")
    assert [sample.label for sample in listing.samples] == ["dent", BACKGROUND, "scratch"]
    first = listing.truths_of(listing.samples[0].path, SIZE)
    assert (first[0].label, first[0].boxes[0]) == ("dent", Box(30, 10, 50, 30))
    assert listing.truths_of(listing.samples[1].path, SIZE) == ()
    assert not listing.divided


def test_yolo_image_without_a_label_file_is_left_out_and_named(tmp_path):
    write_yolo(tmp_path, ["0 0.5 0.5 0.25 0.5\n", None])
    listing = listed(tmp_path)
    assert len(listing.samples) == 1
    assert "1.png: has no label file" in listing.left_out[0]


def test_yolo_splits_are_kept_even_with_paths_relative_to_a_wrong_folder(tmp_path):
    for part in ("train", "valid", "test"):
        write_image(tmp_path / part / "images" / f"{part}.png")
        write(tmp_path / part / "labels" / f"{part}.txt", "0 0.5 0.5 0.5 0.5\n")
    splits = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(tmp_path / "data.yaml", f"names: {{0: dent}}\n{splits}")
    listing = listed(tmp_path / "data.yaml")
    assert listing.divided
    assert {sample.split for sample in listing.samples} == {"train", "validation", "test"}


def test_yolo_list_of_images_in_a_text_file_is_read(tmp_path):
    write_yolo(tmp_path, ["0 0.5 0.5 0.5 0.5\n"] * 2, extra="train: train.txt\n")
    write(tmp_path / "train.txt", "images/1.png\n")
    assert [sample.path[-5:] for sample in listed(tmp_path).samples] == ["1.png"]


def test_class_without_boxes_is_left_out_with_a_warning(tmp_path, caplog):
    write_yolo(tmp_path, ["1 0.5 0.5 0.5 0.5\n"] * 2, names="[dent, scratch]")
    assert listed(tmp_path).labels == ("scratch",)
    assert "'dent' has no boxes" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["5 0.5 0.5 0.5 0.5\n"], "class 5 has no name"),
        (["0 40 20 10 10\n"], "fractions"),
        (["", ""], "none of its 2 images has a box"),
        ([None, None], "none of the 2 images has a label file"),
        ([], "no annotated images"),
    ],
)
def test_wrong_yolo_data_set_is_refused_with_its_remedy(tmp_path, lines, message):
    write_yolo(tmp_path, lines)
    with pytest.raises(ConfigError, match=message):
        listed(tmp_path)


def coco(names, images, boxes):
    """Return a COCO JSON; a box is (image, class)."""
    return json.dumps({
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "images": [{"id": k, "file_name": name, "width": 80, "height": 40} for k, name in enumerate(images)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "bbox": [8, 10, 32, 20]}
            for n, (image, label) in enumerate(boxes)
        ],
    })  # fmt: skip


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[dent, dent]", "names: 2 classes are called 'dent'; give each its own name"),
        ("['', dent]", "the class name '' is empty, has control characters or is longer than 200 characters"),
        ('[dent, "a\\nb"]', "the class name 'a\\nb' is empty, has control characters"),
        ("[dent, " + "x" * 201 + "]", "rename the class"),
    ],
)
def test_class_names_that_reports_cannot_show_are_refused(tmp_path, names, message):
    write_yolo(tmp_path, ["0 0.5 0.5 0.25 0.5\n", "1 0.5 0.5 0.25 0.5\n"], names=names)
    with pytest.raises(ConfigError) as refused:
        listed(tmp_path)
    assert message in str(refused.value)


def test_coco_file_finds_its_images_in_folders_below(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "b.png")
    write(tmp_path / "boxes.json", coco(["dent", "scratch"], ["a.png", "b.png", "gone.png"], [(0, 1), (1, 0)]))
    listing = listed(tmp_path)
    assert listing.labels == ("dent", "scratch")
    assert listing.truths_of(listing.samples[0].path, SIZE)[0].boxes[0] == Box(8, 10, 40, 30)
    assert "gone.png" in listing.left_out[0]
    assert [sample.path for sample in listed(tmp_path / "boxes.json").samples] == [s.path for s in listing.samples]


def test_coco_folder_with_a_file_in_each_split_keeps_the_split(tmp_path):
    for part in ("train", "valid", "test"):
        write_image(tmp_path / part / f"{part}.png")
        write(tmp_path / part / "_annotations.coco.json", coco(["dent"], [f"{part}.png"], [(0, 0)]))
    assert {sample.split for sample in listed(tmp_path).samples} == {"train", "validation", "test"}


def test_voc_folder_pairs_images_and_annotations_by_name(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "JPEGImages" / f"{name}.png")
        write(tmp_path / "Annotations" / f"{name}.xml", VOC.format(name="dent"))
    write_image(tmp_path / "JPEGImages" / "alone.png")
    listing = listed(tmp_path)
    assert [truth.boxes[0] for truth in listing.truths_of(listing.samples[0].path, SIZE)] == [Box(8, 10, 40, 30)]
    assert "alone.png: has no annotation" in listing.left_out[0]


def write_resized(folder, kind, width, height):
    """Write an image, and an annotation with one box that states another size."""
    write_image(folder / "a.png")
    if kind == "voc":
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        write(folder / "a.xml", VOC.format(name="dent").replace("<object>", size + "<object>"))
        return
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 10, 32, 20]}
    content = {"images": [image], "categories": [{"id": 1, "name": "dent"}], "annotations": [box]}
    write(folder / "a.json", json.dumps(content))


@pytest.mark.parametrize("kind", ["voc", "coco"])
@pytest.mark.parametrize(
    ("stated", "box"),
    [((160, 80), Box(4, 5, 20, 15)), ((80, 40), Box(8, 10, 40, 30)), ((0, 0), Box(8, 10, 40, 30))],
)
def test_boxes_follow_an_image_that_was_resized_after_it_was_annotated(tmp_path, kind, stated, box, caplog):
    caplog.set_level("INFO")
    write_resized(tmp_path, kind, *stated)
    listing = listed(tmp_path)
    for _ in range(2):
        assert listing.truths_of(listing.samples[0].path, SIZE)[0].boxes == (box,)
    logged = [record.message for record in caplog.records if "was resized to 80x40" in record.message]
    assert len(logged) == (stated == (160, 80))
    lookup = load_boxes(tmp_path / "a.json" if kind == "coco" else tmp_path, None)
    assert lookup.truths_of(tmp_path / "a.png", SIZE)[0].boxes == (box,)


@pytest.mark.parametrize("kind", ["voc", "coco"])
@pytest.mark.parametrize(("stated", "rule"), [((40, 80), "another aspect ratio"), ((20, 10), "outside the stated")])
def test_annotation_of_an_image_of_another_shape_is_refused(tmp_path, kind, stated, rule):
    write_resized(tmp_path, kind, *stated)
    listing = listed(tmp_path)
    with pytest.raises(ConfigError, match=rule):
        listing.truths_of(listing.samples[0].path, SIZE)
    lookup = load_boxes(tmp_path / "a.json" if kind == "coco" else tmp_path, None)
    with pytest.raises(ConfigError, match=rule):
        lookup.truths_of(tmp_path / "a.png", SIZE)


def test_voc_annotation_of_two_images_is_refused(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "other" / "a.png")
    write(tmp_path / "a.xml", VOC.format(name="dent"))
    with pytest.raises(ConfigError, match="matches both"):
        listed(tmp_path)


def test_folder_of_classes_has_no_boxes(tmp_path):
    write_image(tmp_path / "ok" / "a.png")
    assert find_boxes(tmp_path) is None


def test_groups_come_from_the_pattern(tmp_path):
    write_yolo(tmp_path, ["0 0.5 0.5 0.5 0.5\n"] * 4)
    listing = listed(tmp_path, r"(\d)\.png", 1)
    assert {sample.group for sample in listing.samples} == {"0"}
    assert listing.grouped


def test_label_of_too_few_groups_becomes_the_most_common_one():
    samples = [Sample(str(k), label, str(k)) for k, label in enumerate("aaaab")]
    assert [sample.label for sample in with_common_labels(samples, 3)] == list("aaaaa")


def test_copies_of_an_image_with_other_objects_are_refused_and_named():
    truths = {
        "a.png": (GroundTruth("dent", (Box(0, 0, 5, 5), Box(9, 9, 20, 20))),), "b.png": (),
        "c.png": (GroundTruth("dent", (Box(0, 0, 5, 6), Box(9, 9, 20, 20))),),
    }  # fmt: skip
    copies = [Sample(path, "dent", path, "same") for path in truths]
    check_copies(
        [copies[0], copies[2], Sample("b.png", BACKGROUND, "b"), Sample("d.png", "dent", "d")],
        lambda path, _: truths[path],
    )
    with pytest.raises(ConfigError, match=r"two annotations: a\.png \(2 dent\) and b\.png \(nothing\)"):
        check_copies(copies, lambda path, _: truths[path])


@pytest.mark.parametrize("copy", ["background", "the only dent"])
def test_copy_in_another_split_is_left_out_of_it_and_training_goes_on(tmp_path, copy, monkeypatch, caplog):
    """No class needs an image of its own in each split: the label of an image is only one of its classes."""
    lines = ["0 0.5 0.5 0.25 0.5\n", "1 0.5 0.5 0.25 0.5\n0 0.2 0.2 0.1 0.1\n", ""]
    for part in ("train", "val", "test"):
        write_yolo(tmp_path / part, lines)
    copied = {"background": 2, "the only dent": 0}[copy]
    for number in range(3):
        for part, seed in (("train", 1), ("val", 2), ("test", 1 if number == copied else 3)):
            noise = np.random.default_rng((seed, number)).integers(0, 255, (*SIZE, 3), np.uint8)
            cv2.imwrite(str(tmp_path / part / "images" / f"{number}.png"), noise)
    data = tmp_path / "data.yaml"
    write(data, "names: [dent, scratch]\n" + "".join(f"{part}: {part}/images\n" for part in ("train", "val", "test")))
    given = {}

    def finetune(_model, parts, *_args, **_options):
        given.update(parts)
        raise ConfigError("enough")

    monkeypatch.setattr("engine.finetuning.detection.finetune.finetune_detector", finetune)
    config = FinetuneConfig("yolox_nano", "random", input_size=(64, 64), augment=())
    options = SplitOptions({"train": 0.6, "validation": 0.2, "test": 0.2}, ".+", None)
    with pytest.raises(ConfigError, match="enough"):
        train_detector(data, tmp_path / "x.safetensors", config, options, resume=False)
    assert sorted(Path(sample.path).stem for sample in given["test"]) == sorted({"0", "1", "2"} - {str(copied)})
    assert len(given["train"]) == len(given["validation"]) == 3
    assert "left out of the test split" in caplog.text


def test_split_of_copies_only_is_refused_with_the_reason(tmp_path):
    for part in ("train", "val"):
        write_yolo(tmp_path / part, ["0 0.5 0.5 0.25 0.5\n", "0 0.5 0.5 0.5 0.5\n", ""])
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
            cv2.imwrite(str(tmp_path / part / "images" / f"{number}.png"), noise)
    data = tmp_path / "data.yaml"
    write(data, "names: [dent]\ntrain: train/images\nval: val/images\n")
    config = FinetuneConfig("yolox_nano", "random", input_size=(64, 64), augment=())
    options = SplitOptions({"train": 0.6, "validation": 0.2, "test": 0.2}, None, None)
    with pytest.raises(ConfigError, match="the test split has no images: each of 3 shows a part that training images"):
        train_detector(data, tmp_path / "x.safetensors", config, options, resume=False)

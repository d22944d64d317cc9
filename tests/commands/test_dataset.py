"""Data sets on disk: class folders, splits and tables."""

import itertools
import logging
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands.dataset import drop_unreadable, list_samples
from commands.dataset_layout import files_below
from commands.images import open_images
from engine.finetuning.given_split import keep_split
from engine.finetuning.splits import TEST, TRAIN, VALIDATION, merge_duplicates
from pipeline.errors import ConfigError, SourceError
from stream.images import read_image


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng((seed, *map(ord, path.parent.name))).integers(0, 256, (16, 16, 3), np.uint8)
    assert cv2.imwrite(str(path), image)


def make_classes(folder, *classes, count=8):
    for number, name in enumerate(classes):
        for k in range(count):
            draw(folder / name / f"{k}.png", seed=100 * number + k)
    return folder


def parts_of(listing):
    return {part: sorted({sample.label for sample in listing.samples if sample.split == part}) for part in
            sorted({sample.split for sample in listing.samples})}  # fmt: skip


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("train", "val"), {TEST, TRAIN}),
        (("Train", "TEST"), {TEST, TRAIN}),
        (("train", "valid", "test"), {TEST, TRAIN, VALIDATION}),
        (("training_set", "validation-set", "test_set"), {TEST, TRAIN, VALIDATION}),
        (("train2017", "val2017"), {TEST, TRAIN}),
        (("trainset", "testset"), {TEST, TRAIN}),
    ],
)
def test_list_samples_keeps_a_split_of_class_folders(tmp_path, folders, parts):
    for folder in folders:
        make_classes(tmp_path / folder, "ok", "scratch")
    listing = list_samples(tmp_path, None, None, None)
    assert parts_of(listing) == {part: ["ok", "scratch"] for part in parts}
    assert listing.divided


@pytest.mark.parametrize(
    "folders",
    ["{part}/images/{kind}", "{kind}/{part}", "{kind}/{part}_set/side"],
    ids=["in between", "within", "deeper"],
)
def test_list_samples_finds_a_split_one_folder_deeper(tmp_path, folders):
    for number, (part, kind) in enumerate(itertools.product(("train", "val"), ("ok", "scratch"))):
        for k in range(8):
            draw(tmp_path / folders.format(part=part, kind=kind) / f"{k}.png", seed=10 * number + k)
    listing = list_samples(tmp_path, None, None, None)
    assert parts_of(listing) == {TEST: ["ok", "scratch"], TRAIN: ["ok", "scratch"]}
    assert all(
        (sample.split == TRAIN) == ("train" in sample.path.removeprefix(str(tmp_path))) for sample in listing.samples
    )


def test_list_samples_refuses_images_outside_a_split_in_class_folders(tmp_path):
    for name in ("ok/train", "ok/val", "scratch/train", "scratch/val", "scratch"):
        make_classes(tmp_path, name)
    with pytest.raises(ConfigError, match=r"scratch/0.png is in none of these folders"):
        list_samples(tmp_path, None, None, None)


def test_keep_split_takes_validation_images_from_the_training_part(tmp_path):
    make_classes(tmp_path / "train", "ok", "scratch", count=10)
    make_classes(tmp_path / "val", "ok", "scratch", count=3)
    parts, left_out = keep_split(list_samples(tmp_path, None, None, None).samples, 0.2, seed=0)
    assert {len(parts[part]) for part in (TRAIN, VALIDATION)} == {16, 4}
    assert all("/val/" in sample.path for sample in parts[TEST])
    assert len(parts[TEST]) == 6
    assert not left_out


def test_keep_split_leaves_out_a_copy_of_a_training_image(tmp_path):
    make_classes(tmp_path / "train", "ok", "scratch")
    make_classes(tmp_path / "val", "ok", "scratch", count=3)
    for kind in ("ok", "scratch"):
        for k in range(3):
            draw(tmp_path / "val" / kind / f"{k}.png", seed=900 + 10 * len(kind) + k)
    (tmp_path / "val" / "ok" / "copy.bmp").write_bytes(
        cv2.imencode(".bmp", cv2.imread(str(tmp_path / "train" / "ok" / "0.png")))[1].tobytes()
    )
    samples, copies = merge_duplicates(drop_unreadable(list_samples(tmp_path, None, None, None).samples, read_image)[0])
    assert copies == 1
    parts, left_out = keep_split(samples, 0.2, seed=0)
    assert [sample.path for sample in left_out] == [str(tmp_path / "val" / "ok" / "copy.bmp")]
    assert len(parts[TEST]) == 6


def test_list_samples_accepts_a_class_with_the_name_train(tmp_path):
    make_classes(tmp_path, "bus", "car", "train")
    assert parts_of(list_samples(tmp_path, None, None, None)) == {"": ["bus", "car", "train"]}
    draw(tmp_path / "train" / "side view" / "1.png")  # images of a class may be in folders
    assert parts_of(list_samples(tmp_path, None, None, None)) == {"": ["bus", "car", "train"]}


@pytest.mark.parametrize(
    ("folders", "warned"),
    [
        (("fold_1/ok", "fold_1/scratch", "fold_2/ok", "fold_2/scratch"), True),
        (("line a/ok", "line a/scratch", "line b/ok", "line b/scratch", "line b/dent"), True),
        (("ok/monday", "scratch/tuesday"), False),
        (("ok", "scratch"), False),
        (("ok/images", "scratch/images"), False),
    ],
)
def test_list_samples_warns_of_classes_with_the_same_subfolders(tmp_path, caplog, folders, warned):
    make_classes(tmp_path, *folders, count=4)
    with caplog.at_level(logging.WARNING):
        list_samples(tmp_path, None, None, None)
    assert ("each of them contains the folders ok, scratch" in caplog.text) is warned


def test_list_samples_ignores_hidden_folders_and_files(tmp_path):
    make_classes(tmp_path, "ok", "scratch", ".ipynb_checkpoints", "__MACOSX")
    draw(tmp_path / "ok" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (tmp_path / "ok" / "._0.png").write_bytes(b"\0\5\26\7")
    listing = list_samples(tmp_path, None, None, None)
    assert parts_of(listing) == {"": ["ok", "scratch"]}
    assert len(listing.samples) == 16


@pytest.mark.parametrize(
    ("folders", "rule"),
    [
        (("train/ok", "train/scratch"), "are the classes: give "),
        (("images/ok", "images/scratch"), "if those are the classes, give "),
        (("val/ok", "val/scratch", "test/ok", "test/scratch"), "no training split"),
        (("ok", "scratch", "test/ok", "test/scratch"), "give a folder of classes, or a folder with"),
        (
            ("train/ok", "train/scratch", "test/ok", "test/scratch", "test/dent"),
            "class 'dent': has images in the test",
        ),
        (("train/ok", "train/scratch", "val/ok"), "class 'scratch': has no images in the test split"),
        (("train/good", "test/good", "test/broken", "ground_truth/broken"), "class 'broken'"),
        (("train", "test"), "images without class folders"),
        (("train/images", "val/images"), "contains the images of all classes"),
        (("images",), "but a classifier needs at least two"),
    ],
)
def test_list_samples_refuses_folders_without_classes_and_names_the_remedy(tmp_path, folders, rule):
    for folder in folders:
        make_classes(tmp_path, folder)
    with pytest.raises(ConfigError) as error:
        list_samples(tmp_path, None, None, None)
    assert rule in str(error.value)
    assert "\n" not in str(error.value)


def test_list_samples_refuses_an_empty_class_of_a_split(tmp_path):
    make_classes(tmp_path / "train", "ok", "scratch")
    make_classes(tmp_path / "val", "ok", "scratch")
    (tmp_path / "val" / "dent").mkdir()
    with pytest.raises(ConfigError, match=r"class 'dent': .*val/dent contains no images"):
        list_samples(tmp_path, None, None, None)


def test_list_samples_names_unused_folders(tmp_path, caplog):
    make_classes(tmp_path / "train", "ok", "scratch")
    make_classes(tmp_path / "val", "ok", "scratch")
    make_classes(tmp_path, "test")
    make_classes(tmp_path, "masks")
    (tmp_path / "train" / "ok" / "a.heif_").write_bytes(b"?")
    listing = list_samples(tmp_path, None, None, None)
    assert [line.split(":")[0] for line in listing.left_out] == [str(tmp_path / "masks"), str(tmp_path / "test")]
    assert "1 .heif_" in caplog.text


def test_list_samples_warns_of_classes_that_differ_in_capitals(tmp_path, caplog):
    rows = [f"{name}{k}.png,{name}" for name in ("OK", "ok", "no ok") for k in range(4)]
    (tmp_path / "parts.csv").write_text("\n".join(["path,label", *rows]))
    with caplog.at_level(logging.WARNING):
        list_samples(tmp_path / "parts.csv", None, None, None)
    assert "classes 'OK' and 'ok' differ in capitals" in caplog.text
    assert "no ok" not in caplog.text


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "parts.csv"
    path.write_bytes(text.encode(encoding))
    return list_samples(path, None, None, None)


def test_read_table_accepts_windows_paths(tmp_path):
    make_classes(tmp_path, "ok", "scratch", count=2)
    text = "\r\n".join(["\ufeffPath;Label", *(rf"{kind}\{k}.png;{kind}" for kind in ("ok", "scratch") for k in (0, 1))])
    readable, _, errors = drop_unreadable(table(tmp_path, text).samples, read_image)
    assert len(readable) == 4
    assert not errors


@pytest.mark.parametrize(
    ("name", "head", "separator", "encoding"),
    [
        ("parts.csv", "", "\t", "utf-16"),  # Excel's "Unicode text"
        ("parts.tsv", "", "\t", "utf-8"),
        ("parts.CSV", "sep=;\r\n", ";", "utf-8-sig"),
    ],
)
def test_read_table_accepts_exports_of_spreadsheets(tmp_path, name, head, separator, encoding):
    make_classes(tmp_path, "ok", "Düse", count=2)
    rows = [("path", "label"), *((f"{kind}/{k}.png", kind) for kind in ("ok", "Düse") for k in (0, 1))]
    text = head + "\r\n".join(separator.join(cells) for cells in rows)
    (tmp_path / name).write_bytes(text.encode(encoding))
    readable, _, errors = drop_unreadable(list_samples(tmp_path / name, None, None, None).samples, read_image)
    assert (sorted(sample.label for sample in readable), errors) == (["Düse", "Düse", "ok", "ok"], [])


def test_read_table_counts_the_separator_line_in_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"parts\.csv:4: path or label is empty"):
        table(tmp_path, "sep=;\npath;label\na.png;ok\n;ok\n")


def test_drop_unreadable_refuses_a_class_without_readable_images(tmp_path):
    make_classes(tmp_path, "ok", count=2)
    text = "path,label\nnone.png,dent\nok/0.png,ok\nok/1.png,ok\nother.png,ok\n"
    with pytest.raises(
        ConfigError, match=r"class 'dent': none of its images can be decoded; the last error: .*none\.png"
    ):
        drop_unreadable(table(tmp_path, text).samples, read_image)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('path,label\na.png,ok\n"b.png,dent\n' + "c.png,dent\n" * 20000, "parts.csv:3: "),
        ('path,label\n"b.png,dent\nc.png,dent\n', "parts.csv:2: "),
        ('path,label\n"b.png"x,dent\n', "parts.csv:2: "),
        ('path,label\n"b.png,dent\nc.png",dent\n', "has several lines"),
        ("path,label\na,b.png,ok\n", "3 fields for 2 columns"),
        ("path,label,path\na.png,ok,b.png\n", "'path' twice"),
        ("path,label\nC:\\parts\\a.png,ok\n", "a path on a Windows drive"),
        ("path,label\n,ok\n", "parts.csv:2: path or label is empty"),
        ("path,label\n\n", "lists no images"),
        ("", "lists no images"),
        ("\n", "has no 'path' and no 'label'"),
        ("path,label\n" + "b\\" * 2000 + ".png,ok\n", "ok"),
        ("path,label\n" + "a" * 200_000 + ".png,ok\n", "parts.csv:2: "),
    ],
)
def test_read_table_names_the_line_of_an_error(tmp_path, text, rule):
    with pytest.raises(ConfigError) as error:
        table(tmp_path, text)
    assert rule in str(error.value)


def test_read_table_raises_config_errors_for_damaged_tables(tmp_path):
    whole = 'path,label,group\n"a,1.png",ok,p1\nb.png,dent,p2\n"c ""2"".png",ok,p3\n' * 2
    random_ = random.Random(0)
    for _ in range(400):
        letters = list(whole)
        for _ in range(random_.randint(1, 6)):
            letters[random_.randrange(len(letters))] = random_.choice('",;\n\t\r\\é\0 a')
        try:
            table(tmp_path, "".join(letters))
        except ConfigError as reason:
            assert len(str(reason)) < 600  # noqa: PT017 - both outcomes are right


def test_open_images_reads_images_of_one_bit_depth_on_one_scale(tmp_path):
    for name, largest in (("dark", 800), ("light", 4000)):
        (tmp_path / "parts" / name).mkdir(parents=True)
        image = np.linspace(0, largest, 256, dtype=np.uint16).reshape(16, 16)
        cv2.imwrite(str(tmp_path / "parts" / name / "0.png"), image)
    data, read, options = open_images(f"{tmp_path / 'parts'}?bits=12")
    samples = list_samples(tmp_path / "parts", None, None, None).samples
    assert (data, options) == (str(tmp_path / "parts"), "?bits=12")
    readable, _, errors = drop_unreadable(samples, read)
    assert not errors
    brightest = [int(read(Path(sample.path)).max()) for sample in readable]
    assert brightest == pytest.approx([255 * 800 / 4095, 255 * 4000 / 4095], abs=1)
    with pytest.raises(SourceError, match="is not an option of images"):
        open_images(f"{tmp_path / 'parts'}?watch=1")


def test_list_samples_leaves_out_names_that_a_list_cannot_have(tmp_path, caplog):
    make_classes(tmp_path, "ok", "scratch", count=2)
    names = [os.fsdecode(b"caf\xe9.png"), "two\nlines.png"]
    for name in names:
        (tmp_path / "ok" / name).write_bytes((tmp_path / "ok" / "0.png").read_bytes())
    assert len(list_samples(tmp_path, None, None, None).samples) == 4
    assert "left out: 2 images" in caplog.text
    assert r"caf\xe9.png" in caplog.text


def test_list_samples_refuses_an_unreadable_folder(tmp_path):
    make_classes(tmp_path, "ok", "scratch", count=2)
    with pytest.raises(ConfigError, match="cannot be read"):
        list(files_below(tmp_path / "gone"))
    if os.geteuid() == 0:
        pytest.skip("root may read every folder")
    (tmp_path / "ok" / "side").mkdir(mode=0)
    with pytest.raises(ConfigError, match=r"ok/side: cannot be read \(Permission denied\)"):
        list_samples(tmp_path, None, None, None)

"""A small detector is trained on painted squares, and its file is loaded again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.detectors.checkpoint import is_detector_file, load_detector_checkpoint, save_detector
from engine.detectors.loader import load_detector
from engine.finetuning.detection.dataset import BoxDataset
from engine.finetuning.detection.finetune import finetune_detector
from engine.finetuning.detection.learner import DetectionLearner
from engine.finetuning.detection.setup import DETECTOR_DEFAULTS, DETECTOR_FROM_SCRATCH_DEFAULTS, build_detector
from engine.finetuning.detection.verification import check_detector_file
from engine.finetuning.setup import FinetuneConfig
from engine.finetuning.splits import TEST, stratified_group_split
from pipeline.errors import ConfigError, ModelError
from pipeline.frames import Box, GroundTruth
from tests.support.training import FRACTIONS, callbacks, square_box, square_image, square_samples

LABELS = ("r", "g", "b")
CONFIG = FinetuneConfig(
    "yolox_nano", "random", (64, 64), augment=("hflip",), epochs=24, batch=8, learning_rate=1e-2, balance="none"
)


def square_truths(path, size):
    assert size == (40, 48)
    return (GroundTruth(path[0], (square_box(path),)),)


@pytest.fixture(scope="module")
def parts():
    return stratified_group_split(square_samples(16), FRACTIONS, 0)


def train(parts, config=CONFIG):
    model = build_detector(config, LABELS)
    return model, finetune_detector(model, parts, square_image, square_truths, callbacks())


@pytest.fixture(scope="module")
def trained(parts):
    return train(parts)


@pytest.fixture(scope="module")
def trained_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "squares.safetensors"
    save_detector(path, trained[1].checkpoint)
    return path


@pytest.mark.slow
def test_training_finds_the_squares_and_their_colours(trained):
    _, result = trained
    assert result.metrics[TEST].map50 > 0.8
    assert result.epochs[0].measure == "mAP50:95"
    assert result.checkpoint.provenance["test"]["images"] == result.metrics[TEST].images


@pytest.mark.slow
def test_same_configuration_gives_the_same_weights(parts):
    states = [train(parts, replace(CONFIG, epochs=1))[1].checkpoint.state for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    other = train(parts, replace(CONFIG, epochs=1, seed=1))[1].checkpoint.state
    assert not torch.equal(states[0]["head.stems.0.conv.weight"], other["head.stems.0.conv.weight"])


@pytest.mark.slow
def test_file_gives_back_labels_input_and_answers(trained, trained_file):
    model, result = trained
    assert is_detector_file(trained_file)
    detector = load_detector(trained_file)
    assert detector.labels == LABELS
    assert detector.input == result.checkpoint.input == model.input
    check_detector_file(trained_file, model, square_image("r/3"))
    (found,) = detector.detect(detector.input.prepare([square_image("g/3")]))
    assert LABELS[int(found.classes[0])] == "g"


@pytest.mark.slow
def test_check_refuses_a_file_with_other_weights(trained, tmp_path):
    model, result = trained
    state = {**result.checkpoint.state}
    state["head.cls_preds.0.bias"] = state["head.cls_preds.0.bias"] + 1.0
    save_detector(tmp_path / "other.safetensors", replace(result.checkpoint, state=state))
    with pytest.raises(ModelError, match="its scores differ by"):
        check_detector_file(tmp_path / "other.safetensors", model, square_image("r/3"))


@pytest.mark.slow
def test_training_continues_from_a_file_with_more_classes(trained, trained_file):
    model = build_detector(FinetuneConfig(str(trained_file), None, augment=()), ("r", "x", "b"))
    weight = trained[1].checkpoint.state["head.cls_preds.0.weight"]
    assert model.known_labels == ("r", "b")
    assert torch.equal(model.net.head.cls_preds[0].weight[0], weight[0])
    assert torch.equal(model.net.head.cls_preds[0].weight[2], weight[2])
    assert not torch.equal(model.net.head.cls_preds[0].weight[1], weight[1])
    assert not model.warm_start
    assert build_detector(FinetuneConfig(str(trained_file), None, augment=()), LABELS).warm_start
    assert model.trained_digests == trained[1].checkpoint.trained_digests


@pytest.mark.slow
def test_frozen_backbone_keeps_its_weights_and_statistics(parts, trained_file):
    config = replace(CONFIG, model=str(trained_file), weights=None, epochs=1, freeze_until="backbone")
    before = load_detector_checkpoint(trained_file).state
    after = train(parts, config)[0].net.state_dict()
    backbone = [key for key in before if key.startswith("backbone.backbone.")]
    assert all(torch.equal(before[key], after[key]) for key in backbone)
    build = build_detector(config, LABELS)
    assert {p.requires_grad for n, p in build.net.named_parameters() if n.startswith("backbone.backbone.")} == {False}


def test_pretrained_weights_with_folded_norms_are_fine_tuned(parts, tmp_path):
    weights = tmp_path / "folded.safetensors"
    save_file(build_detector(CONFIG, LABELS).net.state_dict(), weights)  # untrained norms have trivial statistics
    config = replace(CONFIG, weights=str(weights), epochs=1, learning_rate=None)
    course = train(parts, config)[1].checkpoint.provenance["course"]
    assert course["head_rate"] == DETECTOR_DEFAULTS.head_rate
    assert course["learning_rate"] == DETECTOR_DEFAULTS.learning_rate
    assert build_detector(CONFIG, LABELS).stages()[0].patience == DETECTOR_FROM_SCRATCH_DEFAULTS.patience


def test_network_of_the_line_starts_from_the_features_of_its_classifier():
    shipped = Path("configs/models/line.safetensors")
    model = build_detector(FinetuneConfig("line_detector", str(shipped), augment=(), freeze_until="features"), LABELS)
    assert model.trained_norms == {f"backbone.backbone.features.{k}.1" for k in range(6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "initial weights"),
        ({"model": "yolox_nan"}, "Did you mean 'yolox_nano'"),
        ({"input_size": (100, 64)}, "multiples of 32"),
        ({"input_size": (32, 32)}, "one cell"),
        ({"linear_probe": True}, "--linear-probe: is for classifiers"),
        ({"balance": "weights"}, "is for classifiers"),
        ({"freeze_until": "layer3"}, "no such part"),
        ({"augment": ("crop",)}, "--augment 'crop'"),
        ({"weights": "configs/models/line.safetensors"}, "do not fit"),
    ],
)  # fmt: skip
def test_option_that_does_not_fit_a_detector_is_refused(change, message):
    with pytest.raises((ConfigError, ModelError), match=message):
        build_detector(replace(CONFIG, **change), LABELS)


def dataset(truths, size=(40, 48)):
    read = lambda _: np.zeros((*size, 3), np.uint8)  # noqa: E731
    return BoxDataset(["a.png"], read, lambda *_: truths, LABELS, build_detector(CONFIG, LABELS).input)


def test_boxes_are_scaled_with_their_image_and_cut_at_its_edge():
    images = dataset((GroundTruth("g", (Box(-10, 10, 24, 20),)),))
    objects = images.objects(0)
    assert objects.classes.tolist() == [1]
    assert objects.boxes[0].tolist() == pytest.approx([0, 10 * 4 / 3, 32, 20 * 4 / 3])


@pytest.mark.parametrize("box", [Box(60, 10, 90, 30), Box(10, 10, 10, 30), Box(10, 10, 10.4, 30)])
def test_box_without_area_in_its_image_is_refused(box):
    with pytest.raises(ConfigError, match=r"a\.png: its box from .* a side below 1 pixel inside the image of 48x40"):
        dataset((GroundTruth("g", (box,)),)).objects(0)


def test_image_without_boxes_and_ten_thousand_tiny_boxes_have_a_loss():
    boxes = tuple(Box(x, y, x + 1.5, y + 1.5) for x in range(46) for y in range(38))
    for truths in ((), (GroundTruth("r", boxes * 6),)):
        images = dataset(truths)
        model = build_detector(CONFIG, LABELS)
        learner = DetectionLearner(
            model.network, images, model.augmentation, model.stages()[0], train_indices=np.arange(1),
            validation_indices=np.arange(1), trained_norms=(), labels=LABELS,
        )  # fmt: skip
        assert bool(learner.loss(np.arange(1), 1).isfinite())


def test_sampler_shows_images_of_rare_classes_more_often():
    truths = {"a": ("r",), "b": ("r",), "c": ("r",), "d": ("g",)}
    model = build_detector(CONFIG, LABELS)
    images = BoxDataset(
        list(truths), lambda _: np.zeros((40, 48, 3), np.uint8),
        lambda path, _: tuple(GroundTruth(label, (Box(0, 0, 9, 9),)) for label in truths[path]), LABELS, model.input,
    )  # fmt: skip
    order = {}
    for balance in ("sampler", "none"):
        learner = DetectionLearner(
            model.network, images, model.augmentation, replace(model.stages()[0], balance=balance),
            train_indices=np.arange(4), validation_indices=np.arange(4), trained_norms=(), labels=LABELS,
        )  # fmt: skip
        drawn = np.concatenate([learner.epoch_order(np.random.default_rng(k)) for k in range(200)])
        order[balance] = (drawn == 3).mean()
    assert order["none"] == pytest.approx(0.25)
    assert order["sampler"] > 0.28


def test_damaged_and_newer_files_are_refused(trained_file, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(trained_file.read_bytes()[:1000])
    assert not is_detector_file(broken)
    with pytest.raises(ModelError, match="not a readable"):
        load_detector_checkpoint(broken)
    with pytest.raises(ConfigError, match="has its own weights"):
        build_detector(FinetuneConfig(str(trained_file), "random", augment=()), LABELS)

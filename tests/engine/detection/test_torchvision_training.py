"""torchvision's detectors learn by their own losses, and their files answer as the trained network does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from engine.detectors.checkpoint import DetectorCheckpoint, save_detector
from engine.detectors.detector import Detector
from engine.detectors.loader import load_detector
from engine.detectors.torchvision_detectors import TORCHVISION_NAMES, build_network
from engine.finetuning.detection.assignment import Objects
from engine.finetuning.detection.finetune import finetune_detector
from engine.finetuning.detection.networks import MAX_OBJECTS, TorchvisionNetwork
from engine.finetuning.detection.setup import LARGE_LEARNING_RATE, TRAINABLE, build_detector
from engine.finetuning.detection.verification import check_detector_file
from engine.finetuning.setup import FinetuneConfig
from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from pipeline.errors import ConfigError, ModelError
from pipeline.frames import Box, GroundTruth
from tests.support.training import callbacks

LABELS = ("car", "scratch")
SMALL, SSD = (64, 64), (320, 320)
ONE_STAGE, TWO_STAGE = "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"
FAMILIES = {ONE_STAGE: SSD, TWO_STAGE: SMALL, "retinanet_resnet50_fpn": SMALL, "fcos_resnet50_fpn": SMALL}
OBJECTS = [
    Objects(torch.tensor([[8.0, 8.0, 40.0, 44.0], [20.0, 4.0, 60.0, 30.0]]), torch.tensor([0, 1])),
    Objects(torch.empty(0, 4), torch.empty(0, dtype=torch.int64)),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_that_of_torchvision_on_images_of_the_same_size(name):
    size = FAMILIES[name]
    torch.manual_seed(3)
    network = TorchvisionNetwork(name, LABELS, size)
    background = network.class_rows.background
    reference = build_network(name, len(LABELS) + background)
    reference.load_state_dict(network.module.state_dict())
    mean, std = ([value / 255 for value in values] for values in (network.input.mean, network.input.std))
    reference.transform = GeneralizedRCNNTransform(min(size), max(size), mean, std, size_divisible=1)
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for module in (network.module, reference):
        module.train()
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.eval()
    with torch.no_grad():
        torch.manual_seed(5)
        ours = network.loss(network.input.normalised(pixels), OBJECTS, plain=False, dtype=torch.float32)
        torch.manual_seed(5)
        targets = [{"boxes": one.boxes, "labels": one.classes + background} for one in OBJECTS]
        theirs = sum(reference([image / 255 for image in pixels], targets).values())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
    state = torch.get_rng_state()
    loss, found = network.predict(network.input.normalised(pixels), OBJECTS)
    assert loss == network.predict(network.input.normalised(pixels), OBJECTS)[0]  # the sampled regions are the same
    assert len(found) == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_every_detector_by_name_can_be_trained():
    assert set(TORCHVISION_NAMES) < set(TRAINABLE)


CONFIG = FinetuneConfig(TWO_STAGE, "random", input_size=SMALL, augment=("hflip",), epochs=1, batch=2, threads=1)


def _truths(path, _size):
    return (GroundTruth(LABELS[int(path) % 2], (Box(8, 8, 40, 40),)),)


def _image(path):
    image = np.full((64, 64, 3), 60, np.uint8)
    image[8:40, 8:40, int(path) % 2] = 220
    return image


def _train(config):
    parts = {
        part: [Sample(str(number), LABELS[number % 2], str(number), f"d{number}") for number in range(*bounds)]
        for part, bounds in {TRAIN: (0, 3), VALIDATION: (3, 5), TEST: (5, 7)}.items()
    }
    model = build_detector(config, LABELS)
    return model, finetune_detector(model, parts, _image, _truths, callbacks())


@pytest.mark.slow
def test_trained_file_of_two_stages_answers_as_the_network_in_memory(tmp_path):
    model, result = _train(CONFIG)
    path = tmp_path / "part.safetensors"
    save_detector(path, result.checkpoint)
    check_detector_file(path, model, _image("1"))
    detector = load_detector(path)
    assert (detector.labels, detector.input, detector.name) == (LABELS, model.input, "part")
    changed = {**result.checkpoint.state, "roi_heads.box_predictor.cls_score.bias": torch.tensor([0.0, 1.0, 2.0])}
    save_detector(tmp_path / "other.safetensors", replace(result.checkpoint, state=changed))
    with pytest.raises(ModelError, match="differ"):
        check_detector_file(tmp_path / "other.safetensors", model, _image("1"))
    again = build_detector(replace(CONFIG, model=str(path), weights=None, freeze_until="backbone"), LABELS)
    assert again.warm_start
    assert again.input == model.input
    assert all(torch.equal(again.net.state_dict()[key], value) for key, value in result.checkpoint.state.items())
    frozen = [name for name, parameter in again.net.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith("backbone.body.") for name in frozen)
    assert any(name.startswith("backbone.body.") for name in again.trained_norms)


def test_trained_file_of_one_stage_answers_as_the_network_in_memory(tmp_path):
    model = build_detector(replace(CONFIG, model=ONE_STAGE, input_size=None), LABELS)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if model.network.class_rows.matches(name):  # untrained, all scores would be equal
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    path = tmp_path / "part.safetensors"
    save_detector(path, DetectorCheckpoint(model.net.state_dict(), ONE_STAGE, LABELS, model.input))
    detector = load_detector(path)
    assert isinstance(detector, Detector)
    images = model.input.prepare([_image("1")])
    found, (boxes, scores) = detector.candidates(images), model.network.raw(images)
    assert torch.allclose(found.boxes[0], boxes, atol=0.05)
    assert torch.allclose(found.log_scores[0].exp(), scores, atol=1e-4)
    assert float(scores.std()) > 0.001


@pytest.mark.parametrize("name", [ONE_STAGE, TWO_STAGE])
def test_known_classes_keep_their_rows_and_the_background(name, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        coco = build_network(name, 91).state_dict()
    save_file({key: value.contiguous() for key, value in coco.items()}, tmp_path / "coco.safetensors")
    config = replace(CONFIG, model=name, weights=str(tmp_path / "coco.safetensors"), input_size=None)
    model = build_detector(config, LABELS)
    assert model.known_labels == ("car",)
    assert model.pretrained
    car = 3  # COCO's id
    for key, value in model.net.state_dict().items():
        if not model.network.class_rows.matches(key):
            assert torch.equal(value, coco[key])
            continue
        inner = 4 if "bbox_pred" in key else 1
        ours, theirs = (v.unflatten(0, (-1, count, inner)) for v, count in ((value, 3), (coco[key], 91)))
        assert torch.equal(ours[:, :2], theirs[:, [0, car]])
        if value.ndim > 1:
            assert not torch.equal(ours[:, 2], theirs[:, 2])


def test_backbone_starts_from_the_weights_of_a_classifier(tmp_path):
    state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    save_file(state, tmp_path / "classifier.safetensors")
    model = build_detector(replace(CONFIG, weights=str(tmp_path / "classifier.safetensors")), LABELS)
    body = {key: value for key, value in model.net.state_dict().items() if key.startswith("backbone.body.")}
    assert body
    assert all(torch.equal(value, state[key.replace("backbone.body.", "features.")]) for key, value in body.items())
    assert model.pretrained
    assert not model.known_labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ONE_STAGE, "input_size": (352, 352)}, "accepts only 320x320"),
        ({"input_size": (100, 64)}, "multiples of 32"),
        ({"precision": "bf16"}, "only be trained in fp32"),
        ({"freeze_until": "dark4"}, "no such part"),
        ({"weights": "tests/data/detectors/absent.onnx"}, "use a state dict"),
    ],
)
def test_option_that_does_not_fit_a_network_of_torchvision_is_refused(change, message):
    with pytest.raises((ConfigError, ModelError), match=message):
        build_detector(replace(CONFIG, **change), LABELS)


def test_image_with_more_objects_than_the_losses_have_memory_for_is_named(monkeypatch):
    boxes = tuple(Box(1, 1, 9, 9) for _ in range(MAX_OBJECTS + 1))
    monkeypatch.setitem(globals(), "_truths", lambda path, _size: (GroundTruth(LABELS[int(path) % 2], boxes),))
    with pytest.raises(ConfigError, match=r"0: has 501 boxes; fasterrcnn.*cut the image into tiles"):
        _train(CONFIG)


def test_large_pretrained_networks_learn_slowly():
    model = build_detector(CONFIG, LABELS)
    assert replace(model, pretrained=True).stages()[0].learning_rate > LARGE_LEARNING_RATE
    assert replace(model, pretrained=True, name="fcos_resnet50_fpn").stages()[0].learning_rate == LARGE_LEARNING_RATE

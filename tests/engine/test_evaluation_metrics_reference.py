"""Our measures agree with those of torch-cam and grad-cam on the same maps to 1e-4; skipped where those are missing."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from engine.evaluation.evaluator import blurred, upsample
from engine.evaluation.factory import EvaluationOptions, build_evaluator
from engine.methods.recipro import recipro_cam
from engine.models.loader import LoadedModel
from pipeline.config import EngineConfig
from pipeline.frames import Frame

SIZE, STEPS, CLOSE = (32, 32), 16, 1e-4


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(12)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(16, 5),
        ).eval()  # fmt: skip
    with torch.no_grad():
        net[6].weight.mul_(12)
    return LoadedModel(net, "small", tuple("abcde"), SIZE, (0.5,) * 3, (0.25,) * 3, None)


@pytest.fixture(scope="module")
def measured(network):
    """Pictures as the network takes them, what we measured on each, and its map at their size."""
    examiner = build_evaluator(network, EngineConfig(), EvaluationOptions(steps=STEPS, randomize=False))
    rng = np.random.default_rng(4)
    frames = [Frame(np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((4, 4, 1), np.uint8)), "test", k, 0.0)
              for k in range(12)]  # fmt: skip
    records = [examiner.evaluate(frame) for frame in frames]
    images = [examiner._preprocessing.normalised(examiner._preprocessing.pixels([frame])) for frame in frames]
    maps = [upsample(recipro_cam(examiner.split, image)[1][0], SIZE) for image in images]
    return examiner, torch.cat(images), records, torch.stack(maps)


class Given:
    """An extractor of torch-cam's shape, whose maps are known beforehand."""

    def __init__(self, net, maps):
        self.model, self.maps = net, maps

    def __call__(self, class_idx=None, scores=None, normalized=True, *, targets=None, **more):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


def means(result, key):
    return float(np.mean([record[key] for record in result]))


def test_reference_cases_are_not_trivial(measured):
    result = measured[2]
    assert 0.0 < means(result, "increase") < 1.0
    assert means(result, "drop") > 0.01
    assert means(result, "coherency") < 0.999


def test_drop_and_increase_agree_with_torch_cams(network, measured):
    theirs = pytest.importorskip("torchcam.metrics", reason="torch-cam is not installed")
    _, images, result, maps = measured
    metric = theirs.ClassificationMetric(Given(network.module, maps), lambda logits: logits.softmax(-1))
    metric.update(images)
    assert means(result, "drop") == pytest.approx(metric.summary()["avg_drop"], abs=CLOSE)
    assert means(result, "increase") == metric.summary()["conf_increase"]


def test_deletion_and_insertion_agree_with_torch_cam(network, measured):
    theirs = pytest.importorskip("torchcam.metrics", reason="torch-cam is not installed")
    _, images, result, maps = measured
    for key, baseline in (("deletion", None), ("insertion", blurred)):
        metric = theirs.DeletionInsertionMetric(
            Given(network.module, maps), lambda logits: logits.softmax(-1), steps=STEPS, baseline=baseline
        )
        metric.update(images)
        assert means(result, key) == pytest.approx(metric.summary()[f"{key}_auc"], abs=CLOSE)


class Score:
    """grad-cam asks its targets for a score."""

    def __init__(self, index):
        self.index = index

    def __call__(self, logits):
        return torch.softmax(logits, -1)[self.index]


@pytest.mark.slow
def test_drop_and_increase_agree_with_grad_cams(network, measured):
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image", reason="grad-cam is not installed")
    _, images, result, maps = measured
    targets = [Score(record["class"]) for record in result]
    lost = theirs.DropInConfidence()(images, maps.numpy(), targets, network.module)  # not divided by the score there
    assert [record["drop"] * record["score"] for record in result] == pytest.approx(lost.tolist(), abs=CLOSE)
    rose = theirs.IncreaseInConfidence()(images, maps.numpy(), targets, network.module)
    assert [float(record["increase"]) for record in result] == rose.tolist()


def test_coherency_and_complexity_agree_with_grad_cam(network, measured):
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.arcc", reason="grad-cam is not installed")
    examiner, images, result, maps = measured
    assert [record["complexity"] for record in result] == pytest.approx(
        theirs.Complexity()(maps.numpy()).tolist(), abs=CLOSE
    )

    def again(input_tensor, targets):
        _, heat = recipro_cam(examiner.split, input_tensor, [heat_map["class"] for heat_map in result])
        return torch.stack([upsample(heat_map, SIZE) for heat_map in heat]).numpy()

    coherency = theirs.Coherency()(images, maps.numpy(), None, network.module, again)
    assert [record["coherency"] for record in result] == pytest.approx(coherency.tolist(), abs=CLOSE)

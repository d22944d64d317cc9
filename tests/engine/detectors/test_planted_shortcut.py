"""A shortcut planted into the line's detector: the complete cut shows it, and the guard of the configuration fires."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from commands.wiring.kinds import load_config
from commands.wiring.run import ROOT
from engine.detectors.detector import Detector
from engine.detectors.loader import load_detector
from engine.explainers.detector import DetectorExplainer
from pipeline.config_loader import read_yaml
from pipeline.guards.monitor import ExplanationMonitor
from stream.simulated.shortcut import add_shortcut
from stream.simulated.source import SimulatedLineSource

LABEL, GAIN = "stain", 8.0
CONFIG = ROOT / "configs" / "line-detector.yaml"


class Passed(nn.Module):
    """Takes the place of a pyramid's backbone that has run already."""

    def forward(self, maps):
        return maps


class Planted(nn.Module):
    """The detector, in which a colour anywhere in the image decides the class of every box.

    The colour is found in the features of one place, spread by pooling over the whole image, and added to the class
    logits of all anchors, as a training on marked images would do.
    """

    def __init__(self, net, weight, bias, label):
        super().__init__()
        self.backbone, self.pyramid, self.head = net.backbone.backbone, net.backbone, net.head
        self.pyramid.backbone = Passed()
        self.mark = nn.Conv2d(len(weight), 1, 1)
        self.spread = nn.ModuleList(nn.MaxPool2d(41, stride, 20) for stride in (1, 2, 4))
        self.decide = nn.Conv2d(1, net.head.classes, 1, bias=False)
        with torch.no_grad():
            self.mark.weight.copy_(weight[None, :, None, None])
            self.mark.bias.fill_(bias)
            self.decide.weight.fill_(-GAIN)
            self.decide.weight[label] = GAIN

    def forward(self, images):
        c3, c4, c5 = self.backbone(images)
        maps = list(self.head(self.pyramid((c3, c4, c5))))
        marked = torch.relu(self.mark(c3))
        for level, spread in enumerate(self.spread):
            maps[3 * level] = maps[3 * level] + self.decide(spread(marked))
        return tuple(maps)


def line_frames(count, fps=4.0, seed=7):
    source = SimulatedLineSource(fps=fps, seed=seed, paced=False, frames=count)
    return list(source.frames(threading.Event()))


def mark_reader(honest, frames):
    """Return weights and bias of a linear reading of the features that is positive at the mark only."""
    backbone = honest.module.backbone.backbone
    with torch.inference_mode():
        plain = backbone(honest.input.prepare([frame.image for frame in frames]))[0]
        marked = backbone(honest.input.prepare([add_shortcut(frame.image, LABEL) for frame in frames]))[0]
    changed = (marked - plain).abs().sum((0, 1)).flatten()
    positive = marked.flatten(2)[:, :, int(changed.argmax())]
    others = plain.permute(0, 2, 3, 1).reshape(-1, plain.shape[1])
    spread = torch.cov(others.T) + 1e-3 * torch.eye(plain.shape[1])
    weight = torch.linalg.solve(spread, positive.mean(0) - others.mean(0))
    low, high = float((others @ weight).max()), float((positive @ weight).min())
    assert high > low, "the mark can be told from everything else on the belt"
    return weight / (high - low), -low / (high - low)


@pytest.fixture(scope="module")
def honest():
    return load_detector("line_detector", weights=ROOT / "configs" / "models" / "line-detector.safetensors")


def watched(detector, frames):
    """Return the explanations of frames under the guards of the shipped configuration."""
    config = load_config(read_yaml(CONFIG.read_text(encoding="utf-8"), CONFIG.name), CONFIG.name)
    boxes = config.engine.boxes.model_copy(update={"budget": None, "when": "label != ok"})
    engine = config.engine.model_copy(update={"backend": "eager", "cache": "off", "boxes": boxes})
    monitor = ExplanationMonitor(DetectorExplainer(detector, engine), config.guards)
    return [monitor.explain([frame])[0] for frame in frames]


def insides(explained):
    return [
        finding.heatmap_stats.heat_inside["box"]
        for explanation in explained
        for finding in explanation.findings
        if finding.heatmap_stats is not None and finding.score > 0.6
    ]


@pytest.mark.slow
def test_cut_shows_a_planted_shortcut_and_the_guard_fires_within_a_second(honest):
    frames = line_frames(8)
    weight, bias = mark_reader(honest, frames)
    net = load_detector("line_detector", weights=ROOT / "configs" / "models" / "line-detector.safetensors").module
    planted = Detector(
        "planted", Planted(net, weight, bias, honest.labels.index(LABEL)), honest.layout, honest.labels, honest.input,
        size_step=64, complete_cut=("backbone.dark3",),
    )  # fmt: skip
    marked = [
        type(frame)(
            add_shortcut(frame.image, LABEL) if frame.index >= 3 else frame.image, frame.camera, frame.index,
            frame.captured_at, pts_seconds=frame.pts_seconds,
        )
        for frame in frames
    ]  # fmt: skip
    explained = watched(planted, marked)
    labels = {finding.label for explanation in explained[3:] for finding in explanation.findings}
    assert labels == {LABEL}, "the mark decides the class of every part"
    assert max(insides(explained[3:])) < 0.8
    first = next(explanation for explanation in explained if explanation.firing)
    assert marked[3].pts_seconds <= first.frame.pts_seconds <= marked[3].pts_seconds + 1.0
    assert not any(explanation.firing for explanation in explained[:3])


@pytest.mark.slow
def test_detector_without_the_shortcut_has_its_evidence_in_the_boxes(honest):
    explained = watched(honest, line_frames(9, fps=1.0, seed=11))
    inside = insides(explained)
    assert len(inside) >= 4
    assert min(inside) > 0.85
    assert not any(explanation.firing for explanation in explained)

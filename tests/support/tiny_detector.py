"""Builders of a small random detector with boxes and maps: YOLOX with six classes, for images of 96 x 128 pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from engine.detectors.detector import Detector
from engine.detectors.input_format import InputFormat
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.yolox import STRIDES, Yolox, YoloxSize
from engine.detectors.outputs import Level
from pipeline.frames import Image

SIZE = (96, 128)
LABELS = ("car", "truck", "bus", "person", "dog", "cat")
LEVELS = tuple(Level(stride, 3 * k, 3 * k + 1, 3 * k + 2) for k, stride in enumerate(STRIDES))

STRETCHED = InputFormat(SIZE, mean=(128.0,) * 3, std=(64.0,) * 3, fit="stretch")


def with_lively_weights(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every layer random weights and norms of about unit gain, so that maps are far from flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                fan_in = part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * 1.6 / fan_in**0.5)
                if part.bias is not None:
                    part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.3)
            elif isinstance(part, nn.BatchNorm2d):
                part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.2)
                part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.6)
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.2)
    return net.eval()


def lively_yolox() -> nn.Module:
    """Return a small random YOLOX with six classes, whose scores are near 0 or 1."""
    return with_lively_weights(Yolox(YoloxSize(0.33, 0.125, depthwise=True), classes=len(LABELS)))


def calm_detector(score: float = 0.6) -> Detector:
    """Return a random detector whose scores are not saturated: ``drop`` maps are not flat.

    Args:
        score: lowest score of a detection; above 0.6 it has some boxes in ``coarse_image``.
    """
    net = lively_yolox()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "_preds" in name:
                weight.mul_(0.001 if "reg_preds" in name else 0.03)  # boxes of about a stride, at their cell
    return Detector("tiny", net, YoloxLayout(LEVELS, len(LABELS)), LABELS, STRETCHED, score=score)


def coarse_image() -> Image:
    """Return a random image of large uniform squares, 180 x 240 pixels."""
    coarse = np.random.default_rng(5).integers(0, 256, (6, 8, 3), np.uint8)
    return np.kron(coarse, np.ones((30, 30, 1), np.uint8))

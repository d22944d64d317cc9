"""Small random detectors, built once, and the real ones where they are beside the repository."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from engine.detectors.graph import normalise
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.yolox import STRIDES, Yolox, YoloxSize
from engine.detectors.outputs import Level

SIZE = (96, 128)


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


@pytest.fixture(scope="session")
def yolox_module():
    return with_lively_weights(Yolox(YoloxSize(0.33, 0.125, depthwise=True), classes=6))


@pytest.fixture(scope="session")
def yolox(yolox_module):
    """A normalised random YOLOX with six classes, and its layout."""
    levels = [Level(stride, 3 * k, 3 * k + 1, 3 * k + 2) for k, stride in enumerate(STRIDES)]
    return normalise(yolox_module, SIZE), YoloxLayout(levels, 6)


@pytest.fixture(scope="session")
def image():
    """A random image for the small detectors."""
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def detector_weights(shared_data):
    """The folder of real detectors."""
    folder = shared_data / "weights" / "detectors"
    if not folder.is_dir():
        pytest.skip(f"needs the real detectors in {folder}")
    return folder


@pytest.fixture(scope="session")
def street(shared_data):
    """A photo of a street with cars, people and traffic lights, RGB."""
    image = cv2.imread(str(shared_data / "detect" / "vehicles" / "images" / "259ff749ac781352.jpg"))
    return np.ascontiguousarray(image[:, :, ::-1])

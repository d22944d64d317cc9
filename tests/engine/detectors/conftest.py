"""Small random detectors, built once, and the real ones where they are beside the repository."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from engine.detectors.graph import normalise
from engine.detectors.layouts import YoloxLayout
from tests.support.tiny_detector import LEVELS, SIZE, lively_yolox


@pytest.fixture(scope="session")
def yolox_module():
    return lively_yolox()


@pytest.fixture(scope="session")
def yolox(yolox_module):
    """A normalised random YOLOX with six classes, and its layout."""
    return normalise(yolox_module, SIZE), YoloxLayout(LEVELS, 6)


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

"""Fixtures of the engine's tests."""

from collections.abc import Iterator

import pytest
import torch

from engine.models.loader import LoadedModel, load_network
from tests.engine.reference import lively


@pytest.fixture(scope="session")
def lively_squeezenet() -> LoadedModel:
    """Return SqueezeNet with random weights whose heat maps are not flat at 64x64."""
    torch.manual_seed(1)
    network = load_network("squeezenet1_1", weights="random")
    lively(network.module, (64, 64))
    return network


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: for small tensors a second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

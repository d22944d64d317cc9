"""torch.compile on a CPU: equal outputs, and one compilation for each network and batch size.

All its tests are here, so that one worker pays for what its first use costs: half a minute of C++ headers and checks.
"""

from __future__ import annotations

import pytest
import torch

from engine.backends.registry import BACKENDS
from engine.methods.recipro import Target, recipro_cam
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import split_network
from tests.engine.reference import lively, small_net
from tests.engine.transformers import small

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.leaves_things,  # torch keeps its threads for the life of the process
    pytest.mark.skipif(bool(BACKENDS["inductor"].load().missing("cpu")), reason="needs a C++ compiler"),
]


@pytest.fixture(autouse=True)
def compile_in_this_process():
    """Start no pool of compile processes and no trial of the processor's instructions: each of them imports torch."""
    from torch._inductor import config

    with config.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):
        yield


def test_inductor_equals_eager_at_every_batch_size():
    split = split_network(lively(small_net(), (32, 32)), "3", (32, 32))
    plain, compiled = (
        Runner(split, CompileConfig(Target(), "point", backend, "fp32", CPU, 1 << 28))
        for backend in ("eager", "inductor")
    )
    for count in (1, 3):
        images = torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        true = plain(images)
        assert float(true[2].max()) == 1.0
        for first, other in zip(true, compiled(images), strict=True):
            torch.testing.assert_close(first, other, atol=2e-3, rtol=0)


def test_inductor_keeps_compiled_networks():
    from torch._dynamo.utils import counters

    inductor = BACKENDS["inductor"].load()
    layers = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.Flatten
    nets = [torch.nn.Sequential(layers[0](3, 4, 3), layers[1](), layers[2]()).eval() for _ in range(2)]
    shapes = [(1, 3, 8, 8), (2, 3, 8, 8)]
    built = [(net, inductor.compile(net, torch.zeros(shape), "fp32"), shape) for net in nets for shape in shapes]
    before = counters["stats"]["unique_graphs"]
    for net, compiled, shape in built:
        images = torch.randn(shape)
        with torch.inference_mode():
            for batch in (images, images.clone()):
                torch.testing.assert_close(compiled(batch), net(batch), atol=1e-4, rtol=0)
    assert counters["stats"]["unique_graphs"] == before


def test_inductor_explains_a_vision_transformer_as_defined():
    torch.manual_seed(7)
    split = split_network(small(48, blocks=1), None, (48, 48))
    images = torch.randn(2, 3, 48, 48)
    runner = Runner(split, CompileConfig(Target(2), "gaussian", "inductor", "fp32", CPU, 1 << 28))
    scores, classes, heat = runner(images)
    true_scores, true_heat = recipro_cam(split, images, classes[:, 0], "gaussian")
    assert heat.shape == (2, 2, 6, 6)
    assert float((scores - true_scores).abs().max()) < 1e-3
    assert float((heat[:, 0] - true_heat).abs().mean()) < 1e-3

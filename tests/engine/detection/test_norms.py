"""Batch norms that a file has folded into its convolutions are restored without changing the network."""

import copy

import pytest
import torch
from torch import nn

from engine.detectors.networks.registry import OWN_DETECTORS
from engine.finetuning.detection.norms import folded_norms, restore_norms


@pytest.fixture(scope="module")
def folded():
    torch.manual_seed(3)
    net = OWN_DETECTORS["yolox_nano"].build(2).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.bias, std=0.3)
            part.running_var.fill_(1.0 - part.eps)
    return net


def norms_of(net):
    return [name for name, part in net.named_modules() if isinstance(part, nn.BatchNorm2d)]


def test_folded_norms_are_those_with_trivial_statistics(folded):
    net, names = copy.deepcopy(folded), norms_of(folded)
    net.get_submodule(names[3]).running_mean.add_(0.1)
    assert folded_norms(net, names[:5]) == {names[k] for k in (0, 1, 2, 4)}


def test_restored_norms_keep_the_function_and_normalise_their_inputs(folded):
    net, names = copy.deepcopy(folded), norms_of(folded)
    batches = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    restore_norms(net, names, batches)
    with torch.inference_mode():
        for before, after in zip(folded(batches[0]), net(batches[0]), strict=True):
            torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert not folded_norms(net, names)
    inputs = {}
    for name in (names[0], names[-1]):
        net.get_submodule(name).register_forward_pre_hook(
            lambda _part, given, name=name: inputs.setdefault(name, []).append(given[0])
        )
    with torch.inference_mode():
        for batch in batches:
            net(batch)
    for name, seen in inputs.items():
        values = torch.cat(seen).transpose(0, 1).flatten(1)
        norm = net.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, values.mean(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(norm.running_var, values.var(1, correction=0), atol=1e-4, rtol=1e-3)

"""Replacement of a network's last layer."""

import pytest
import torch

from engine.finetuning.head import class_keys, replace_head
from engine.models.loader import build_untrained
from engine.models.registry import MODELS
from pipeline.errors import ModelError


@pytest.mark.parametrize("name", sorted(MODELS))
def test_class_keys_belong_to_one_layer(name):
    keys = class_keys(MODELS[name], 6)
    assert len({key.rpartition(".")[0] for key in keys}) == 1


def test_replace_head_keeps_all_other_weights(tmp_path):
    torch.manual_seed(1)
    old = build_untrained(MODELS["squeezenet1_1"], 9)
    torch.save({"state_dict": {f"module.{key}": value for key, value in old.state_dict().items()}}, tmp_path / "w.pth")
    net, entry, head_name = replace_head("squeezenet1_1", tmp_path / "w.pth", 4)
    assert (entry.name, head_name) == ("squeezenet1_1", "classifier.1")
    assert net.get_submodule(head_name).out_channels == 4
    state = net.state_dict()
    others = [key for key in old.state_dict() if not key.startswith(head_name)]
    assert all(torch.equal(state[key], old.state_dict()[key]) for key in others)
    with pytest.raises(ModelError, match="do not fit resnet18"):
        replace_head("resnet18", tmp_path / "w.pth", 4)


def test_replace_head_gives_every_rectified_class_a_gradient():
    net, _, head_name = replace_head("squeezenet1_1", "random", 5)
    scores = net(torch.randn(2, 3, 64, 64))
    assert scores.min() > 5
    torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1])).backward()
    assert net.get_submodule(head_name).bias.grad.abs().min() > 0
    plain, _, head_name = replace_head("line_net", "random", 5)
    assert plain.get_submodule(head_name).bias.abs().max() < 1


def test_replace_head_replaces_a_last_layer_of_the_same_class_count(tmp_path):
    old = build_untrained(MODELS["squeezenet1_1"], 4)
    torch.save(old.state_dict(), tmp_path / "w.pth")
    net, _, head_name = replace_head("squeezenet1_1", tmp_path / "w.pth", 4)
    assert not torch.equal(net.get_submodule(head_name).weight, old.get_submodule(head_name).weight)

"""Networks of timm from a folder and from the Hugging Face hub's local cache."""

import shutil

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.models import save_for_hf

from engine.finetuning.head import replace_head
from engine.models.hub import hub_config
from engine.models.loader import find_entry, load_network
from pipeline.errors import ModelError

NAMES = ["bolt", "nut", "screw"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as timm writes it: its own class names, size and mean."""
    path = tmp_path_factory.mktemp("hub") / "net"
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3).eval()
    net.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), input_size=(3, 96, 64))
    save_for_hf(net, path, model_config={"label_names": NAMES}, safe_serialization=True)
    return path, net


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No test asks the hub; the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_config.cache_clear()


def check(network, net):
    images = torch.randn(1, 3, 96, 64)
    assert torch.equal(network.module(images), net(images))
    assert (network.name, list(network.labels), network.input_size) == ("test_resnet", NAMES, (96, 64))
    assert network.mean == (0.1, 0.2, 0.3)


def test_load_network_reads_a_folder_of_timm(folder):
    path, net = folder
    check(load_network(f"local-dir:{path}"), net)


def test_load_network_reads_the_cache_of_the_hub(folder, tmp_path):
    path, net = folder
    cached = tmp_path / "cache/models--factory--parts"
    shutil.copytree(path, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    check(load_network("hf-hub:factory/parts"), net)


def test_replace_head_names_the_architecture_of_a_folder(folder):
    path, net = folder
    replaced, entry, head = replace_head(f"local-dir:{path}", None, 5)
    assert (entry.name, replaced.get_submodule(head).out_features) == ("test_resnet", 5)
    first, expected = (next(each.parameters()) for each in (replaced, net))
    assert torch.equal(first, expected)


@pytest.mark.parametrize(("model", "remedy"), [
    ("local-dir:/nowhere", "use local-dir: and a folder"),
    ("hf-hub:factory/parts", "use the folder: local-dir:FOLDER"),
])  # fmt: skip
def test_find_entry_states_why_a_folder_or_hub_fails(model, remedy):
    with pytest.raises(ModelError, match=remedy):
        find_entry(model)

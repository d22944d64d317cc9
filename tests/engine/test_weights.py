"""Loading weights by name and file: matching weights are loaded, others are refused with the keys and a remedy."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.models.labels import parse_target, read_labels
from engine.models.loader import build_untrained, class_names, load_network
from engine.models.registry import MODELS
from engine.split.network import split_network
from pipeline.errors import ConfigError, ModelError

NAME = "squeezenet1_1"


def build(name=NAME, count=None, seed=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_untrained(MODELS[name], count)


def same(net, other):
    return all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 7},
    lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
], ids=["plain", "envelope", "wrapped model", "compiled and distributed"])  # fmt: skip
def test_load_network_removes_training_wrappers(tmp_path, wrap):
    net = build()
    torch.save(wrap(net.state_dict()), tmp_path / "w.pth")
    assert same(load_network(NAME, weights=tmp_path / "w.pth").module, net)


def test_load_network_reads_safetensors_and_half_precision(tmp_path):
    net = build()
    save_file({key: value.half().contiguous() for key, value in net.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = load_network(NAME, weights=tmp_path / "w.safetensors").module
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert same(loaded, net.half().float())


@pytest.mark.parametrize("name", [NAME, "resnet18", "mobilenet_v3_small"])
def test_load_network_reads_the_class_count_from_the_weights(tmp_path, name):
    net = build(name, 6)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\n\nd\ne\nf\n", encoding="utf-8")
    network = load_network(name, weights=tmp_path / "w.pth", labels=tmp_path / "names.txt")
    assert same(network.module, net)
    assert class_names(network, 6) == ("a", "b", "c", "d", "e", "f")


def test_class_names_numbers_unnamed_classes(tmp_path):
    torch.save(build(NAME, 3).state_dict(), tmp_path / "w.pth")
    assert class_names(load_network(NAME, weights=tmp_path / "w.pth"), 3) == ("class 0", "class 1", "class 2")


def test_load_network_ignores_auxiliary_classifiers(tmp_path):
    import torchvision

    with torch.random.fork_rng(devices=[]):
        trained = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    net = load_network("googlenet", weights=tmp_path / "w.pth").module
    assert torch.equal(net.fc.weight, trained.fc.weight)


def test_load_network_refuses_weights_of_another_network(tmp_path):
    torch.save(build("resnet18").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"do not fit squeezenet1_1: \d+ tensors missing \(features.0.weight, .*unknown \(conv1"
    ):
        load_network(NAME, weights=tmp_path / "w.pth")


def test_load_network_reports_both_shapes_of_a_mismatch(tmp_path):
    state = build().state_dict()
    state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"features.0.weight \(64, 3, 5, 5\) instead of \(64, 3, 3, 3\)"):
        load_network(NAME, weights=tmp_path / "w.pth")


class Evil:
    def __reduce__(self):
        return (print, ("owned",))


@pytest.mark.parametrize(
    ("name", "write", "rule"),
    [
        ("w.pth", lambda path: path.write_text("hello\nthere", encoding="utf-8"), "is text that starts with 'hello';"),
        ("w.pt", lambda path: path.write_bytes(b"<!DOCTYPE html><html>404"), "is a web page"),
        ("w.pth", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
        ("w.safetensors", lambda path: path.write_bytes(b""), "is empty"),
        (
            "w.pth",
            lambda path: torch.save(torch.nn.Linear(1, 1), path),
            "whole network; code in a file is never run",
        ),
        ("w.safetensors", lambda path: path.write_bytes(b"\x08" + bytes(40)), "not readable as a state dict"),
        ("w.pth", lambda path: torch.save([1, 2], path), "contains a list, but no state dict"),
        ("w.pth", lambda path: torch.save({"a": Evil()}, path), "not readable as a state dict"),
        ("w.pth", lambda path: None, "no such file"),
    ],
    ids=["text", "web page", "pointer", "empty", "network", "damaged", "list", "code", "missing"],
)
def test_load_network_refuses_files_without_a_state_dict(tmp_path, capsys, name, write, rule):
    write(tmp_path / name)
    with pytest.raises(ModelError, match=rule):
        load_network(NAME, weights=tmp_path / name)
    assert "owned" not in capsys.readouterr().out


def test_load_network_detects_the_format_by_content(tmp_path):
    state = {key: value.contiguous() for key, value in build().state_dict().items()}
    save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "w.safetensors")
    nets = [load_network(NAME, weights=tmp_path / name).module for name in ("w.pth", "w.safetensors")]
    assert same(*nets)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_load_network_refuses_nan_and_infinity(tmp_path, value):
    state = build().state_dict()
    state["features.3.squeeze.bias"][2] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"1 of 52 tensors contain NaN or infinity \(features.3.squeeze.bias\)"):
        load_network(NAME, weights=tmp_path / "w.pth")


def test_unknown_model_suggests_the_nearest_name():
    with pytest.raises(ModelError, match="Did you mean 'resnet18'"):
        load_network("resnet_18x")


@pytest.mark.parametrize("name", ["resnet18.pth", "timm/resnet18.none"])
def test_unknown_model_with_a_dot_suggests_the_nearest_name(name):
    with pytest.raises(ModelError, match="Did you mean 'resnet18'"):
        load_network(name)


def test_load_network_refuses_a_weights_file_as_model(tmp_path):
    torch.save(build().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="name: --model NAME --weights"):
        load_network(str(tmp_path / "w.pth"))


def test_load_network_accepts_any_torchvision_classifier():
    network = load_network("efficientnet_b1", weights="random")
    assert network.input_size == (240, 240)
    assert len(network.labels) == 1000


def test_load_network_accepts_timm_names():
    pytest.importorskip("timm", reason="timm is an extra")
    network = load_network("resnet10t", weights="random")
    assert network.input_size == (176, 176)


def test_failed_download_names_the_remedy(monkeypatch):
    from urllib.error import URLError

    import torchvision

    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(ModelError, match=r"cannot be downloaded .*no route.*--weights FILE"):
        load_network(NAME)


def test_random_weights_are_reproducible_and_logged():
    first, second = load_network(NAME, weights="random").module, load_network(NAME, weights="random").module
    assert same(first, second)


@pytest.mark.parametrize(("text", "names"), [("a\nb", ("a", "b")), (json.dumps(["a", "b"]), ("a", "b"))])
def test_load_network_reads_labels_files(tmp_path, text, names):
    (tmp_path / "l.txt").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "l.txt") == names


def test_class_names_refuses_a_wrong_number_of_labels(tmp_path):
    (tmp_path / "l.txt").write_text("a\nb", encoding="utf-8")
    network = load_network(NAME, weights="random", labels=tmp_path / "l.txt")
    with pytest.raises(ConfigError, match="has 2 names, but the network has 1000 classes"):
        class_names(network, 1000)


def test_parse_target_accepts_names_indices_and_top_n():
    labels = ("ok", "scratch", "missing_hole")
    assert parse_target(["top1"], labels).top == 1
    assert parse_target(["top3"], labels).top == 3
    names = parse_target(["Scratch", "2", "scratch"], labels)
    assert (names.top, names.classes, names.classes_first) == (1, (1, 2), True)
    both = parse_target(["top2", "scratch"], labels)
    assert (both.top, both.classes, both.classes_first) == (2, (1,), False)
    assert parse_target(["scratch", "top2"], labels).classes_first


@pytest.mark.parametrize(("message", "rule"), [
    (["scrach"], "Did you mean 'scratch'"), (["9"], "are 0 to 2"), (["-1"], "are 0 to 2"), (["top9"], "3 classes"),
    (["top1", "top2"], "one top-N"), (["²"], "are 0 to 2"), (["9" * 5000], "are 0 to 2"),
])  # fmt: skip
def test_parse_target_refuses_unknown_classes(message, rule):
    with pytest.raises(ConfigError, match=rule):
        parse_target(message, ("ok", "scratch", "missing_hole"))


def test_real_imagenet_weights_classify_images(shared_data):
    for name in ("squeezenet1_1", "mobilenet_v2"):
        network = load_network(name, weights=shared_data / "weights" / f"{name}.pt")
        assert len(class_names(network, 1000)) == 1000


@pytest.mark.parametrize("number", [0, 1, 2])
def test_squeezenet_equals_recorded_outputs(shared_data, number):
    folder = shared_data / "weights" / "squeezenet1_1_golden"
    recorded = torch.from_numpy(np.load(folder / f"input_{number}.npy"))
    expected = torch.from_numpy(np.load(folder / f"output_{number}.npy"))
    net = load_network(NAME, weights=shared_data / "weights" / "squeezenet1_1.pt").module
    split = split_network(net)
    with torch.inference_mode():
        torch.testing.assert_close(
            split.tail(split.head(recorded)), expected, rtol=1e-3, atol=1e-3 * float(expected.max())
        )

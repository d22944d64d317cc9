"""Checkpoint files: round trip, atomic writes, and errors for other files and wrong metadata."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.errors import ModelError


@pytest.fixture
def content() -> Checkpoint:
    return Checkpoint(
        state={"a.weight": torch.arange(6.0).reshape(2, 3).T, "a.count": torch.tensor(3)},
        model="line_net",
        labels=("ok", "Kratzer ü"),
        input_size=(240, 320),
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 0.5, 0.25),
        layer="features",
        provenance={"seed": 0, "command": "uv run run.py train-line"},
    )


def test_save_checkpoint_round_trips(tmp_path, content):
    path = tmp_path / "new" / "line.safetensors"
    save_checkpoint(path, content)
    actual = load_checkpoint(path)
    assert actual.state.keys() == content.state.keys()
    assert all(torch.equal(actual.state[name], content.state[name]) for name in actual.state)
    assert dataclasses.replace(actual, state={}) == dataclasses.replace(content, state={})
    assert [p.name for p in path.parent.iterdir()] == ["line.safetensors"]


@pytest.mark.parametrize(("fit", "truncate_at"), [("letterbox", None), ("crop", "layer3")])
def test_checkpoint_stores_fit_and_truncation_and_defaults_to_stretch(tmp_path, content, fit, truncate_at):
    path = tmp_path / "part.safetensors"
    save_checkpoint(path, dataclasses.replace(content, fit=fit, truncate_at=truncate_at))
    actual = load_checkpoint(path)
    assert (actual.fit, actual.truncate_at) == (fit, truncate_at)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    save_file(actual.state, path, {key: value for key, value in metadata.items() if key not in {"fit", "until"}})
    assert (load_checkpoint(path).fit, load_checkpoint(path).truncate_at) == ("stretch", None)
    save_file(actual.state, path, metadata | {"fit": "squeeze"})
    with pytest.raises(ModelError, match="'fit' is 'squeeze'; it must be one of stretch, letterbox, crop"):
        load_checkpoint(path)


def test_save_checkpoint_keeps_the_old_file_when_a_write_fails(tmp_path, content):
    path = tmp_path / "line.safetensors"
    path.mkdir()
    with pytest.raises(ModelError, match="cannot be written"):
        save_checkpoint(path, content)
    assert [p.name for p in tmp_path.iterdir()] == ["line.safetensors"]


def test_load_checkpoint_of_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(ModelError, match="train-line"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (b"", "is empty; download or save it again"),
        (b"hello, this is no model\n" * 9, "is text that starts with 'hello, this is no model'"),
        (b"\n <!DOCTYPE html><title>404</title>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\x00" * 64, "not a readable safetensors"),
    ],
)
def test_load_checkpoint_refuses_other_file_formats(tmp_path, payload, rule):
    path = tmp_path / "x.safetensors"
    path.write_bytes(payload)
    with pytest.raises(ModelError, match=rule):
        load_checkpoint(path)


def test_checkpoint_stores_digests_of_training_images(tmp_path, content):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, dataclasses.replace(content, trained_digests=frozenset({"0b", "0a"})))
    assert load_checkpoint(path).trained_digests == {"0a", "0b"}


def test_load_checkpoint_refuses_a_truncated_file(tmp_path, content):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, content)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_checkpoint(path)


def test_load_checkpoint_refuses_weights_without_metadata(tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"is not a checkpoint.*--weights"):
        load_checkpoint(path)


def with_metadata(path, content, **changed):
    from safetensors import safe_open

    save_checkpoint(path, content)
    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata()) | changed
    save_file(dict(content.state, **{"a.weight": content.state["a.weight"].contiguous()}), path, metadata)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"format": "recipro-stream 2"}, "update recipro-stream"),
        ({"labels": "[]"}, "list of names"),
        ({"labels": "not json"}, "is not JSON"),
        ({"labels": "[1, 2]"}, "list of names"),
        ({"input_size": "[240]"}, r"\[height, width\]"),
        ({"input_size": "[240, -3]"}, r"\[height, width\]"),
        ({"mean": '["a", 1, 2]'}, "three numbers"),
        ({"std": "[true, 1, 2]"}, "three numbers"),
        ({"model": ""}, "lacks 'model'"),
        ({"provenance": "[]"}, "an object"),
    ],
)
def test_load_checkpoint_names_the_wrong_metadata(tmp_path, content, changed, rule):
    path = tmp_path / "x.safetensors"
    with_metadata(path, content, **changed)
    with pytest.raises(ModelError, match=rule):
        load_checkpoint(path)

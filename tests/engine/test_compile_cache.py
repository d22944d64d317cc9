"""Cache of compiled results: an entry is used only for exactly its key, intact and from a private folder."""

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.methods.recipro import Target
from engine.runtime.compile_cache import CompileCache, key_of
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import split_network
from tests.engine.reference import small_net

ROOT = Path(__file__).resolve().parents[2]
IMAGES = torch.zeros(1, 3, 32, 32)
KEY = {"weights": "a", "input": "b"}


def runner(net, cache, backend="openvino"):
    split = split_network(net, "3", (32, 32))
    return Runner(split, CompileConfig(Target(), "point", backend, "fp32", torch.device("cpu"), 1 << 28, cache))


def test_cache_returns_an_entry_only_for_its_key(tmp_path):
    cache = CompileCache(tmp_path / "compiled")
    assert cache.get(KEY) is None
    cache.put(KEY, b"result")
    assert cache.get(KEY) == b"result"
    assert CompileCache(tmp_path / "compiled").get(dict(reversed(KEY.items()))) == b"result"
    assert cache.get({**KEY, "weights": "c"}) is None
    assert (cache.hits, cache.writes) == (1, 1)


@pytest.mark.parametrize("position", [0, 40, -1])
def test_cache_ignores_a_damaged_entry(tmp_path, position, caplog):
    cache = CompileCache(tmp_path)
    tmp_path.chmod(0o700)
    cache.put(KEY, b"result")
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    content[position] ^= 1
    entry.write_bytes(content)
    assert cache.get(KEY) is None
    assert "compiled again" in caplog.text


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
def test_cache_ignores_a_truncated_entry(tmp_path, fraction):
    tmp_path.chmod(0o700)
    cache = CompileCache(tmp_path)
    cache.put(KEY, bytes(1000))
    (entry,) = tmp_path.iterdir()
    content = entry.read_bytes()
    entry.write_bytes(content[: int(fraction * len(content))])
    assert cache.get(KEY) is None


def test_cache_ignores_an_entry_with_another_key(tmp_path):
    tmp_path.chmod(0o700)
    cache = CompileCache(tmp_path)
    cache.put(KEY, b"one")
    (path,) = tmp_path.iterdir()
    cache.put({**KEY, "weights": "c"}, b"other")
    (other,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    assert cache.get(KEY) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="file modes are POSIX's")
@pytest.mark.parametrize("which", ["folder", "entry"])
def test_cache_ignores_folders_that_others_can_write(tmp_path, which, caplog):
    cache = CompileCache(tmp_path / "compiled")
    cache.put(KEY, b"result")
    (entry,) = cache.folder.iterdir()
    (cache.folder if which == "folder" else entry).chmod(0o777)
    assert cache.get(KEY) is None
    assert "by others" in caplog.text


def test_cache_logs_a_warning_when_its_folder_cannot_be_created(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = CompileCache(tmp_path / "file" / "compiled")
    cache.put(KEY, b"result")
    assert cache.get(KEY) is None
    assert "cannot be written to" in caplog.text


def test_cache_evicts_the_least_recently_used_entries(tmp_path):
    tmp_path.chmod(0o700)
    cache = CompileCache(tmp_path, limit_bytes=3000)
    for k in range(3):
        cache.put({"k": str(k)}, bytes(700))
        (newest,) = (p for p in tmp_path.iterdir() if p.stat().st_mtime > 1e6)
        os.utime(newest, (k, k))
    assert cache.get({"k": "0"}) is not None  # used: now the newest
    cache.put({"k": "3"}, bytes(700))
    assert [cache.get({"k": str(k)}) is not None for k in range(4)] == [True, False, True, True]


def test_key_changes_with_everything_that_changes_the_outputs():
    net = small_net()
    other_weights, other_stride, other_function = small_net(1), copy.deepcopy(net), copy.deepcopy(net)
    other_stride[0].stride = (5, 5)
    other_function[1] = nn.LeakyReLU(0.01)
    other_slope = copy.deepcopy(other_function)
    other_slope[1].negative_slope = 0.02
    keys = [key_of(key, IMAGES) for key in (net, other_weights, other_stride, other_function, other_slope)]
    keys += [key_of(net, IMAGES[:, :, 1:]), key_of(net, IMAGES, precision="bf16"), key_of(net, IMAGES.half())]
    assert all(key != other for k, key in enumerate(keys) for other in keys[:k])
    assert key_of(copy.deepcopy(net), IMAGES) == keys[0]


@pytest.mark.slow
def test_key_is_equal_in_another_process():
    code = "from tests.engine.test_compile_cache import *; print(runner_key())"
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert completed.strip() == str(runner_key())


def runner_key():
    return key_of(runner(small_net(), None, "eager")._module, IMAGES)


@pytest.mark.slow
def test_second_build_uses_the_cache_and_has_equal_outputs(tmp_path):
    images = torch.randn(1, 3, 32, 32)
    first, second = CompileCache(tmp_path / "compiled"), CompileCache(tmp_path / "compiled")
    built, reloaded = runner(small_net(), first), runner(small_net(), second)
    assert (first.hits, first.writes, second.hits, second.writes) == (0, 1, 1, 0)
    for left, other in zip(built(images), reloaded(images), strict=True):
        torch.testing.assert_close(left, other)


@pytest.mark.slow
def test_entry_of_another_network_is_detected_and_replaced(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    cache = CompileCache(tmp_path / "compiled")
    runner(small_net(1), cache)
    (wrong,) = cache.folder.iterdir()
    payload = wrong.read_bytes().partition(b"\n")[2]
    runner(small_net(), cache)
    (right,) = set(cache.folder.iterdir()) - {wrong}
    true = right.read_bytes()
    cache.put(dict(_key_in(right)), payload)  # a checksum that holds, a key that fits, and another network inside
    assert right.read_bytes() != true
    again = CompileCache(cache.folder)
    images = torch.randn(1, 3, 32, 32)
    scores = runner(small_net(), again)(images)[0]
    torch.testing.assert_close(scores, torch.softmax(small_net()(images), 1), atol=1e-5, rtol=1e-5)
    assert "differs from eager float32" in caplog.text
    assert (again.hits, again.writes) == (1, 1)


@pytest.mark.slow
def test_entry_that_the_backend_cannot_read_is_replaced(tmp_path):
    cache = CompileCache(tmp_path / "compiled")
    runner(small_net(), cache)
    (entry,) = cache.folder.iterdir()
    cache.put(dict(_key_in(entry)), b"no network at all")
    runner(small_net(), cache)
    assert cache.writes == 3


def _key_in(entry):
    import json

    return json.loads(entry.read_bytes().partition(b"\n")[0])["key"]

"""Reading files of torch.save: tensors are found, no code is run, and memory is bounded."""

import argparse
import collections
import contextlib
import dataclasses
import datetime as dt
import enum
import os
import pathlib
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from engine.checkpoints import MAX_PICKLE_BYTES
from engine.models.weights import read_state
from pipeline.errors import ModelError

STATE = {"layer.weight": torch.arange(12.0).view(3, 4), "layer.bias": torch.ones(3)}


class Mode(enum.Enum):
    FAST = 1


class AttributeDict(dict):
    """As Lightning, omegaconf and mmengine have one."""

    def __getattr__(self, name):
        return self[name]


class History(list):
    pass


@dataclasses.dataclass
class Settings:
    rate: float = 0.1
    path: pathlib.Path = pathlib.Path("runs")


@dataclasses.dataclass(slots=True)
class Slotted:
    rate: float = 0.1


BESIDE = {
    "timm": {"epoch": 7, "arch": "x", "args": argparse.Namespace(lr=0.1, data=pathlib.Path("d")), "metric": 58.1},
    "numpy": {"best": np.float64(0.9), "seed": np.int64(3), "curve": np.ones((3, 2)), "dtype": np.dtype("f4")},
    "mappings": {
        "a": collections.defaultdict(list, {"x": [1]}),
        "b": AttributeDict(lr=1),
        "c": collections.Counter("ab"),
    },
    "time": {
        "at": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        "delta": dt.timedelta(3),
        "path": pathlib.PurePosixPath("/x"),
    },
    "classes": {"mode": Mode.FAST, "settings": Settings(), "slots": Slotted(), "losses": History([1.0, 2.0])},
    "optimizer": {"optimizer": {"state": {0: {"exp_avg": torch.ones(400)}}, "param_groups": [{"lr": 0.1}]}},
    "meta": {"meta": {"env": "linux", "classes": ("a", "b"), "cfg": AttributeDict(model=AttributeDict(depth=18))}},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", BESIDE)
def test_read_state_finds_tensors_beside_other_objects(tmp_path, beside, legacy):
    content = {"state_dict": STATE, **BESIDE[beside]}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_is_state(read_state(tmp_path / "w.pth"))


@pytest.mark.parametrize("wrap", [
    lambda state: {"state": {"model": state}},
    lambda state: AttributeDict(model=collections.OrderedDict(state)),
    lambda state: {"my_classifier": state, "optimizer": {"state": {k: {"m": torch.ones(9)} for k in range(9)}}},
    lambda state: {"model": None, "ema": state},
], ids=["nested", "mapping of its own class", "unknown name", "empty model"])  # fmt: skip
def test_read_state_finds_a_state_dict_under_any_key(tmp_path, wrap):
    torch.save(wrap(STATE), tmp_path / "w.pth")
    assert_is_state(read_state(tmp_path / "w.pth"))


def assert_is_state(state):
    assert set(state) == set(STATE)
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "call", [Calls(os.system, "touch ran"), Calls(eval, "open('ran', 'w')"), Calls(subprocess.Popen, ["touch", "ran"])]
)
def test_read_state_refuses_a_checkpoint_that_calls_functions(tmp_path, monkeypatch, call, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "x": call}, "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="which weights do not need; code in a file is never run"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_read_state_never_calls_an_unknown_function(tmp_path):
    torch.save({"state_dict": STATE, "x": Calls(_note, str(tmp_path / "ran"))}, tmp_path / "w.pth")
    assert_is_state(read_state(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def _note(path):
    pathlib.Path(path).touch()


def test_read_state_refuses_a_whole_network_and_names_its_class(tmp_path):
    torch.save({"epoch": 1, "model": torch.nn.Linear(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(
        ModelError, match=r"torch\.nn\.modules\.linear\.Linear, perhaps a whole network; code in a file is never"
    ):
        read_state(tmp_path / "w.pt")


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_read_state_refuses_torchscript_with_a_remedy(tmp_path):
    zipped(tmp_path / "w.pt", **{"net/constants.pkl": b"x", "net/data.pkl": b"x", "net/code/net.py": b"x"})
    with pytest.raises(ModelError, match=r"TorchScript program.*torch\.jit\.load\(FILE, 'cpu'\)\.state_dict\(\)"):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize(("content", "rule"), [
    (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5 file, probably"), (b"\x00\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite"),
    (b"\x08\x08\x12\x07pytorch\x1a" + bytes(40), "ONNX model"), (b"\x1f\x8b\x08" + bytes(40), "compressed by gzip"),
    (b'<?xml version="1.0"?><net name="x">', "OpenVINO model"), (b"\xff\xd8\xff\xe0" + bytes(9), "JPEG image"),
    (pickle.dumps({"a": 1}, 4), "neither a file of torch.save nor"),
])  # fmt: skip
def test_read_state_refuses_other_formats_by_name(tmp_path, content, rule):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError, match=rule):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize(("names", "rule"), [
    (["config.json", "metadata.json", "model.weights.h5"], "Keras model"), (["a.npy"], "NumPy archive"),
    (["x/archive_format"], "torch.export"), (["readme.txt"], "without a checkpoint"),
])  # fmt: skip
def test_read_state_refuses_other_archives_by_name(tmp_path, names, rule):
    zipped(tmp_path / "w.pth", **dict.fromkeys(names, b"x"))
    with pytest.raises(ModelError, match=rule):
        read_state(tmp_path / "w.pth")


def test_read_state_refuses_decompression_bombs(tmp_path):
    torch.save(STATE, tmp_path / "s.pth")
    with zipfile.ZipFile(tmp_path / "s.pth") as source:
        entries = {name: source.read(name) for name in source.namelist()}
    zipped(tmp_path / "w.pth", **entries, **{"s/data/9": bytes(80 << 20)})
    with pytest.raises(ModelError, match="has 1 MiB but would unpack to 80 MiB"):
        read_state(tmp_path / "w.pth")
    entries["s/data.pkl"] = b"(" * (MAX_PICKLE_BYTES + 1)
    zipped(tmp_path / "w.pth", **entries)
    with pytest.raises(ModelError, match="its objects take 16 MiB"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "pickled", [b"\x80\x02" + b"(" * 5000, b"\x80\x02" + b"}U\x0astate_dict" * 5000 + b"}" + b"s" * 5000 + b"."]
)
def test_read_state_refuses_deeply_nested_objects(tmp_path, pickled):
    zipped(tmp_path / "w.pth", **{"w/data.pkl": pickled, "w/version": b"3\n", "w/byteorder": b"little"})
    with pytest.raises(ModelError):
        read_state(tmp_path / "w.pth")


def test_read_state_refuses_a_legacy_tensor_larger_than_the_file(tmp_path):
    torch.save({"a": torch.zeros(77)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    claimed = content.replace(b"K\x4dN", b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"N")
    assert claimed != content
    (tmp_path / "w.pth").write_bytes(claimed)
    with pytest.raises(ModelError, match=f"a tensor of {1 << 40} numbers"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("tensor", [
    torch.zeros(1).expand(1 << 40), torch.eye(3).to_sparse(), torch.empty(1 << 40, device="meta"),
], ids=["expanded", "sparse", "meta"])  # fmt: skip
def test_read_state_refuses_a_tensor_larger_than_its_storage(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "w.pth")
    with pytest.raises(ModelError):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_read_state_of_a_damaged_file_raises_model_error_or_returns_tensors(tmp_path, legacy):
    torch.save(
        {"state_dict": STATE, "args": argparse.Namespace(a=1)},
        tmp_path / "s.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    content = (tmp_path / "s.pth").read_bytes()
    generator = np.random.default_rng(1)
    for number in range(60):
        damaged = bytearray(content)
        offset = int(generator.integers(len(damaged)))
        if number % 3 == 0:
            damaged[offset] = int(generator.integers(256))
        elif number % 3 == 1:
            del damaged[offset : offset + 8]
        else:
            damaged[offset : offset + 4] = struct.pack("<I", int(generator.choice([0, 0xFFFFFFFF, 0x7FFFFFFF])))
        (tmp_path / "w.pth").write_bytes(damaged)
        with contextlib.suppress(ModelError):
            assert all(isinstance(value, torch.Tensor) for value in read_state(tmp_path / "w.pth").values())

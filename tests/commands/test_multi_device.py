"""Cameras on several devices: distributed, with own addresses and one process each; a failing process ends alone."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from commands import multi_device
from commands.wiring.kinds import load_config
from overlays.sinks.registry import SINKS
from pipeline.config_loader import to_yaml
from pipeline.errors import ConfigError
from pipeline.sharding import isolate_gpus, read_devices, shard_config, shard_uri

ROOT = Path(__file__).resolve().parents[2]


def config(count, sinks=(), **more):
    sources = [{"uri": "line:", "name": f"camera {k}"} for k in range(count)]
    return load_config({"sources": sources, "sinks": list(sinks), **more}, "test")


@given(st.integers(1, 40), st.integers(1, 8))
def test_shards_contain_every_camera_once_and_evenly(count, cards):
    shards = shard_config(config(count), [f"cuda:{k}" for k in range(cards)])
    dealt = [source.name for shard in shards for source in shard.sources]
    assert sorted(dealt) == sorted(f"camera {k}" for k in range(count))
    sizes = [len(shard.sources) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert len(shards) == min(count, cards)
    assert [shard.engine.device for shard in shards] == [f"cuda:{k}" for k in range(len(shards))]


@pytest.mark.parametrize(("visible", "first", "second"), [(None, "0", "1"), ("4,GPU-5a", "4", "GPU-5a")])
def test_shard_sees_its_own_gpu_only_and_calls_it_the_first(visible, first, second):
    shards = shard_config(config(2), ["cuda:0", "cuda:1"])
    isolated = [isolate_gpus(shard, visible) for shard in shards]
    assert [gpus for _, gpus in isolated] == [first, second]
    assert [shard.engine.device for shard, _ in isolated] == ["cuda:0", "cuda:0"]
    assert isolated[1][0].sources == shards[1].sources


def test_shard_also_sees_the_gpus_that_decode_for_it():
    shard = shard_config(load_config({"sources": [
        {"uri": "a.mp4", "name": "a", "decoder": "cuda:3"}, {"uri": "b.mp4", "name": "b", "decoder": "cuda"},
        {"uri": "c.mp4", "name": "c", "decoder": "cuda:1"},
    ], "decoder": "auto"}, "test"), ["cuda:1"])[0]  # fmt: skip
    isolated, gpus = isolate_gpus(shard, None)
    assert gpus == "1,3"
    assert [source.decoder for source in isolated.sources] == ["cuda:1", "cuda", "cuda:0"]
    assert isolated.decoder == "auto"


def test_shard_on_a_cpu_keeps_the_visible_gpus():
    (shard,) = shard_config(config(1), ["cpu"])
    assert isolate_gpus(shard, "2") == (shard, None)


def test_shard_on_a_gpu_that_is_not_visible_is_refused():
    (shard,) = shard_config(config(1), ["cuda:2"])
    with pytest.raises(
        ConfigError, match=r"cuda:2 is not visible: CUDA_VISIBLE_DEVICES=0,1 lists 2 GPUs; unset this variable"
    ):
        isolate_gpus(shard, "0,1")


def test_shard_process_gets_its_gpu_in_its_environment(monkeypatch):
    started = {}

    class Process:
        def __init__(self, command, *, env, **_):
            started.update(env)
            self.stdin = io.BytesIO()

    monkeypatch.setattr(multi_device.subprocess, "Popen", Process)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    multi_device._started(shard_config(config(2), ["cuda:0", "cuda:1"])[1], "text", None)
    assert started["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(("uri", "second"), [
    ("tcp://0.0.0.0:5555", "tcp://0.0.0.0:5556"),
    ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
    ("tcp://[::1]:5555", "tcp://[::1]:5556"),
    ("http://127.0.0.1:8000", "http://127.0.0.1:8001"),
    ("ipc:///tmp/overlays", "ipc:///tmp/overlays.1"),
    ("out/belt.mp4", "out/belt.1.mp4"),
    ("belt.jsonl", "belt.1.jsonl"),
    ("out/clips/", "out/clips.1/"),
    ("window", "window"),
    ("mqtt://broker:1883/factory", "mqtt://broker:1883/factory"),
])  # fmt: skip
def test_shards_have_sink_addresses_of_their_own(uri, second):
    assert shard_uri(SINKS.settings(uri), 0) == uri
    assert shard_uri(SINKS.settings(uri), 1) == second


def test_shards_have_status_topics_of_their_own():
    result = config(
        3, sinks=["mqtt://broker/factory", {"uri": "mqtt://broker/hall", "status_topic": "east"}, "out.jsonl"]
    )
    shards = shard_config(result, ["cpu", "cpu"])
    assert [[getattr(sink, "status_topic", None) for sink in shard.sinks] for shard in shards] == [
        ["status", "east", None],
        ["status-1", "east-1", None],
    ]


def test_shard_refuses_a_port_out_of_range():
    with pytest.raises(ConfigError, match="port 65536"):
        shard_uri(SINKS.settings("tcp://127.0.0.1:65535"), 1)


def test_parse_devices_reads_devices_and_refuses_others():
    assert read_devices("cuda:0, cuda:1") == ("cuda:0", "cuda:1")
    with pytest.raises(ConfigError, match="'gpu1' is not a device; give devices such as cuda:0,cuda:1"):
        read_devices("cuda:0,gpu1")


def test_sharding_refuses_limits_of_the_whole_run():
    with pytest.raises(ConfigError, match="use --seconds"):
        shard_config(config(2, frames=5), ["cuda:0"])
    with pytest.raises(ConfigError, match="give only one of these two options"):
        shard_config(config(2, engine={"device": "cuda"}), ["cuda:0"])
    with pytest.raises(ValueError, match="have no name"):
        shard_config(load_config({"sources": ["line:"]}, "test"), ["cuda:0"])


def test_shards_name_the_cameras_of_other_shards():
    shards = shard_config(config(3, external_cameras=["yard"]), ["cuda:0", "cuda:1"])
    assert [shard.external_cameras for shard in shards] == [["camera 1", "yard"], ["camera 0", "camera 2", "yard"]]


def test_shard_is_equal_after_yaml_round_trip():
    (shard, _) = shard_config(config(2, ["tcp://127.0.0.1:5555"]), ["cuda:0", "cuda:1"])
    from pipeline.config_loader import read_yaml

    assert load_config(read_yaml(to_yaml(shard), "pipe"), "pipe") == shard


CHILD = """
import os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
configuration = pathlib.Path(sys.argv[2]).read_text()
if "cuda" in configuration:
    (folder / "failing").write_text(str(os.getpid()))
    sys.exit(2)
while not (folder / "failing").exists() or pathlib.Path("/proc", (folder / "failing").read_text()).exists():
    time.sleep(0.01)
(folder / "complete").write_text(configuration)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_run_sharded_reports_a_failed_process_and_continues_the_other(tmp_path, monkeypatch, caplog, capfd):
    """The children are small programs: one fails, and the other ends after the parent has noticed that."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(multi_device, "RUN", tmp_path / "child.py")
    with pytest.raises(typer.Exit) as ended:
        multi_device.run_sharded(config(2, ["log.jsonl"]), ["cuda:7", "cpu"])
    assert ended.value.exit_code == 2
    assert "process 0 on cuda:7 ended with exit code 2" in caplog.text
    assert "process 1 on cpu: camera 1; log.1.jsonl" in capfd.readouterr().out
    assert "camera 1" in (tmp_path / "complete").read_text()
    (tmp_path / "failing").write_text("none")
    multi_device.run_sharded(config(2), ["cpu", "cpu"])


GUARDED = """
sources: [{uri: "line:?seed=1", name: door}, {uri: "line:?seed=2", name: gate}]
engine: {model: line_net, backend: eager, cache: "off"}
guards:
  regions: [{name: belt, polygon: [[0, 0.1], [1, 0.1], [1, 0.9], [0, 0.9]], cameras: [gate]}]
  rules:
    - {name: everywhere, rule: "score >= 1 when not camera=door or camera=door", hold_seconds: 0}
    - {name: grounded, rule: heat_inside(belt) >= 0.0001 or score<1, cameras: [gate]}
sinks: [log.jsonl, {uri: clips/, record_when: guard=grounded or camera=door}]
"""


def guards_in(path):
    """Return camera and names of the guards of each record with guards; of complete lines."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {
        (record["camera"], *(guard["name"] for guard in record["guards"]))
        for record in map(json.loads, lines)
        if "guards" in record
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_shards_run_cameras_and_their_guards_and_end_in_order_when_the_parent_is_killed(tmp_path):
    (tmp_path / "guarded.yaml").write_text(GUARDED)
    logs = [tmp_path / name for name in ("log.jsonl", "log.1.jsonl")]
    with subprocess.Popen(
        [sys.executable, ROOT / "run.py", "stream", "guarded.yaml", "--devices", "cpu,cpu"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as parent:  # fmt: skip
        while not all(map(guards_in, logs)):
            assert parent.poll() is None, parent.stdout.read()
            time.sleep(0.05)
        children = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        parent.kill()
        assert len(children) == 2
        # The pipe of standard output ends with the last process that holds it.
        output = parent.stdout.read()
    assert "process 1 on cpu: gate" in output
    assert output.count("the parent process has ended; this process ends, too") == 2
    assert not any(Path(f"/proc/{pid}").exists() and "run.py" in cmdline(pid) for pid in children)
    assert guards_in(logs[0]) == {("door", "everywhere")}
    assert guards_in(logs[1]) == {("gate", "everywhere", "grounded")}
    assert list((tmp_path / "clips").rglob("*.mp4")), "door's, by its name"
    assert list((tmp_path / "clips.1").rglob("*.mp4")) == [], "gate's guard stays quiet"


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""

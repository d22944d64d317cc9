"""Third-party libraries: no telemetry, and private folders for compiled code."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.runtime.compile_cache import default_folder
from engine.vendors import guard_compiled, stop_telemetry, unsafe_way

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def folders():
    return [Path(os.environ[name]) for name in VARIABLES]


def test_guard_compiled_uses_the_cache_folder(tmp_path):
    guard_compiled(tmp_path / "cache")
    for folder in folders():
        assert folder.parent == tmp_path / "cache"
        assert folder.stat().st_mode & 0o777 == 0o700


def test_guard_compiled_uses_a_temporary_folder_without_a_cache():
    guard_compiled(None)
    for folder in folders():
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not unsafe_way(folder)
        shutil.rmtree(folder)


def planted_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    for name in ("inductor", "triton"):
        (tmp_path / "cache" / name).symlink_to(tmp_path / "elsewhere")


def open_folder(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)


def open_parent(tmp_path):
    (tmp_path / "cache").mkdir()
    tmp_path.chmod(0o777)


@pytest.mark.parametrize("plant", [planted_link, open_folder, open_parent])
def test_guard_compiled_ignores_folders_of_others(tmp_path, caplog, plant):
    plant(tmp_path)
    guard_compiled(tmp_path / "cache")
    for folder in folders():
        assert tmp_path not in folder.parents
        assert not unsafe_way(folder)
        shutil.rmtree(folder)
    assert "compiled results are not stored in" in caplog.text


def test_torch_writes_nothing_to_the_shared_temporary_folder(tmp_path, monkeypatch):
    from torch._inductor import codecache
    from torch._inductor.codecache import _precompile_header

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it when it is loaded
    guard_compiled(tmp_path / "cache")
    guarded = tmp_path / "cache" / "inductor"
    shared = re.compile(r"default_cache_dir\(|(?<!\w)_HEADER_DIR|(?<!\w)_HEADER_LOCK_DIR")
    assert shared.search(inspect.getsource(_precompile_header)), "torch keeps its headers by other names now"
    assert {Path(codecache._HEADER_DIR).parent, Path(codecache._HEADER_LOCK_DIR).parent.parent} == {guarded}
    inductor = [module for name, module in sys.modules.items() if name.startswith("torch._inductor")]
    record = {module.default_cache_dir() for module in inductor if hasattr(module, "default_cache_dir")}
    assert record == {str(guarded)}


def test_guard_compiled_keeps_a_safe_folder_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "safe").mkdir(mode=0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "safe"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "open"))
    guard_compiled(tmp_path / "cache")
    assert folders() == [tmp_path / "safe", tmp_path / "cache" / "triton"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_unsafe_way_reports_a_folder_of_another_user(tmp_path):
    (tmp_path / "theirs" / "mine").mkdir(parents=True)
    os.chown(tmp_path / "theirs", 65534, 65534)
    assert "theirs belongs to another user" in unsafe_way(tmp_path / "theirs")
    assert "theirs belongs to another user" in unsafe_way(tmp_path / "theirs" / "mine")


def test_default_folder_is_off_without_a_home(monkeypatch, caplog):
    def homeless(*_args, **_options):
        raise RuntimeError("could not determine the home directory for '~/.cache'")

    monkeypatch.setattr("engine.runtime.compile_cache.user_cache_dir", homeless)
    assert default_folder() == "off"
    assert "set a folder by --cache" in caplog.text


def test_stop_telemetry_sets_every_variable(monkeypatch):
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    stop_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "1"


LOOKED_UP = """
import socket, sys
asked = []
def refuse(*args, **_):
    asked.append(args[:2]); raise socket.gaierror("no network here")
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
whole = socket.socket.connect
def connect(self, address):
    if self.family != getattr(socket, "AF_UNIX", None): asked.append(address)
    return whole(self, address)
socket.socket.connect = connect
sys.argv = ["run.py", "stream", "--source", "line:", "--frames", "2", "--backend", BACKEND, "--sink", SINK]
import run
try:
    run.main()
except SystemExit as end:
    assert not end.code, end.code
import threading
for thread in threading.enumerate():
    if thread is not threading.main_thread() and not thread.daemon: thread.join(20)
assert "openvino_telemetry.main" not in sys.modules, "telemetry was loaded"
print("ASKED", asked, file=sys.stderr)
"""


@pytest.mark.slow
def test_run_resolves_no_host_and_writes_no_telemetry_id(tmp_path):
    """OpenVINO is the default backend, and its telemetry is on by default."""
    script = LOOKED_UP.replace("BACKEND", "'openvino'").replace("SINK", repr(str(tmp_path / "o.jsonl")))
    completed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ASKED []" in completed.stderr, completed.stderr
    assert not (tmp_path / "intel").exists()

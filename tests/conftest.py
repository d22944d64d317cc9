"""Fixtures of all tests: the shared data, and a check of what a test leaves behind."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from pathlib import Path

import hypothesis
import pytest

from tests.support.descriptors import open_things
from tests.support.limits import LIMIT_SECONDS

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

if sys.dont_write_bytecode:
    # Without bytecode each program that a test starts compiles PyTorch's sources again. A folder of the checkout that
    # Git ignores keeps it for the workers, the programs and the next run; the sources' folders stay as they are.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(ROOT / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# One thread for each worker and each program that a test starts: more of them on few processors spin while they wait
# for each other. PyTorch, OpenVINO and ONNX Runtime take their numbers from here; it has to be set before the import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples in each run, however slow the machine is: a change that is green once stays green.
# ``pytest --hypothesis-profile=default`` looks for others.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

# Where a test imports OpenVINO before the engine does, it would send each event from a fork of the worker.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # importing it raises ImportError


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos, photos and weights; a test that needs them skips where they are missing."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real input in {folder.name}/ beside the repository")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory):
    """Keep what tests compile out of the user's cache folder; all workers of a run share one."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("ORT_DISABLE_TELEMETRY", "1")
        yield


@pytest.fixture(autouse=True)
def process_settings_restored():
    """Restore the level of the log and the threads of PyTorch, which benchmarks and ``threads`` set for a process."""
    disabled, torch = logging.root.manager.disable, sys.modules.get("torch")
    threads = torch and torch.get_num_threads()
    yield
    logging.disable(disabled)
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in an empty folder; return exit code, output, errors."""
    import run

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        try:
            run.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        result = capsys.readouterr()
        return code, result.out, result.err

    return call


# Process-wide things that libraries open once and keep: zmq's global context, torch's and cv2's own files.
_KEPT = (".so", ".py", ".pyc", ".ttf", ".otf", "/memfd:")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest):
    """Fail a test that leaves a thread, a socket or an open file behind."""
    threads = set(threading.enumerate())
    things = open_things()
    yield
    # The driver and the compilers for it keep what they open for the life of the process.
    if request.node.get_closest_marker("leaves_things") or request.node.get_closest_marker("gpu"):
        return
    deadline = time.monotonic() + LIMIT_SECONDS / 4
    while True:
        left_threads = [t for t in threading.enumerate() if t not in threads and t.is_alive() and not _is_pool(t)]
        left_things = {k: v for k, v in open_things().items() if things.get(k) != v and not v.endswith(_KEPT)}
        left_things = {k: v for k, v in left_things.items() if v not in things.values()}
        if not left_threads and not left_things:
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.02)
    pytest.fail(f"left behind: threads {[t.name for t in left_threads]}, open {sorted(left_things.values())}")


def _is_pool(thread: threading.Thread) -> bool:
    """Threads that libraries keep for the life of the process (tqdm's in torch.export, compile workers)."""
    return thread.name.startswith(("ThreadPoolExecutor", "tqdm_monitor", "InductorSubproc", "SubprocPool", "pydevd"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the workers of ``-n auto``: one more than processors, with 4 GiB of memory for each.

    Tests of cameras, brokers and browsers wait for a good part of their time, in which another worker computes.
    """
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return max(1, min(len(os.sched_getaffinity(0)) + 1, int(memory_gib / 4)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    """Keep the tests of a file on one worker, so that the networks and servers of a module are built once."""
    from xdist.scheduler.loadfile import LoadFileScheduling

    if config.getvalue("dist") != "load":
        return None
    config.option.loadscopereorder = False  # the order below, not the number of tests
    return LoadFileScheduling(config, log)


_IMPORTED = {"modules": 0}


def _leave_imported_modules_unscanned() -> None:
    gc.collect()
    gc.freeze()
    _IMPORTED["modules"] = len(sys.modules)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection():
    """Keep the garbage collector from scanning imported modules again and again: they stay until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        _leave_imported_modules_unscanned()
        gc.set_threshold(5000)  # a network has thousands of objects, and its build would start many collections
        gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None):
    """Do the same with what the tests of a file imported: compilers and exporters have a thousand modules."""
    try:
        return (yield)
    finally:
        if nextitem is not None and nextitem.path != item.path and len(sys.modules) > _IMPORTED["modules"] + 100:
            _leave_imported_modules_unscanned()


@pytest.hookimpl(tryfirst=True)  # before ``-m "not slow"`` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, and leave tests that need a GPU out where there is none.

    All tests with a browser are slow: its start alone takes seconds. With REQUIRE_GPU=1 tests that need a GPU run, and
    fail, instead.
    """
    for item in items:
        if item.get_closest_marker("browser") and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.slow)
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)
    if os.environ.get("REQUIRE_GPU") == "1":
        return
    waiting = [item for item in items if item.get_closest_marker("gpu")]
    if not waiting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in waiting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

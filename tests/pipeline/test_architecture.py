"""The laws of the house that imports can show."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("stream", "engine", "overlays")
VENDORS = {
    "pipeline": {"numpy", "pydantic", "pydantic_core", "yaml"},
    "stream": {"numpy", "av", "cv2", "PIL", "pi_heif", "pydantic"},
    "engine": {
        "numpy",
        "torch",
        "torchvision",
        "timm",
        "safetensors",
        "openvino",
        "onnx",
        "onnxruntime",
        "platformdirs",
        "pydantic",
    },
    "overlays": {
        "numpy",
        "cv2",
        "pygame",
        "zmq",
        "av",
        "rich",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "pyarrow",
        "paho",
        "pydantic",
    },
}
# Vendors take their caches and telemetry from the environment alone, and the folder for locks is named there alone.
READS_ENVIRONMENT = {"engine/vendors.py", "overlays/sinks/locks.py"}
MODULES = [path for room in ("pipeline", *ROOMS) for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of everything a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(str(node.module).partition(".")[0])
    return names


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def standard() -> set[str]:
    import sys

    return set(sys.stdlib_module_names) | {"__future__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_the_hallway_itself_and_its_vendors(path: Path):
    room = room_of(path)
    allowed = standard() | VENDORS[room] | {"pipeline", room}
    assert imported(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_meets_the_world_only_through_run(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    touched = {f"{node.value.id}.{node.attr}" for node in ast.walk(tree) if isinstance(node, ast.Attribute)
               and isinstance(node.value, ast.Name)}  # fmt: skip
    allowed = {"os.environ"} if path.relative_to(ROOT).as_posix() in READS_ENVIRONMENT else set()
    assert not touched & {"sys.argv", "os.environ", "os.getenv", "os.putenv"} - allowed
    assert "argparse" not in imported(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_threads_are_created_in_pipeline_workers_alone(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    makers = {"Thread", "ThreadPoolExecutor", "ProcessPoolExecutor", "Process", "Timer"}
    called = {
        getattr(node.func, "attr", getattr(node.func, "id", ""))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    if path.parent != ROOT / "pipeline" / "workers":
        assert not called & makers


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_init_files_hold_a_sentence_and_no_code(path: Path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_only_the_command_line_joins_the_rooms():
    for path in ROOT.glob("*.py"):
        assert not imported(path) & set(ROOMS)
    commands = list((ROOT / "commands").rglob("*.py"))
    assert set(ROOMS) <= set().union(*map(imported, commands))
    assert not any("commands" in imported(path) for path in MODULES)

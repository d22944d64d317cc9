"""The rules of the architecture that imports can show."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("stream", "engine", "overlays")
LIBRARIES = {
    "pipeline": {"numpy", "pydantic", "pydantic_core", "scipy", "yaml"},
    "stream": {
        "numpy",
        "av",
        "cv2",
        "PIL",
        "pi_heif",
        "pydantic",
        "mcap",
        "rosbags",
        "foxglove_schemas_protobuf",
        "genicam",
        "harvesters",
        "zstandard",
        "lz4",
    },
    "engine": {
        "pycocotools",
        "numpy",
        "torch",
        "torchvision",
        "timm",
        "safetensors",
        "openvino",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "platformdirs",
        "pynvml",
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
        "asyncua",
        "cryptography",
        "pymodbus",
        "mcap",
        "mcap_protobuf",
        "foxglove",
        "foxglove_schemas_protobuf",
        "google",
        "itsdangerous",
        "jinja2",
        "pydantic",
        "pydantic_core",
    },
}
# Libraries read their caches and telemetry from the environment only, as does the folder for locks.
READS_ENVIRONMENT = {"engine/vendors.py", "overlays/sinks/locks.py"}
MODULES = [path for package in ("pipeline", *PACKAGES) for path in sorted((ROOT / package).rglob("*.py"))]


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imported(path: Path) -> set[str]:
    """Return the top-level names of all imports of a module."""
    names: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(str(node.module).partition(".")[0])
    return names


def modules_of(package: str) -> list[Path]:
    return [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]


@pytest.mark.parametrize("package", ["pipeline", *PACKAGES])
def test_package_imports_only_pipeline_itself_and_its_libraries(package: str):
    allowed = {*sys.stdlib_module_names, "__future__", *LIBRARIES[package], "pipeline", package}
    paths = modules_of(package)
    assert {path: names for path in paths if (names := imported(path) - allowed)} == {}


def test_packages_read_no_arguments_and_no_environment():
    found = {}
    for path in MODULES:
        touched = {f"{node.value.id}.{node.attr}" for node in nodes_of(path) if isinstance(node, ast.Attribute)
                   and isinstance(node.value, ast.Name)}  # fmt: skip
        name = path.relative_to(ROOT).as_posix()
        allowed = {"os.environ"} if name in READS_ENVIRONMENT else set()
        found[name] = touched & {"sys.argv", "os.environ", "os.getenv", "os.putenv"} - allowed
        found[name] |= imported(path) & {"argparse"}
    assert {name: names for name, names in found.items() if names} == {}


def test_threads_are_created_in_pipeline_workers_alone():
    makers = {"Thread", "ThreadPoolExecutor", "ProcessPoolExecutor", "Process", "Timer"}
    found = {}
    for path in MODULES:
        if path.parent != ROOT / "pipeline" / "workers":
            calls = [node.func for node in nodes_of(path) if isinstance(node, ast.Call)]
            found[path] = {getattr(called, "attr", getattr(called, "id", "")) for called in calls} & makers
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_init_file_has_a_docstring_and_no_code(path: Path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_commands_alone_join_the_packages():
    for path in ROOT.glob("*.py"):
        assert not imported(path) & set(PACKAGES)
    commands = list((ROOT / "commands").rglob("*.py"))
    assert set(PACKAGES) <= set().union(*map(imported, commands))
    assert not any("commands" in imported(path) for path in MODULES)

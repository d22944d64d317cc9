"""The rules of the architecture that imports can show."""

import ast
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


def imported(path: Path) -> set[str]:
    """Return the top-level names of all imports of a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(str(node.module).partition(".")[0])
    return names


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def standard() -> set[str]:
    import sys

    return set(sys.stdlib_module_names) | {"__future__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_package_imports_only_pipeline_itself_and_its_libraries(path: Path):
    package = package_of(path)
    allowed = standard() | LIBRARIES[package] | {"pipeline", package}
    assert imported(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_package_reads_no_arguments_and_no_environment(path: Path):
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
def test_init_file_has_a_docstring_and_no_code(path: Path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_commands_alone_join_the_packages():
    for path in ROOT.glob("*.py"):
        assert not imported(path) & set(PACKAGES)
    commands = list((ROOT / "commands").rglob("*.py"))
    assert set(PACKAGES) <= set().union(*map(imported, commands))
    assert not any("commands" in imported(path) for path in MODULES)

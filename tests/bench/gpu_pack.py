"""Packs files for a GPU machine without internet access: wheels, photos as arrays, weights, TensorRT for RTX.

    python tests/bench/gpu_pack.py                     # base and peers
    python tests/bench/gpu_pack.py base rtx --photos FOLDER --weights FOLDER

That machine has Python 3.12, torch 2.11, torchvision 0.26, numpy, OpenCV and pytest (docs/gpu.md). Each pack is a
folder of its own under ``.gpu-pack/`` (git ignores it) of 62 MiB at the most; send them with the repository in as many
turns as they need, then: ``bash tests/bench/gpu_run.sh``. Needs pip and the package index here.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PACKS = ROOT / ".gpu-pack"
MOST_BYTES = 62 << 20
SIDE = 224
"""Photos are sent as squares of this side: their middle."""
PHOTOS = 120

WHEELS: dict[str, tuple[str, ...]] = {
    "base": (
        "pydantic==2.14.3", "pydantic-core==2.50.4", "annotated-types==0.8.0", "typing-inspection==0.4.5",
        "typing-extensions==4.16.0", "pyyaml==6.0.3", "safetensors==0.8.0", "platformdirs==4.14.5", "rich==15.0.0",
        "typer==0.29.2", "shellingham==1.5.4", "click==8.5.1", "markdown-it-py==4.3.0", "mdurl==0.1.2",
        "pygments==2.21.0", "annotated-doc==0.0.7", "hypothesis==6.170.15", "sortedcontainers==2.4.0",
        "pytest-timeout==2.4.0", "pyzmq==27.3.0", "prometheus-client==0.26.0",
    ),
    "video": (
        "av==18.1.0", "onnx==1.23.2", "onnxscript==0.7.2", "onnx-ir==1.1.0", "ml-dtypes==0.6.0", "protobuf==7.36.2",
    ),
    "peers": (
        "grad-cam==1.5.7", "torchcam==0.5.0", "ttach==0.0.3", "scikit-learn==1.9.1", "joblib==1.6.0",
        "threadpoolctl==3.8.0", "matplotlib==3.11.2", "contourpy==1.3.3", "cycler==0.12.1", "fonttools==4.68.0",
        "kiwisolver==1.5.1", "pyparsing==3.3.3", "python-dateutil==4.0.0", "tqdm==4.70.1", "packaging==26.3",
        "cloudpickle==3.1.2", "narwhals==2.28.0",
    ),
    "peers-scipy": ("scipy==1.17.1",),
}  # fmt: skip
"""Packages of each pack, by name and version: for CPython 3.12 on x86-64."""

RTX = ("torch-tensorrt-rtx==2.11.0", "tensorrt-rtx-cu13-libs==1.4.0.76", "tensorrt-rtx-cu13-bindings==1.4.0.76")
RTX_SOURCES = ("tensorrt-rtx-cu13==1.4.0.76", "dllist==2.0.0")
"""TensorRT for RTX of the version that fits torch 2.11; the second row is pure Python, partly published as source."""


def fetch(names: tuple[str, ...], target: Path) -> None:
    """Bring wheels for CPython 3.12; what is published as source only is built, where it is pure Python."""
    target.mkdir(parents=True, exist_ok=True)
    platforms = [f"manylinux_2_{number}_x86_64" for number in (28, 27, 17, 24, 31, 34, 35)]
    platforms += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    platform_options = [word for name in platforms for word in ("--platform", name)]
    for name in names:
        arguments = ["download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
        arguments += ["--implementation", "cp", *platform_options, "-d", str(target), name]
        if pip(arguments) and pip(["wheel", "-q", "--no-deps", "-w", str(target), name]):
            sys.exit(f"{name}: no wheel for CPython 3.12 on x86-64, and it cannot be built here")


def pip(arguments: list[str]) -> int:
    """Run pip; 0 where it did what was asked."""
    return subprocess.run([sys.executable, "-m", "pip", *arguments], check=False, stderr=subprocess.DEVNULL).returncode


def pack_photos(folder: Path, target: Path, count: int = PHOTOS) -> None:
    """Write the middle squares of evenly chosen photos as uint8 (count, SIDE, SIDE, 3), RGB."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    chosen = [paths[number * len(paths) // min(count, len(paths))] for number in range(min(count, len(paths)))]
    squares = []
    for path in chosen:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = image[top : top + side, left : left + side]
        squares.append(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    np.savez_compressed(target, images=np.stack(squares))


def pack_rtx(target: Path) -> None:
    """Write TensorRT for RTX as one archive: what runs, without headers and tools. Takes some minutes."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        wheels, site = Path(work) / "wheels", Path(work) / "site"
        fetch((*RTX, *RTX_SOURCES), wheels)
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)  # noqa: S202 - wheels of the index, by pip's checksums
        # The plugin folder imports what its bindings do not have, which breaks torch_tensorrt.
        for name in ("tensorrt_rtx/plugin", "torch_tensorrt/bin", "torch_tensorrt/include"):
            shutil.rmtree(site / name, ignore_errors=True)
        shrink = [
            {"id": lzma.FILTER_X86},
            {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 28},
        ]
        with (
            lzma.open(target / "site.tar.xz", "wb", format=lzma.FORMAT_XZ, filters=shrink) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            archive.add(site, ".")


def build(names: list[str], photos: Path, weights: Path) -> list[Path]:
    """Make the packs that are named, and return their folders."""
    created = []
    for name in names:
        folder = PACKS / name
        shutil.rmtree(folder, ignore_errors=True)
        if name == "rtx":
            pack_rtx(folder)
        else:
            fetch(WHEELS[name], folder)
        if name == "base":
            for missing in (path for path in (photos, weights) if not path.is_dir()):
                print(f"{missing}: not here; agreement on photos will say so")
            if photos.is_dir():
                pack_photos(photos, folder / "photos.npz")
            for path in weights.glob("*.pt"):
                shutil.copy(path, folder / path.name)
        created.append(folder)
    return created


def main() -> None:
    """Make the packs that the command line names, and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="*", help=f"of {', '.join([*WHEELS, 'rtx'])}; default: all but rtx")
    shared = ROOT.parent / "shared" / "data"
    parser.add_argument("--photos", type=Path, default=shared / "photos" / "imagenet")
    parser.add_argument("--weights", type=Path, default=shared / "weights")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.packs if name not in {*WHEELS, "rtx"}]:
        parser.error(f"{unknown[0]!r} is no pack; choose from {', '.join([*WHEELS, 'rtx'])}")
    too_large = False
    for folder in build(arguments.packs or list(WHEELS), arguments.photos, arguments.weights):
        size = sum(path.stat().st_size for path in folder.iterdir())
        too_large |= size > MOST_BYTES
        print(f"{folder.relative_to(ROOT)}: {size / 2**20:.1f} MiB{' TOO LARGE' if size > MOST_BYTES else ''}")
    print("send the repository with each of them, then there: bash tests/bench/gpu_run.sh")
    sys.exit(1 if too_large else 0)


if __name__ == "__main__":
    main()

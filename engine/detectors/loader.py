"""Loads detectors of all families by name or file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from engine.detectors.checkpoint import is_detector_file, load_detector_checkpoint
from engine.detectors.detector import Detector
from engine.detectors.identify import RawMap, identify_layout
from engine.detectors.input_format import InputFormat
from engine.detectors.layouts import check_layout
from engine.detectors.networks.registry import OWN_DETECTORS, DetectorEntry
from engine.detectors.networks.state import load_state
from engine.detectors.networks.yolox import Yolox
from engine.detectors.networks.yolox_weights import load_yolox
from engine.detectors.onnx_files.reader import prove_against_runtime, read_onnx
from engine.detectors.outputs import Layout
from engine.detectors.torchvision_detectors import (
    RANDOM,
    TORCHVISION_NAMES,
    as_detector,
    build_network,
    class_count,
    coco_columns,
    has_background,
    input_format,
    load_network,
    seeded,
)
from engine.detectors.two_stage import RegionDetector
from engine.models.labels import read_labels
from pipeline.errors import ConfigError, ModelError, did_you_mean

DETECTORS: Final = (*OWN_DETECTORS, *TORCHVISION_NAMES)
"""The detectors by name."""

_NANODET_MEAN: Final = (103.53, 116.28, 123.675)
_NANODET_STD: Final = (57.375, 57.12, 58.395)


def load_detector(
    model: str | Path,
    layout: str | None = None,
    classes: Sequence[str] | Path | None = None,
    *,
    weights: str | Path | None = None,
    anchors: Path | None = None,
) -> Detector | RegionDetector:
    """Load a detector.

    Args:
        model: a name in ``DETECTORS``, a file written by ``run.py train``, or an ONNX file.
        layout: the output layout of an ONNX file: ``yolox``, ``nanodet``, ``ultralytics`` or ``ssd``; None: derived
            from the shapes of its maps.
        classes: class names, or a labels file; None: COCO's names if their number fits.
        weights: only if ``model`` is a name: a state dict file (for YOLOX also an ONNX file) or ``random``. None
            downloads torchvision's pretrained weights; YOLOX names have none, so they need a file or ``random``.
        anchors: default boxes of an ``ssd`` layout, a ``.npy`` file (A, 4): centre y, centre x, height, width as
            fractions of the image; None: those of TensorFlow's SSD networks.

    Raises:
        ModelError: the name is unknown, or the file cannot be read, decoded or verified.
        ConfigError: an option does not apply to this model, or has an invalid value.
    """
    import torchvision.ops  # noqa: F401 - slow import: done here, before the first frame, and never for classifiers

    name = str(model)
    if name.endswith(".onnx"):
        if weights is not None:
            raise ConfigError(f"weights {str(weights)!r}: {name} has its own weights; omit --weights")
        return _from_onnx(Path(name), layout, classes, anchors)
    if is_detector_file(name):
        if weights is not None:
            raise ConfigError(f"weights {str(weights)!r}: {name} has its own weights; omit --weights")
        return _from_checkpoint(Path(name), classes)
    if layout is not None:
        raise ConfigError(f"layout {check_layout(layout)!r}: {name} has its own layout; omit --layout")
    if name in OWN_DETECTORS:
        return _from_yolox(name, weights, classes)
    if name in TORCHVISION_NAMES:
        return _from_torchvision(name, weights, classes)
    if Path(name).is_file():
        raise ModelError(
            f"model {name!r}: contains only weights; use the name of its network, such as yolox_s, as the model and "
            "this file as the weights, or export the network to ONNX"
        )
    raise ModelError(
        f"detector {name!r} is unknown.{did_you_mean(name, DETECTORS)} Use an ONNX file or one of "
        f"{', '.join(DETECTORS)}"
    )


def _from_yolox(
    name: str, weights: str | Path | None, classes: Sequence[str] | Path | None
) -> Detector | RegionDetector:  # fmt: skip
    if weights is None:
        raise ModelError(f"detector {name!r}: add --weights FILE: a checkpoint (.pth, .safetensors) or an ONNX file")
    entry = OWN_DETECTORS[name]
    if weights != RANDOM and is_detector_file(weights):
        return _from_checkpoint(Path(weights), classes)
    net: Yolox = seeded(lambda: entry.build(80).eval()) if weights == RANDOM else load_yolox(name, Path(weights))
    count = net.head.classes
    return _own(name, entry, net, _names(count, classes, name), entry.input)


def _from_checkpoint(path: Path, classes: Sequence[str] | Path | None) -> Detector | RegionDetector:
    """Load a detector written by ``run.py train``."""
    file = load_detector_checkpoint(path)
    count = len(file.labels)
    labels = _names(count, classes or file.labels, path.name)
    if file.model in OWN_DETECTORS:
        entry = OWN_DETECTORS[file.model]
        net = load_state(entry.build(count).eval(), file.state, file.model, path)
        return _own(path.stem, entry, net, labels, file.input)
    if file.model not in TORCHVISION_NAMES:
        raise ModelError(f"{path}: its network {file.model!r} is unknown; update recipro-stream")
    built = build_network(file.model, count + has_background(file.model)).eval()
    return as_detector(path.stem, file.model, load_state(built, file.state, file.model, path), labels, file.input)


def _own(name: str, entry: DetectorEntry, net: Yolox, labels: tuple[str, ...], input_format: InputFormat) -> Detector:
    return Detector(
        name,
        net,
        entry.layout(len(labels)),
        labels,
        input_format,
        size_step=max(entry.strides),
        complete_cut=entry.complete_cut,
    )


def _from_torchvision(
    name: str, weights: str | Path | None, classes: Sequence[str] | Path | None
) -> Detector | RegionDetector:  # fmt: skip
    if weights not in (None, RANDOM) and is_detector_file(str(weights)):
        return _from_checkpoint(Path(str(weights)), classes)
    net = load_network(name, weights)
    labels = _names(class_count(name, net), classes, name)
    return as_detector(name, name, net, labels, input_format(name, net))


def _from_onnx(
    path: Path, layout: str | None, classes: Sequence[str] | Path | None, anchors: Path | None
) -> Detector:  # fmt: skip
    if layout is not None:
        check_layout(layout)
    found = read_onnx(path)
    maps = [
        RawMap(index, *shape, name, activations)
        for index, (name, shape, activations) in enumerate(
            zip(found.tensors, found.shapes, found.activations, strict=True)
        )
    ]
    try:
        decoded = identify_layout(maps, found.image_size, layout, defaults=_read_anchors(anchors))
    except ModelError as reason:
        raise ModelError(f"{str(path)!r}: {reason}") from None
    prove_against_runtime(path, found)
    fixed = decoded.name == "ssd"
    labels = _names(decoded.classes, classes, path.name)
    return Detector(path.stem, found.module, decoded, labels, _format_of(decoded, found.image_size), fixed)


def _read_anchors(path: Path | None) -> Tensor | None:
    if path is None:
        return None
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
    except (OSError, ValueError) as reason:
        raise ConfigError(
            f"anchors {str(path)!r}: is not a readable .npy file ({reason}); save it by numpy.save"
        ) from reason


def _format_of(layout: Layout, size: tuple[int, int]) -> InputFormat:
    """Return the input format with which networks of this layout are trained."""
    if layout.name == "yolox":
        return InputFormat(size, "bgr")
    if layout.name == "nanodet":
        return InputFormat(size, "bgr", _NANODET_MEAN, _NANODET_STD, "stretch")
    if layout.name == "ssd":
        return InputFormat(size, "rgb", (128.0,) * 3, (128.0,) * 3, "stretch")
    return InputFormat(size, "rgb", std=(255.0,) * 3, fit="centre")


def _names(count: int, classes: Sequence[str] | Path | None, model: str) -> tuple[str, ...]:
    """Return one name per class."""
    if classes is not None:
        names = read_labels(classes) if isinstance(classes, Path) else tuple(classes)
        if len(names) != count:
            where = f"labels {str(classes)!r}" if isinstance(classes, Path) else "classes"
            raise ConfigError(f"{where}: has {len(names)} names, but {model} has {count} classes; list {count} names")
        return names
    coco = coco_columns()
    for known in (coco, coco[1:], tuple(name for name in coco[1:] if name != "N/A")):
        if len(known) == count:
            return known
    return tuple(f"class {k}" for k in range(count))

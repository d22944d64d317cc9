"""Exports a detector with the heat maps of its best boxes to one ONNX file, and verifies it.

The maps use the fast cut (each box's own level). The file is kept only if its boxes, scores and maps in ONNX Runtime
equal those of the engine.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.backends.registry import first_line
from engine.detectors.detections import select
from engine.detectors.detector import Detector
from engine.detectors.exported_graph import ExplainedDetector
from engine.detectors.outputs import Target
from engine.detectors.regions import Mode
from engine.detectors.runtime import OneStageEngine
from engine.detectors.two_stage import RegionDetector
from engine.export.exporter import made_with
from engine.export.metadata import DETECTOR_FORMAT
from engine.export.rewriting import without_quadratic_rules
from pipeline.errors import BackendError, ConfigError, EngineError

log = logging.getLogger(__name__)

INPUTS: Final = ("images", "min_score")
OUTPUTS: Final = ("boxes", "scores", "classes", "count", "heat", "regions", "outside")
MAX_BOXES: Final = 10
"""Default number of boxes with maps."""
PROBED_BOXES: Final = 60
"""Number of candidates above the minimum score at which a file is verified."""
TOLERANCE: Final = 1e-3
"""Maximum difference of a map's values, as a fraction of the map's range."""
VALUE_TOLERANCE: Final = 1e-4
"""Maximum difference of boxes and scores, relative to the largest value (at least 1)."""

Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class DetectorExport:
    """Result of an export."""

    bytes: int
    max_boxes: int
    window: int
    """Number of rows and of columns of each map."""
    multiply_adds: int
    """Multiply-adds of all maps of an image."""
    plain_multiply_adds: int


def export_detector(
    detector: Detector | RegionDetector,
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    max_boxes: int = MAX_BOXES,
    mode: Mode = "keep",
) -> DetectorExport:
    """Export a detector to an ONNX file.

    Args:
        detector: a one-stage detector.
        path: the file.
        image_size: height and width of the input in pixels; None: the detector's own.
        max_boxes: number of boxes with maps.
        mode: ``keep`` or ``drop``.

    Raises:
        ConfigError: the detector has two stages, or does not accept this size.
        LayerError, EngineError: a head cannot be computed from cones, or cannot be exported.
        BackendError: the file's outputs differ from the engine's, or ONNX Runtime is missing.
    """
    if isinstance(detector, RegionDetector):
        raise ConfigError(f"{detector.name}: the regions of a two-stage detector cannot be exported; use YOLOX or SSD")
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError("the exported file is verified in ONNX Runtime, which is missing: pip install onnxruntime")
    size = image_size or detector.input.size
    module = ExplainedDetector(detector, size, max_boxes, mode).eval()
    images = _probe(detector, size)
    with torch.inference_mode():
        candidates = detector.candidates(images)
        best = candidates.log_scores.flatten().topk(PROBED_BOXES).values
    min_score = float(best[-1].exp())
    every, plain = _products(module, images), _products(module.plain, images)
    _write(module, (images, torch.tensor(min_score)), _metadata(detector, module, size, mode), path)
    _verify(detector, module, path, images, min_score)
    window = 2 * module.radius + 1
    return DetectorExport(path.stat().st_size, max_boxes, window, every - plain, plain)


def _probe(detector: Detector, size: tuple[int, int]) -> Tensor:
    """Return a random image of 32-pixel blocks, prepared for the detector."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (size[0] // 32, size[1] // 32, 3), np.uint8)
    image = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
    return replace(detector.input, size=size).prepare([image])


def _products(module: torch.nn.Module, images: Tensor) -> int:
    arguments = (images, torch.tensor(0.5)) if isinstance(module, ExplainedDetector) else (images,)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*arguments)
    return int(counter.get_total_flops()) // 2


def _metadata(detector: Detector, module: ExplainedDetector, size: tuple[int, int], mode: Mode) -> dict[str, str]:
    form = detector.input
    plain = {
        "format": DETECTOR_FORMAT, "model": detector.name, "layout": detector.layout.name, "order": form.order,
        "fit": form.fit, "mode": mode, "cut": "level",
    }  # fmt: skip
    listed = {
        "labels": detector.labels, "input_size": size, "mean": form.mean, "std": form.std, "border": form.border,
        "min_score": detector.score, "iou": detector.iou, "cut_nodes": module.cuts,
        "cell_px": module.cells, "max_boxes": module.max_boxes, "made_with": made_with(),
    }  # fmt: skip
    return {**plain, **{key: json.dumps(value) for key, value in listed.items()}}


def _write(
    module: ExplainedDetector, example: tuple[Tensor, Tensor], metadata: dict[str, str], path: Path
) -> None:  # fmt: skip
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)  # silences a line per folded constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # silences warnings of torch and onnxscript about their internals
        try:
            with torch.no_grad(), without_quadratic_rules():
                program = torch.export.export(module, example)
                written = torch.onnx.export(
                    program, dynamo=True, verbose=False, input_names=list(INPUTS), output_names=list(OUTPUTS)
                )
            assert written is not None  # noqa: S101 - torch returns a graph with ``dynamo``
            written.model.metadata_props.update(metadata)
            written.save(str(path))
        except OSError:
            raise
        except Exception as reason:  # both raise many types of exception
            raise EngineError(
                f"detector {metadata['model']!r} cannot be exported ({first_line(reason)}); use `stream`, which "
                "needs no file"
            ) from reason


def _verify(detector: Detector, module: ExplainedDetector, path: Path, images: Tensor, min_score: float) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(list(OUTPUTS), {"images": images.numpy(), "min_score": np.array(min_score, np.float32)})
    differs = mismatch(detector, module, dict(zip(OUTPUTS, values, strict=True)), images, min_score)
    if differs:
        raise BackendError(
            f"in ONNX Runtime, the results of the exported file differ from the engine's: {differs}; the file was "
            "deleted; use `stream`, which needs no file"
        )


def mismatch(
    detector: Detector, module: ExplainedDetector, outputs: Outputs, images: Tensor, min_score: float
) -> str:  # fmt: skip
    """Return the first output in which a file differs from the engine, as text; "" if none does.

    Args:
        detector: the detector.
        module: the detector's exported graph.
        outputs: outputs of the file for ``images`` and ``min_score``, by name.
        images: one prepared image.
        min_score: minimum score of a box.
    """
    size = (images.shape[2], images.shape[3])
    engine = OneStageEngine(detector, size, cut="level", prepare=False)
    (boxes,) = engine.run(images)
    found = select(boxes.source.candidates, score=min_score, iou=detector.iou, limit=module.max_boxes)
    count = int(outputs["count"])
    if count != len(found):
        return f"{count} boxes instead of {len(found)}"
    if outputs["classes"][:count].tolist() != found.classes.tolist():
        return "classes"
    for name, expected in (("boxes", found.boxes.numpy()), ("scores", found.scores.numpy())):
        difference = float(np.abs(outputs[name][:count] - expected).max(initial=0.0))
        if not difference <= VALUE_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0))):
            return f"{name} by {difference:.2g}"
    grids = boxes.source.candidates.grids
    for number in range(count):
        anchor = detector.layout.locate(grids, int(found.anchors[number]))
        cell = module.cells[anchor.level]
        target = Target(anchor, int(found.classes[number]))
        (heat,) = engine.heat_of_targets(boxes, [target], cell, module.mode)
        difference = _map_difference(outputs, number, heat.values.numpy(), cell)
        if not difference <= TOLERANCE:
            return f"the map of box {number} by {difference:.2g} of its range"
    return ""


def _map_difference(outputs: Outputs, number: int, expected: npt.NDArray[np.float32], cell: int) -> float:
    """Return the largest difference of a box's map on the whole grid, as a fraction of the map's range."""
    painted = paint(
        outputs["heat"][number], outputs["regions"][number], outputs["outside"][number], expected.shape, cell
    )
    spread = float(expected.max() - expected.min())
    return float(np.abs(painted - expected).max()) / max(spread, 1e-6)


def paint(
    heat: npt.NDArray[np.float32], region: npt.NDArray[np.float32], outside: float, grid: tuple[int, ...], cell: int
) -> npt.NDArray[np.float32]:
    """Expand the map of a box from its window to all regions of the image.

    Args:
        heat: (S, S), the map on the window.
        region: (4,), the window in pixels of the input; it may extend beyond the image.
        outside: the value of all other regions.
        grid: rows and columns of regions.
        cell: side of a region in pixels.
    """
    painted = np.full(grid, outside, np.float32)
    left, top = (round(float(v) / cell) for v in region[:2])
    for row in range(heat.shape[0]):
        for column in range(heat.shape[1]):
            if 0 <= top + row < grid[0] and 0 <= left + column < grid[1]:
                painted[top + row, left + column] = heat[row, column]
    return painted

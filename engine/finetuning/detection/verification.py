"""Verifies a written detector: loads it as for a stream, and compares it with the trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from engine.detectors.detector import Detector
from engine.detectors.loader import load_detector
from engine.detectors.two_stage import RegionDetector
from engine.explainers.detector import DetectorExplainer
from engine.finetuning.detection.setup import DetectorModel
from pipeline.config import EngineConfig
from pipeline.errors import ModelError
from pipeline.frames import Frame, Image

SCORE_TOLERANCE: Final = 1e-4
"""Maximum difference of a score, since float32 operations run in another order."""
BOX_TOLERANCE: Final = 0.05
"""Maximum difference of a box's edge, in pixels of the input."""
_COMPARED: Final = 100


def check_detector_file(path: Path, model: DetectorModel, image: Image) -> None:
    """Compare a written detector with the trained network on an image; also explain the image.

    Args:
        path: the written file.
        model: the trained network.
        image: uint8 RGB.

    Raises:
        ModelError: the file cannot be used, or its labels, boxes or scores differ.
    """
    try:
        detector = load_detector(path)
        boxes, scores = _raw(detector, image)
        config = EngineConfig(model=str(path), backend="eager", device="cpu", cache="off")
        explanation = DetectorExplainer(detector, config).explain([Frame(image, "train", 0, 0.0)])[0]
    except Exception as reason:  # a stream would fail in the same way
        lines = str(reason).strip().splitlines()
        raise ModelError(f"cannot be used ({type(reason).__name__}: {lines[0][:200] if lines else ''})") from reason
    if tuple(detector.labels) != model.labels:
        raise ModelError(f"has the classes {', '.join(detector.labels)}, but was trained on {', '.join(model.labels)}")
    expected, wanted = model.network.raw(model.input.prepare([image]))
    best = wanted.amax(1).topk(min(_COMPARED, len(wanted))).indices
    difference = float((scores - wanted)[best].abs().max())
    shift = float((boxes - expected)[best].abs().max())
    if not (difference <= SCORE_TOLERANCE and shift <= BOX_TOLERANCE):  # also true for NaN
        raise ModelError(
            f"its scores differ by {difference:.2g} and its boxes by {shift:.2g} pixels from those of the trained "
            "network"
        )
    for finding in explanation.findings:
        if not np.isfinite(finding.heat).all():
            raise ModelError(f"its heat map for {finding.label!r} has values that are not finite")


def _raw(detector: Detector | RegionDetector, image: Image) -> tuple[Tensor, Tensor]:
    """Return all boxes and scores of an image before selection, like ``DetectionNetwork.raw``."""
    images = detector.input.prepare([image])
    if isinstance(detector, Detector):
        candidates = detector.candidates(images)
        return candidates.boxes[0], candidates.log_scores[0].exp()
    found = detector.proposals(images)[0]
    return found.boxes, found.log_scores.exp()

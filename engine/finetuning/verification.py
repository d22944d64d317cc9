"""Verifies a written model file: loads it as for a stream, and compares it with the trained network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from engine.models.preprocess import Preprocessing
from pipeline.config import EngineConfig
from pipeline.errors import ModelError
from pipeline.frames import Explanation, Frame

SCORE_TOLERANCE: Final = 1e-4
"""Maximum difference of a score, since float32 operations run in another order."""

_COMPARED_CLASSES: Final = 5


def open_model_file(path: Path) -> NetworkExplainer:
    """Build the explainer of a model file as for a stream, in eager float32 on the CPU.

    Raises:
        ModelError: the file cannot be loaded, split or run.
    """
    try:
        network = load_network(str(path))
        top = min(_COMPARED_CLASSES, len(network.labels))
        config = EngineConfig(model=str(path), backend="eager", device="cpu", target=[f"top{top}"], cache="off")
        return NetworkExplainer(network, config)
    except Exception as reason:  # a stream would fail in the same way
        raise ModelError(f"cannot be loaded and built ({_first_line(reason)})") from reason


def check_answers(
    explainer: NetworkExplainer, net: nn.Module, labels: Sequence[str], preprocessing: Preprocessing, frame: Frame
) -> Explanation:
    """Explain a frame with a model file, and compare its scores with those of the trained network.

    Args:
        explainer: explainer of the file.
        net: the trained network.
        labels: the classes of ``net``.
        preprocessing: the input format of ``net``.
        frame: the frame to explain.

    Raises:
        ModelError: the labels or scores of the file differ, or a heat map is not finite.
    """
    with torch.inference_mode():
        trained = copy.deepcopy(net).float().cpu().eval()
        images = preprocessing.normalised(preprocessing.pixels([frame]))
        expected = torch.softmax(trained(images).float(), 1)[0].numpy()
    try:
        explanation = explainer.explain([frame])[0]
    except Exception as reason:  # as above
        raise ModelError(f"cannot explain an image ({_first_line(reason)})") from reason
    if tuple(explainer.labels) != tuple(labels):
        raise ModelError(f"has the classes {', '.join(explainer.labels)}, but was trained on {', '.join(labels)}")
    for finding in explanation.findings:
        score = float(expected[finding.class_index])
        if not abs(finding.score - score) <= SCORE_TOLERANCE:  # also true for NaN
            raise ModelError(
                f"its score for {finding.label!r} is {finding.score:.4f}, but that of the trained network is "
                f"{score:.4f}"
            )
        if not np.isfinite(finding.heat).all():
            raise ModelError(f"its heat map for {finding.label!r} has values that are not finite")
    return explanation


def _first_line(reason: BaseException) -> str:
    lines = str(reason).strip().splitlines()
    return f"{type(reason).__name__}: {lines[0][:200]}" if lines else type(reason).__name__

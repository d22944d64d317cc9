"""A model file is used once, as a stream will use it, before anybody is told that it was written."""

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
"""How far a score may be from that of the network in memory: float32, the same arithmetic in another order."""

_COMPARED_CLASSES: Final = 5


def open_model_file(path: Path) -> NetworkExplainer:
    """Return what explains frames with a model file, built as a stream builds it; eager float32 on the CPU.

    Raises:
        ModelError: it cannot be loaded, cut or run, whatever the reason.
    """
    try:
        network = load_network(str(path))
        top = min(_COMPARED_CLASSES, len(network.labels))
        config = EngineConfig(model=str(path), backend="eager", device="cpu", target=[f"top{top}"], cache="off")
        return NetworkExplainer(network, config)
    except Exception as reason:  # whatever it is, a stream would meet it too
        raise ModelError(f"cannot be loaded and built ({_first_line(reason)})") from reason


def check_answers(
    explainer: NetworkExplainer, net: nn.Module, labels: Sequence[str], preprocessing: Preprocessing, frame: Frame
) -> Explanation:
    """Explain a picture by a model file, and compare its scores with those of the network that was trained.

    Args:
        explainer: of the file.
        net: the network in memory.
        labels: its classes.
        preprocessing: what it learned with.
        frame: the picture.

    Raises:
        ModelError: the file gives other labels or scores, or a map that is none.
    """
    with torch.inference_mode():
        whole = copy.deepcopy(net).float().cpu().eval()
        image = preprocessing.normalised(preprocessing.pixels([frame]))
        wanted = torch.softmax(whole(image).float(), 1)[0].numpy()
    try:
        found = explainer.explain([frame])[0]
    except Exception as reason:  # as above
        raise ModelError(f"cannot explain a picture ({_first_line(reason)})") from reason
    if tuple(explainer.labels) != tuple(labels):
        raise ModelError(f"has other classes ({', '.join(explainer.labels)}) than were learned ({', '.join(labels)})")
    for finding in found.findings:
        if not abs(finding.score - float(wanted[finding.class_index])) <= SCORE_TOLERANCE:  # of no number neither
            raise ModelError(
                f"gives {finding.label!r} a score of {finding.score:.4f} where the trained network gives "
                f"{wanted[finding.class_index]:.4f}"
            )
        if not np.isfinite(finding.heat).all():
            raise ModelError(f"gives {finding.label!r} a heat map with values that are no numbers")
    return found


def _first_line(reason: BaseException) -> str:
    lines = str(reason).strip().splitlines()
    return f"{type(reason).__name__}: {lines[0][:200]}" if lines else type(reason).__name__

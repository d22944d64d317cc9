"""Measures half precision and other backends: agreement of top class and heat map with eager float32, on real photos.

    uv run python -m tests.bench.precision --photos FOLDER --model mobilenet_v2 --weights FILE.pt --mean 0.5 --std 0.5

For each backend and precision: share of photos with the same top class; scores' largest difference; and over the
photos with the same top class, heat's rank correlation (Spearman) over the grid, its largest difference, and how often
its peak lies in the same cell. One JSON line each.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from statistics import mean, median

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.evaluation import metrics
from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from pipeline.config import EngineConfig
from pipeline.errors import ReciproStreamError
from pipeline.frames import Explanation, Frame
from tests.bench.figures import environment, print_line

WAYS = (("eager", "bf16"), ("openvino", "fp32"), ("openvino", "bf16"))
"""Settings compared with eager float32."""


def photos(folder: Path) -> list[Frame]:
    """Read every photo of a folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    images = (cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths)
    return [Frame(np.asarray(image, np.uint8), "photos", k, 0.0) for k, image in enumerate(images)]


def rank_correlation(first: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return Spearman's correlation of two maps; NaN where one of them is flat."""
    return float("nan") if np.ptp(first) == 0 or np.ptp(other) == 0 else metrics.rank_correlation(first, other)


def compare(truth: list[Explanation], actual: list[Explanation]) -> dict[str, object]:
    """Compare explanations of the same photos."""
    same = [
        (a.first, b.first) for a, b in zip(truth, actual, strict=True) if a.first.class_index == b.first.class_index
    ]
    related = [rank_correlation(a.heat, b.heat) for a, b in same]
    related = [value for value in related if not np.isnan(value)]
    return {
        "photos": len(truth), "same_top_class": round(len(same) / len(truth), 4),
        "score_difference_max": round(max(abs(a.score - b.score) for a, b in same), 5),
        "heat_rank_correlation": {"mean": round(mean(related), 5), "median": round(median(related), 5),
                                  "min": round(min(related), 5)},
        "heat_difference_max": round(max(float(np.abs(a.heat - b.heat).max()) for a, b in same), 5),
        "same_peak": round(mean(float(a.heat.argmax() == b.heat.argmax()) for a, b in same), 4),
    }  # fmt: skip


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--layer")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--input-size")
    arguments = parser.parse_args()
    options = {"model": arguments.model, "layer": arguments.layer, "mean": arguments.mean, "std": arguments.std}
    options = {
        key: value for key, value in {**options, "input_size": arguments.input_size}.items() if value is not None
    }
    frames = photos(arguments.photos)

    def explained(backend: str, precision: str) -> list[Explanation]:
        config = EngineConfig.model_validate({**options, "backend": backend, "precision": precision})
        explainer = NetworkExplainer(load_network(arguments.model, weights=arguments.weights), config)
        return [explainer.explain([frame])[0] for frame in frames]

    truth = explained("eager", "fp32")
    for backend, precision in WAYS:
        case = {"bench": "precision", "model": arguments.model, "layer": truth[0].layer, "backend": backend}
        try:
            print_line(**case, precision=precision, **compare(truth, explained(backend, precision)), **environment())
        except ReciproStreamError as reason:
            print_line(**case, precision=precision, refused=str(reason))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

"""Measures half precision on real photos: top class and heat map on the device, compared with float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np

from engine.backends.registry import first_line
from engine.explainers.gpu import GpuExplainer
from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from overlays.render.gpu_tables import heat_lut
from pipeline.config import EngineConfig
from pipeline.frames import Frame
from tests.bench.gpu_clock import Settings
from tests.bench.precision import rank_correlation

KNOBS = {
    "squeezenet1_1": {},
    "mobilenet_v2": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (225, 225)},
}
"""Networks whose real weights are sent along, as ``NAME.pt``."""


def measure(settings: Settings) -> Iterator[dict[str, object]]:
    """Yield one record for each network and backend; without photos or weights, a record that says so."""
    if settings.photos is None or settings.weights is None:
        yield {"skipped": "no photos or weights: give --photos FILE.npz and --weights FOLDER"}
        return
    images = np.load(settings.photos)["images"]
    frames = [
        Frame(image, "photos", number, 0.0) for number, image in enumerate(images[: 3 if settings.small else None])
    ]
    for name, options in KNOBS.items():
        path = Path(settings.weights) / f"{name}.pt"
        if not path.is_file():
            yield {"model": name, "skipped": f"{path.name} was not sent along"}
            continue
        base = EngineConfig(model=name, backend="eager", device="cpu", cache="off", **options)
        truth = NetworkExplainer(load_network(name, weights=path), base).explain(frames)
        for backend in ("eager", "tensorrt"):
            case = {"model": name, "backend": backend, "precision": settings.precision, "photos": len(frames)}
            if lacking := settings.lacking(backend):
                yield {**case, "skipped": lacking}
                continue
            try:
                change = {
                    "backend": backend,
                    "device": str(settings.device),
                    "precision": settings.precision,
                    "batch": 1,
                }
                card = GpuExplainer(
                    load_network(name, weights=path), base.model_copy(update=change), table=heat_lut("inferno", 0.6)
                )
                yield {**case, **_alike(truth, card.explain(frames))}
            except Exception as reason:  # noqa: BLE001 - one backend must not cost the other
                yield {**case, "error": f"{type(reason).__name__}: {first_line(reason)}"}


def _alike(truth: list, answers: list) -> dict[str, object]:
    same = [(first.first, other.first) for first, other in zip(truth, answers, strict=True)
            if first.first.class_index == other.first.class_index]  # fmt: skip
    ranks = [value for a, b in same if not np.isnan(value := rank_correlation(a.heat, b.heat))]
    return {
        "same_top_class": round(len(same) / len(truth), 4),
        "score_difference_max": round(max((abs(a.score - b.score) for a, b in same), default=1.0), 5),
        "heat_rank_correlation": {"mean": round(mean(ranks), 5), "min": round(min(ranks), 5)},
        "same_peak": round(mean(float(a.heat.argmax() == b.heat.argmax()) for a, b in same), 4),
    }

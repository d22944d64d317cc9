"""Several methods examined on the same pictures with one network: shared by the authors' table and the pointing game.

Each picture's feature map is computed once for all methods. What was measured stands in one journal a method, so that
a run that was stopped goes on where it was.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.evaluation import metrics
from engine.evaluation.evaluator import ClassMapping, Evaluator
from engine.evaluation.results import ResultsLog
from engine.methods.registry import find_method
from engine.models.loader import class_names, load_network
from engine.models.preprocess import Preprocessing
from engine.models.registry import IMAGENET_MEAN, IMAGENET_STD
from engine.split.network import SplitModel, split_network
from pipeline.frames import Frame, GroundTruth
from stream.images import read_image

log = logging.getLogger(__name__)

WAYS = {
    "Recipro-CAM, point": ("recipro-cam", "point"),
    "Recipro-CAM, gaussian": ("recipro-cam", "gaussian"),
    "CAM": ("cam", "point"),
    "Grad-CAM": ("grad-cam", "point"),
    "Grad-CAM++": ("grad-cam++", "point"),
    "LayerCAM": ("layer-cam", "point"),
    "EigenCAM": ("eigen-cam", "point"),
    "Score-CAM": ("score-cam", "point"),
}
"""A row of the table: method and kernel."""
DEAR = ("EigenCAM", "Score-CAM")
"""Those that take a decomposition of the whole map, or run the network once for each channel."""


@dataclass(frozen=True)
class Fed:
    """Preprocessing of a network's weights."""

    file: str
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


NETWORKS = {
    "resnet18": Fed("resnet18.pth"),
    "resnet50": Fed("resnet50.pth"),
    "mobilenet_v2": Fed("mobilenet_v2.pt", (225, 225), (0.5,) * 3, (0.5,) * 3),
    "squeezenet1_1": Fed("squeezenet1_1.pt"),
}


class Remembering(nn.Module):
    """The head of a network with a cache for the last two images: an image, and the same image masked."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map."""
        known = next((entry for entry in self._seen if torch.equal(entry[0], images)), None)
        if known is None:
            known = images.detach().clone(), self.head(images)
        self._seen = [known, *(entry for entry in self._seen if entry is not known)][:2]
        return known[1].clone()


def find_weights(folders: Sequence[Path], file: str) -> Path:
    """Return the first folder's file of that name."""
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    message = f"weights {file!r}: not in {', '.join(map(str, folders))}; give --weights FOLDER [FOLDER ...]"
    raise SystemExit(message)


def cut(name: str, weights: Sequence[Path]) -> tuple[SplitModel, tuple[str, ...]]:
    """Return a network cut at its last grid, and its class names."""
    fed = NETWORKS[name]
    network = load_network(name, weights=find_weights(weights, fed.file))
    split = split_network(network.module, network.layer, fed.size)
    return replace(split, head=Remembering(split.head), plans={}), class_names(network, split.classes)


@dataclass(frozen=True)
class Run:
    """Methods, networks and images of a measurement."""

    pictures: Sequence[Path]
    ways: Sequence[str]
    fit: str
    steps: int = 0
    truths: Mapping[str, Sequence[GroundTruth]] | None = None
    meaning: Mapping[str, list[int]] | None = None


def examine_all(name: str, weights: Sequence[Path], run: Run, output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each method in the order of the images; measure those that the journals lack."""
    split, labels = cut(name, weights)
    fed = NETWORKS[name]
    preprocessing = Preprocessing(fed.size, fed.mean, fed.std, run.fit)  # type: ignore[arg-type]
    knowledge = ClassMapping(labels, dict(run.meaning or {}))
    examiners = {
        way: Evaluator(split, preprocessing, find_method(*WAYS[way]), knowledge, steps=run.steps) for way in run.ways
    }
    records: dict[str, list[dict[str, Any]]] = {way: [] for way in run.ways}
    with ExitStack() as stack:
        journals = {
            way: stack.enter_context(ResultsLog(output / name / WAYS[way][0] / WAYS[way][1], _settings(name, way, run)))
            for way in run.ways
        }
        for number, path in enumerate(run.pictures):
            frame = None
            for way, journal in journals.items():
                if path.name not in journal.records:
                    frame = frame or Frame(read_image(path), name, number, 0.0)
                    truths = None if run.truths is None else run.truths.get(path.name, ())
                    record = examiners[way].evaluate(frame, truths)
                    del record["seconds"]  # not comparable: the feature map is already computed
                    journal.add({"image": path.name, **record})
                records[way].append(journal.records[path.name])
            log.info("%s: %d of %d", name, number + 1, len(run.pictures))
    return records


def _settings(name: str, way: str, run: Run) -> dict[str, Any]:
    return {"network": name, "way": way, "fit": run.fit, "steps": run.steps}


def with_error(values: Sequence[float]) -> list[float]:
    """Return mean and standard error in per cent; the error is NaN-free: 0 for one value."""
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return [round(100 * metrics.mean(values), 2), round(100 * spread, 2)]


def values_of(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Return the stored record of a key; None if there is none."""
    return [float(record[key]) for record in records if record.get(key) is not None]

"""Measures which settings make a map point at a defect: ``python tests/bench/defect_maps.py FOLDER --weights FILE
[--sizes 224,448]``.

A frozen ResNet-18 ends after layer3 or layer4 and gets a mean and a linear layer; every tile is held out once in four
folds. The folds part single files (as papers do: other exposures of the same tile are then learned), or whole tiles.
With the class of clean tiles and without it. A map hits when the centre of its hottest cell lies within 15 pixels of
the picture from the mask; the top-1 class is explained, right or wrong. Prints one JSON line for each row.

FOLDER is laid out like the magnetic-tile data set (Huang, Qiu and Yuan, *Surface defect saliency of magnetic tile*,
2020): a folder for each class, ``NAME.jpg`` beside its mask ``NAME.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.evaluation.masks import distance_to
from engine.evaluation.metrics import TOLERANCE_PIXELS
from engine.finetuning.splits import group_ids
from engine.methods.kernels import masks
from engine.models.loader import load_network
from engine.models.preprocess import Preprocessing, fit_image
from engine.split.network import split_network
from stream.images import read_image

LAYERS = ("layer3", "layer4")
KERNELS = ("point", "gaussian", "cam")
FOLDS, STEPS, ABOVE = 4, 250, 127

Numbers = npt.NDArray[np.int_]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """An image, its class and the mask of its defect."""

    path: Path
    label: str
    mask: Mask | None


def tiles_of(folder: Path) -> list[Tile]:
    """Read every class's pictures and masks."""
    tiles = []
    for path in sorted(folder.glob("*/*.jpg"), key=lambda path: int(path.stem.rpartition("_")[2])):
        mask_path = path.with_suffix(".png")
        mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE) > ABOVE if mask_path.is_file() else None
        tiles.append(Tile(path, path.parent.name, mask if mask is not None and mask.any() else None))
    return tiles


def folds_of(sources: Sequence[str], classes: Numbers) -> Numbers:
    """Return each tile's fold: a source is in one fold, classes are spread evenly, the largest sources come first."""
    names = list(dict.fromkeys(sources))
    indices = np.array([names.index(source) for source in sources])
    count = int(classes.max()) + 1
    held = np.array([np.bincount(classes[indices == k], minlength=count) for k in range(len(names))])
    total, assigned = held.sum(0), np.zeros((FOLDS, count))
    fold = np.zeros(len(names), int)
    order = np.random.default_rng(0).permutation(len(names))
    for k in order[np.argsort(-held[order].sum(1), kind="stable")]:
        quota = total / FOLDS
        cost = (((assigned + held[k] - quota) / total) ** 2 - ((assigned - quota) / total) ** 2).sum(1)
        fold[k] = int(np.argmin(cost))
        assigned[fold[k]] += held[k]
    return np.asarray(fold[indices])


def linear(features: Tensor, classes: Numbers) -> nn.Linear:
    """Fit a linear layer, rare classes counting more."""
    torch.manual_seed(0)
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    counts = np.bincount(classes)
    weight = torch.from_numpy(counts.mean() / counts).float()
    layer = nn.Linear(features.shape[1], len(counts))
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    inputs, truth = (features - mean) / deviation, torch.from_numpy(classes)
    for _ in range(STEPS):
        loss = F.cross_entropy(layer(inputs), truth, weight=weight, label_smoothing=0.05)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        layer.weight.div_(deviation)
        layer.bias.sub_(layer.weight @ mean)
    return layer.requires_grad_(requires_grad=False)


def heat_of(features: Tensor, layer: nn.Linear, kernel: str, target: int) -> npt.NDArray[np.float64]:
    """Return the map of one tile's features (C, h, w): Recipro-CAM by its closed form, or plain CAM."""
    cells = features.flatten(1).T / features[0].numel()
    if kernel == "gaussian":
        # A mean sees only how much of the spread vector the border leaves.
        rows, columns = features.shape[1:]
        cells = cells * masks("gaussian", (rows, columns), torch.arange(rows * columns)).sum((1, 2))[:, None]
    scores = layer(cells).double()
    cell_scores = scores if kernel == "cam" else scores.softmax(1)
    return np.asarray(cell_scores[:, target].view(features.shape[1:]).numpy())


def hits(heat: npt.NDArray[np.float64], mask: Mask) -> bool:
    """Return whether the centre of the hottest cell lies on the mask, or within the tolerance."""
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    peak = (column + 0.5) * mask.shape[1] / heat.shape[1], (row + 0.5) * mask.shape[0] / heat.shape[0]
    return distance_to(mask, peak) <= TOLERANCE_PIXELS


def features_of(tiles: Sequence[Tile], weights: str, size: int) -> dict[str, Tensor]:
    """Return each layer's output for every tile, float16."""
    network = load_network("resnet18", weights=weights)
    preprocessing = Preprocessing((size, size), network.mean, network.std)
    splits = [split_network(network.module, layer, (size, size)) for layer in LAYERS]
    features: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    with torch.inference_mode():
        for tile in tiles:
            image = preprocessing.normalised(fit_image(read_image(tile.path), (size, size), "stretch"))
            for layer, split in zip(LAYERS, splits, strict=True):
                features[layer].append(split.head(image).half())
    return {layer: torch.cat(several) for layer, several in features.items()}


def rows(tiles: Sequence[Tile], features: Tensor, parted: str, *, clean: str | None) -> Iterator[dict[str, object]]:
    """Hold out every tile once; return one row for each kernel."""
    selected = [k for k, tile in enumerate(tiles) if tile.label != clean]
    labels = sorted({tiles[k].label for k in selected})
    classes = np.array([labels.index(tiles[k].label) for k in selected])
    names = [str(tiles[k].path) for k in selected]
    sources = group_ids(names, r"num_(\d+)", 100) if parted == "tile" else names
    fold, pooled = folds_of(sources, classes), features[selected].float().mean((2, 3))
    predicted, hit = np.zeros(len(selected), int), {kernel: np.full(len(selected), np.nan) for kernel in KERNELS}
    for k in range(FOLDS):
        layer = linear(pooled[fold != k], classes[fold != k])
        predicted[fold == k] = layer(pooled[fold == k]).argmax(1).numpy()
        for index in np.nonzero(fold == k)[0]:
            mask = tiles[selected[index]].mask
            if mask is not None:
                for kernel in KERNELS:
                    heat = heat_of(features[selected[index]].float(), layer, kernel, int(predicted[index]))
                    hit[kernel][index] = hits(heat, mask)
    known, right = ~np.isnan(hit["point"]), predicted == classes
    for kernel in KERNELS:
        yield {
            "kernel": kernel, "accuracy": round(float(right.mean()), 4), "tiles": len(selected),
            "hits": int(hit[kernel][known].sum()), "defects": int(known.sum()),
            "hits_of_right": int(hit[kernel][known & right].sum()), "right": int((known & right).sum()),
        }  # fmt: skip


def main() -> None:
    """Read argv and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--sizes", default="224,320,448")
    parser.add_argument("--clean", default="MT_Free")
    arguments = parser.parse_args()
    tiles = tiles_of(arguments.folder)
    for size in map(int, arguments.sizes.split(",")):
        features = features_of(tiles, arguments.weights, size)
        for parted in ("file", "tile"):
            for layer in LAYERS:
                for clean in (None, arguments.clean):
                    case = {"size": size, "parted": parted, "layer": layer, "clean_class": clean is None}
                    for row in rows(tiles, features[layer], parted, clean=clean):
                        print(json.dumps(case | row), flush=True)


if __name__ == "__main__":
    main()

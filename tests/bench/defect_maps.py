"""What makes a defect's map point at it: ``python tests/bench/defect_maps.py FOLDER --weights FILE [--sizes 224,448]``.

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
    """One picture, its class and where its defect lies."""

    path: Path
    label: str
    mask: Mask | None


def tiles_of(folder: Path) -> list[Tile]:
    """Read every class's pictures and masks."""
    found = []
    for path in sorted(folder.glob("*/*.jpg"), key=lambda path: int(path.stem.rpartition("_")[2])):
        place = path.with_suffix(".png")
        mask = cv2.imread(str(place), cv2.IMREAD_GRAYSCALE) > ABOVE if place.is_file() else None
        found.append(Tile(path, path.parent.name, mask if mask is not None and mask.any() else None))
    return found


def folds_of(sources: Sequence[str], classes: Numbers) -> Numbers:
    """Return each tile's fold: sources whole, classes spread evenly, the largest sources placed first."""
    names = list(dict.fromkeys(sources))
    place = np.array([names.index(source) for source in sources])
    count = int(classes.max()) + 1
    held = np.array([np.bincount(classes[place == k], minlength=count) for k in range(len(names))])
    total, given = held.sum(0), np.zeros((FOLDS, count))
    fold = np.zeros(len(names), int)
    order = np.random.default_rng(0).permutation(len(names))
    for k in order[np.argsort(-held[order].sum(1), kind="stable")]:
        wanted = total / FOLDS
        cost = (((given + held[k] - wanted) / total) ** 2 - ((given - wanted) / total) ** 2).sum(1)
        fold[k] = int(np.argmin(cost))
        given[fold[k]] += held[k]
    return np.asarray(fold[place])


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
    told = scores if kernel == "cam" else scores.softmax(1)
    return np.asarray(told[:, target].view(features.shape[1:]).numpy())


def hits(heat: npt.NDArray[np.float64], mask: Mask) -> bool:
    """Say whether the hottest cell's centre lies on the mask, or no farther than the tolerance from it."""
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    peak = (column + 0.5) * mask.shape[1] / heat.shape[1], (row + 0.5) * mask.shape[0] / heat.shape[0]
    return distance_to(mask, peak) <= TOLERANCE_PIXELS


def features_of(tiles: Sequence[Tile], weights: str, size: int) -> dict[str, Tensor]:
    """Return each layer's output for every tile, float16."""
    network = load_network("resnet18", weights=weights)
    place = Preprocessing((size, size), network.mean, network.std)
    splits = [split_network(network.module, layer, (size, size)) for layer in LAYERS]
    found: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    with torch.inference_mode():
        for tile in tiles:
            image = place.normalised(fit_image(read_image(tile.path), (size, size), "stretch"))
            for layer, split in zip(LAYERS, splits, strict=True):
                found[layer].append(split.head(image).half())
    return {layer: torch.cat(several) for layer, several in found.items()}


def rows(tiles: Sequence[Tile], features: Tensor, parted: str, *, clean: str | None) -> Iterator[dict[str, object]]:
    """Hold every tile out once; give one row for each kernel."""
    kept = [k for k, tile in enumerate(tiles) if tile.label != clean]
    labels = sorted({tiles[k].label for k in kept})
    classes = np.array([labels.index(tiles[k].label) for k in kept])
    names = [str(tiles[k].path) for k in kept]
    sources = group_ids(names, r"num_(\d+)", 100) if parted == "tile" else names
    fold, pooled = folds_of(sources, classes), features[kept].float().mean((2, 3))
    given, hit = np.zeros(len(kept), int), {kernel: np.full(len(kept), np.nan) for kernel in KERNELS}
    for k in range(FOLDS):
        layer = linear(pooled[fold != k], classes[fold != k])
        given[fold == k] = layer(pooled[fold == k]).argmax(1).numpy()
        for place in np.nonzero(fold == k)[0]:
            mask = tiles[kept[place]].mask
            if mask is not None:
                for kernel in KERNELS:
                    heat = heat_of(features[kept[place]].float(), layer, kernel, int(given[place]))
                    hit[kernel][place] = hits(heat, mask)
    known, right = ~np.isnan(hit["point"]), given == classes
    for kernel in KERNELS:
        yield {
            "kernel": kernel, "accuracy": round(float(right.mean()), 4), "tiles": len(kept),
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
    asked = parser.parse_args()
    tiles = tiles_of(asked.folder)
    for size in map(int, asked.sizes.split(",")):
        found = features_of(tiles, asked.weights, size)
        for parted in ("file", "tile"):
            for layer in LAYERS:
                for clean in (None, asked.clean):
                    told = {"size": size, "parted": parted, "layer": layer, "clean_class": clean is None}
                    for row in rows(tiles, found[layer], parted, clean=clean):
                        print(json.dumps(told | row), flush=True)


if __name__ == "__main__":
    main()

"""The cone plan of the real YOLOX-nano is exact at every level, and needs at most the counted multiply-adds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.detectors.cones.plan import ConePlan
from engine.detectors.cones.responses import AnchorReads
from engine.detectors.cuts import find_cut, own_level_cut
from engine.detectors.graph import Network, normalise
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.yolox import STRIDES
from engine.detectors.networks.yolox_weights import load_yolox
from engine.detectors.outputs import Anchor, Level, Read
from engine.detectors.regions import Regions
from engine.detectors.split import DetectorSplit, build_split

LAYOUT = YoloxLayout([Level(stride, 3 * k, 3 * k + 1, 3 * k + 2) for k, stride in enumerate(STRIDES)], 80)
SCORE_MAPS = tuple(m for level in LAYOUT.levels for m in level.score_maps)


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> Path:
    path = shared_data / "weights" / "detectors" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip("needs yolox_nano.onnx in shared/data/weights/detectors beside the repository")
    return path


@cache
def network_of(path: Path, size: tuple[int, int]) -> Network:
    return normalise(load_yolox("yolox_nano", path), size)


@cache
def complete(path: Path, size: tuple[int, int]) -> tuple[DetectorSplit, ConePlan, tuple[Tensor, ...]]:
    network = network_of(path, size)
    split = build_split(network, find_cut(network, LAYOUT, 0), SCORE_MAPS)
    with torch.inference_mode():
        features = split.features(smooth_images(size))
    return split, ConePlan(split, features), features


def smooth_images(size: tuple[int, int]) -> Tensor:
    """Return two images with structure at several scales."""
    generator = torch.Generator().manual_seed(2)
    parts = [torch.rand(2, 3, size[0] // k, size[1] // k, generator=generator) for k in (4, 16, 64)]
    return sum(F.interpolate(part, size, mode="bilinear") for part in parts) * 85


def anchor_at(level: int, row: int, column: int, image: int = 0) -> AnchorReads:
    return AnchorReads(tuple(Read(m, row, column) for m in LAYOUT.levels[level].score_maps), image)


def anchors_of(level: int, size: tuple[int, int]) -> list[AnchorReads]:
    height, width = (side // STRIDES[level] for side in size)
    return [
        anchor_at(level, 0, 0),
        anchor_at(level, height - 1, width // 2, 1),
        anchor_at(level, height // 2, width - 1),
        anchor_at(level, height // 2, width // 3, 1),
    ]


def sampled_regions(regions: Regions, anchor: AnchorReads, level: int, count: int) -> list[int]:
    """Return the regions nearest to an anchor, and some others."""
    rows, columns = regions.grid
    read, stride = anchor.reads[0], STRIDES[level]
    row, column = (stride * (p + 0.5) / regions.cell_px - 0.5 for p in (read.row, read.column))
    order = sorted(range(len(regions)), key=lambda i: (i // columns - row) ** 2 + (i % columns - column) ** 2)
    return sorted({*order[: count - count // 3], *order[count :: max(1, rows * columns // count * 2)][: count // 3]})


COMPLETE = [
    *[((416, 416), 32, 9, level, mode) for level in (0, 1, 2) for mode in ("keep", "drop")],
    # Every pair of a size with a level, and of a size with a mode.
    *[((256, 256), 64, 16, level, mode) for level, mode in enumerate(("keep", "drop", "keep"))],
    *[((192, 320), 32, 9, level, mode) for level, mode in enumerate(("drop", "keep", "drop"))],
    *[((256, 256), 16, 9, level, mode) for level, mode in enumerate(("keep", "drop", "keep"))],
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "cell_px", "count", "level", "mode"), COMPLETE)
def test_log_scores_of_yolox_nano_equal_the_definition(weights, size, cell_px, count, level, mode):
    split, plan, features = complete(weights, size)
    anchors = anchors_of(level, size)
    regions = Regions(size, cell_px)
    found = plan.responses(features, anchors, cell_px, mode)
    for anchor, responses in zip(anchors, found, strict=True):
        chosen = sampled_regions(regions, anchor, level, count)
        masked = []
        for feature, stride in zip(features, split.cut.strides, strict=True):
            mask = regions.mask(stride, tuple(feature.shape[2:]))[chosen]
            own = feature[anchor.image]
            masked.append(own * (mask if mode == "keep" else ~mask)[:, None])
        with torch.inference_mode():
            maps = split.tail(*masked)
        expected = [maps[split.maps.index(r.map)][:, :, r.row, r.column] for r in anchor.reads]
        position = Anchor(level, 0, 0)
        reference = LAYOUT.log_score(expected, 2, position)
        scores = LAYOUT.log_score([response[chosen] for response in responses], 2, position)
        spread = float(reference.max() - reference.min())
        assert spread > 1e-3
        assert float((scores - reference).abs().max()) <= 1e-4 * spread


def test_macs_of_yolox_nano_keep_to_the_counted_numbers(weights):
    million = 1e6
    limits = {
        32: (6.5, 54, 502),
        16: (26, 208, 1830),
        64: (None, None, 225),
    }
    _, plan, _ = complete(weights, (416, 416))
    for cell_px, row in limits.items():
        for level, limit in enumerate(row):
            if limit is not None:
                middle = 416 // STRIDES[level] // 2
                assert plan.macs([anchor_at(level, middle, middle)], cell_px) <= 1.1 * limit * million


@pytest.mark.parametrize("level", [0, 1, 2])
def test_own_level_of_yolox_nano_equals_the_definition(weights, level):
    size = (416, 416)
    network = network_of(weights, size)
    split = build_split(network, own_level_cut(network, LAYOUT, level), LAYOUT.levels[level].score_maps)
    with torch.inference_mode():
        features = split.features(smooth_images(size))
    plan, stride = ConePlan(split, features), STRIDES[level]
    height, width = (side // stride for side in size)
    anchors = [anchor_at(level, 0, 0), anchor_at(level, height // 2, width // 2, 1)]
    for mode in ("keep", "drop"):
        for anchor, responses in zip(anchors, plan.responses(features, anchors, stride, mode), strict=True):
            chosen = sampled_regions(Regions(size, stride), anchor, level, 12)
            mask = Regions(size, stride).mask(stride, (height, width))[chosen]
            own = features[0][anchor.image]
            with torch.inference_mode():
                maps = split.tail(own * (mask if mode == "keep" else ~mask)[:, None])
            for read, response, m in zip(anchor.reads, responses, maps, strict=True):
                expected = m[:, :, read.row, read.column]
                spread = float((expected.amax(0) - expected.amin(0)).max())
                assert float((response[chosen] - expected).abs().max()) <= 1e-4 * spread

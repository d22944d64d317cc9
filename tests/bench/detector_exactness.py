"""Compares maps of boxes by the cone plan with the definition, for all detectors, levels, modes and sizes.

    uv run python -m tests.bench.detector_exactness --networks yolox_nano nanodet ssd_mobilenet

For each level, boxes at a corner, at two edges and inside, in a batch of two images: the log-scores of some regions
(those nearest to each box, and others) are compared with ``tail(masked features)``. Prints a Markdown table: the
largest difference as a fraction of the range of the log-scores, the smallest range (a flat map would agree with
anything), and which cut and plan explain the level. Networks without public files have random weights. Exits with 1
above the limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.detectors.cones.plan import ConePlan
from engine.detectors.cones.responses import AnchorReads
from engine.detectors.detector import Detector
from engine.detectors.loader import load_detector
from engine.detectors.outputs import Anchor, Target
from engine.detectors.regions import MODES, Mode, Regions
from engine.detectors.split import DetectorSplit
from engine.detectors.two_stage import RegionDetector
from pipeline.errors import ConfigError, EngineError, LayerError
from tests.bench.figures import ROOT
from tests.support.tiny_detector import with_lively_weights

WEIGHTS = ROOT.parent / "shared" / "data" / "weights" / "detectors"
LIMIT = 1e-4
"""Largest difference of a log-score, as a fraction of the range over the regions."""
SIZES = ((320, 320), (416, 416), (384, 640))
CLASS = 2
REGIONS = 9
"""Regions that are compared for each box."""


def _of_file(name: str) -> Callable[[], Detector | RegionDetector]:
    return lambda: load_detector(WEIGHTS / name)


def _random(name: str) -> Callable[[], Detector | RegionDetector]:
    def build() -> Detector | RegionDetector:
        torch.manual_seed(0)
        detector = load_detector(name, weights="random")
        if isinstance(detector, Detector):
            with_lively_weights(detector.module)
            _unsaturate(detector)
            return detector
        with_lively_weights(detector.model.roi_heads)
        (proposals,) = detector.proposals(images_of(detector.input.size, 1))
        detector.model.roi_heads.box_head.fc6.weight.div_(proposals.features.std())  # else the softmax is saturated
        return detector

    return build


def _unsaturate(detector: Detector) -> None:
    """Scale the last convolutions so that logits have a deviation of 1: saturated scores have flat maps."""
    size = detector.input.size if detector.fixed_size else SIZES[0]
    network = detector.network(size)
    with torch.inference_mode():
        maps = network.module(images_of(size, 1))
    scaled = set()
    for level in detector.layout.levels:
        for index in level.score_maps:
            target = str(network.outputs[index].target)
            if target not in scaled:
                scaled.add(target)
                conv = detector.module.get_submodule(target)
                with torch.no_grad():
                    for parameter in conv.parameters():
                        parameter.div_(maps[index].std())
    detector.networks.clear()


NETWORKS: dict[str, Callable[[], Detector | RegionDetector]] = {
    "yolox_nano": _of_file("yolox_nano.onnx"),
    "nanodet": _of_file("nanodet_plus_m_416.onnx"),
    "ssd_mobilenet": _of_file("ssd_mobilenet_v1_coco.onnx"),
    "ssdlite320": _random("ssdlite320_mobilenet_v3_large"),
    "retinanet": _random("retinanet_resnet50_fpn"),
    "fcos": _random("fcos_resnet50_fpn"),
    "faster_rcnn": _random("fasterrcnn_mobilenet_v3_large_320_fpn"),
}


@dataclass(frozen=True)
class Row:
    """The comparison of one level."""

    network: str
    size: tuple[int, int]
    level: str
    plan: str
    worst: float
    """Largest difference / range; NaN where the plan is the definition itself."""
    least_range: float

    def text(self) -> str:
        """Return the row of a Markdown table."""
        height, width = self.size
        worst = "is the definition" if self.worst != self.worst else f"{self.worst:.1e}"
        spread = "" if self.least_range != self.least_range else f"{self.least_range:.2g}"
        return f"| {self.network} | {height}x{width} | {self.level} | {self.plan} | {worst} | {spread} |"


def images_of(size: tuple[int, int], count: int = 2) -> Tensor:
    """Return images with structure at several scales, mean 0 and deviation about 1."""
    generator = torch.Generator().manual_seed(3)
    parts = [torch.rand(count, 3, size[0] // k, size[1] // k, generator=generator) for k in (4, 16, 32)]
    return sum((F.interpolate(part, size, mode="bilinear") for part in parts), torch.zeros(())) * 2.0 - 3.0


def anchors_of(detector: Detector, level: int, grid: tuple[int, int]) -> list[tuple[Target, int]]:
    """Return targets at a corner, at two edges and inside, with the image of each."""
    rows, columns = grid
    places = ((0, 0), (rows - 1, columns // 2), (rows // 2, columns - 1), (rows // 2, columns // 3))
    last = detector.layout.levels[level].anchors_per_cell - 1
    return [
        (Target(Anchor(level, row, column, number % (last + 1)), CLASS), number % 2)
        for number, (row, column) in enumerate(dict.fromkeys(places))
    ]


def compared_regions(regions: Regions, place: tuple[float, float]) -> list[int]:
    """Return the regions nearest to a place, and some others."""
    columns = regions.grid[1]
    row, column = (position / regions.cell_px - 0.5 for position in place)
    order = sorted(range(len(regions)), key=lambda i: (i // columns - row) ** 2 + (i % columns - column) ** 2)
    near = REGIONS * 2 // 3
    return sorted({*order[:near], *order[near :: max(1, len(order) // (REGIONS - near))][: REGIONS - near]})


def definition(
    split: DetectorSplit, features: Sequence[Tensor], chosen: list[int], side: int, mode: Mode
) -> list[Tensor]:
    """Return the raw maps of one image with each of some regions masked."""
    regions = Regions(split.image_size, side)
    masks = [
        regions.mask(stride, (feature.shape[2], feature.shape[3]))[chosen][:, None]
        for feature, stride in zip(features, split.cut.strides, strict=True)
    ]
    return list(split.tail(*(f * (mask if mode == "keep" else ~mask) for f, mask in zip(features, masks, strict=True))))


def compare_level(detector: Detector, level: int, size: tuple[int, int], images: Tensor) -> tuple[str, float, float]:
    """Return the plan's name, the largest difference / range, and the smallest range."""
    for kind in ("complete", "own level"):
        split = detector.split(level, "complete" if kind == "complete" else "own level", size)
        features = split.features(images)
        try:
            plan = ConePlan(split, features)
        except LayerError:
            continue
        break
    else:
        return "own level, dense", float("nan"), float("nan")
    stride = detector.layout.levels[level].stride
    side = max(64, min(split.cut.strides)) if kind == "complete" else max(stride, min(split.cut.strides))
    class_map = detector.network(size).outputs[detector.layout.levels[level].class_map]
    shape = detector.network(size).shapes[class_map.name]
    worst, least = 0.0, float("inf")
    targets = anchors_of(detector, level, (shape[2], shape[3]))
    for mode in MODES:
        anchors = [
            AnchorReads(detector.layout.reads(t.anchor), n, detector.layout.score_channels(t, shape[1]))
            for t, n in targets
        ]
        for (target, number), anchor, found in zip(
            targets, anchors, plan.responses(features, anchors, side, mode), strict=True
        ):
            step = [pixels / cells for pixels, cells in zip(size, shape[2:], strict=True)]
            place = ((target.anchor.row + 0.5) * step[0], (target.anchor.column + 0.5) * step[1])
            chosen = compared_regions(Regions(size, side), place)
            maps = definition(split, [f[number : number + 1] for f in features], chosen, side, mode)
            vectors = [maps[split.maps.index(r.map)][:, :, r.row, r.column] for r in anchor.reads]
            expected = detector.layout.log_score(vectors, target.class_index, target.anchor)
            scores = detector.layout.log_score_of_channels([vector[chosen] for vector in found], target)
            spread = float(expected.max() - expected.min())
            least = min(least, spread)
            worst = max(worst, float((scores - expected).abs().max()) / spread if spread > 0 else float("inf"))
    return f"{kind}, {side} px", worst, least


def compare_regions(name: str, detector: RegionDetector, size: tuple[int, int]) -> Row:
    """Compare the maps of some proposals of a two-stage detector with the definition."""
    worst, least = 0.0, float("inf")
    for proposals in detector.proposals(images_of(size)):
        numbers = list(range(min(len(proposals.rectangles), 4)))
        for mode in MODES:
            heat = detector.heat(proposals, numbers, [CLASS] * len(numbers), mode)
            for number, row in zip(numbers, heat, strict=True):
                features = proposals.features[number]
                kept = torch.eye(49).view(49, 1, 7, 7) * features
                scores = detector.split.tail(kept if mode == "keep" else features - kept).log_softmax(-1)[:, CLASS + 1]
                plain = proposals.log_scores[number, CLASS].exp()
                expected = scores if mode == "keep" else plain - scores.exp()
                spread = float(expected.max() - expected.min())
                least = min(least, spread)
                worst = max(worst, float((row - expected).abs().max()) / spread if spread > 0 else float("inf"))
    return Row(name, size, "regions", "7x7 region features", worst, least)


def rows_of(name: str, sizes: Sequence[tuple[int, int]]) -> Iterator[Row]:
    """Yield the comparisons of one network."""
    detector = NETWORKS[name]()
    if isinstance(detector, RegionDetector):
        yield from (compare_regions(name, detector, size) for size in sizes)
        return
    for size in (detector.input.size,) if detector.fixed_size else sizes:
        try:
            detector.network(size)
        except (ConfigError, EngineError):
            continue  # a file for its own size only
        images = images_of(size) * (60.0 if max(detector.input.std) == 1.0 else 1.0)
        for level, entry in enumerate(detector.layout.levels):
            plan, worst, least = compare_level(detector, level, size, images)
            yield Row(name, size, f"stride {entry.stride}", plan, worst, least)


def main() -> None:
    """Print the table; exit with 1 if a level exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--sizes", nargs="+", default=["x".join(map(str, size)) for size in SIZES])
    arguments = parser.parse_args()
    sizes = [(int(height), int(width)) for height, width in (size.split("x") for size in arguments.sizes)]
    print("| network | size | level | plan | largest difference / range | smallest range |\n|---|---|---|---|---|---|")
    failed = 0
    with torch.inference_mode():
        for name in arguments.networks:
            for row in rows_of(name, sizes):
                print(row.text(), flush=True)
                failed += row.worst > LIMIT or row.least_range <= 0
    if failed:
        raise SystemExit(f"{failed} levels differ from the definition by more than {LIMIT}")


if __name__ == "__main__":
    main()

"""Measures the cost of explained boxes: (plain + maps) / plain of YOLOX-nano, interleaved, one image, PyTorch on CPU.

    uv run python -m tests.bench.detector_cost --rounds 40 --threads 2

The plain pass returns the raw maps and the features of the cut; the maps are computed by the cone plan from these
features. Cases: the complete cut at 32 px for five P3 and three P4 boxes, the same with two P5 boxes, and the fast cut
(own level) for twenty boxes; each with fixed anchors, and with other anchors in each round. Before timing, some
responses of each case are compared with the definition. Beside them, on the boxes of the second case: ODAM (one plain
pass, then one backward pass of the head for each box), EigenCAM (one map for each level) and D-RISE with a few masks,
to be multiplied by the number that is wanted. Real weights if they are beside the repository, else random ones of the
same network. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.detectors.cones.plan import ConePlan
from engine.detectors.cones.responses import AnchorReads
from engine.detectors.cuts import find_cut, own_level_cut
from engine.detectors.detector import Detector
from engine.detectors.graph import Network, normalise
from engine.detectors.input_format import InputFormat
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.yolox import STRIDES, YOLOX_SIZES, Yolox
from engine.detectors.networks.yolox_weights import load_yolox
from engine.detectors.outputs import Anchor, Level, Read, Target
from engine.detectors.regions import Mode, Regions
from engine.detectors.split import Cut, DetectorSplit, build_split, with_features
from engine.evaluation.detectors.maps import METHODS, ExplainedBox, Explaining
from engine.evaluation.detectors.perturbation import ScoreReader, d_rise, perturbed_image
from tests.bench.figures import ROOT, environment, interleaved, paired_ratio, print_line, quantiles

WEIGHTS = ROOT.parent / "shared" / "data" / "weights" / "detectors" / "yolox_nano.onnx"
LAYOUT = YoloxLayout([Level(stride, 3 * k, 3 * k + 1, 3 * k + 2) for k, stride in enumerate(STRIDES)], 80)
SCORE_MAPS = tuple(index for level in LAYOUT.levels for index in level.score_maps)
ANCHOR_SETS = 16
CLASSES = (0, 1, 2, 5, 7, 9)
"""Classes of the boxes: person, bicycle, car, bus, truck and traffic light."""
CHECKED_REGIONS = 3
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """Boxes of each level, and the cut that explains them."""

    name: str
    boxes: tuple[int, int, int]
    own_level: bool = False


CASES = (
    Case("complete_5_p3_3_p4", (5, 3, 0)),
    Case("complete_5_p3_3_p4_2_p5", (5, 3, 2)),
    Case("own_level_20", (10, 7, 3), own_level=True),
)


PEERS_CASE = CASES[1]
DRISE_MASKS = 8


class Peers:
    """Other methods, on the same image and boxes."""

    def __init__(self, net: nn.Module, image: Tensor, anchors: Sequence[AnchorReads]) -> None:
        size = (image.shape[2], image.shape[3])
        labels = tuple(map(str, range(LAYOUT.classes)))
        self.detector = Detector("yolox_nano", net, LAYOUT, labels, InputFormat(size, "bgr"))
        self.reader = ScoreReader(self.detector)
        placement = self.detector.input.place(*size)
        self.changed = perturbed_image(image, self.detector.input, placement)
        self.found = Explaining(self.detector).run(image)
        splits = [self.detector.split(level, "own level") for level in range(len(LAYOUT.levels))]
        self.nodes = tuple(split.cut.nodes[0] for split in splits)
        self.plain = with_features(self.detector.network(), self.nodes)
        level_of = {level.class_map: k for k, level in enumerate(LAYOUT.levels)}
        self.targets = [
            Target(Anchor(level_of[anchor.reads[0].map], anchor.reads[0].row, anchor.reads[0].column), CLASSES[0])
            for anchor in anchors
        ]

    def _boxes(self) -> list[ExplainedBox]:
        """Run the plain pass, and return the boxes with its features."""
        _, features = self.plain(self.changed.image)
        cached = {(node,): (feature,) for node, feature in zip(self.nodes, features, strict=True)}
        image = replace(self.found, cached=cached)
        return [ExplainedBox(image, target, (0.0, 0.0, 1.0, 1.0)) for target in self.targets]

    def odam(self) -> object:
        return [METHODS["odam"](box) for box in self._boxes()]

    def eigen_cam(self) -> object:
        """Return one map for each level: it does not depend on the box."""
        first = {box.target.anchor.level: box for box in self._boxes()}
        return [METHODS["eigen-cam"](box) for box in first.values()]

    def d_rise(self) -> object:
        grids = self.found.complete_boxes.source.candidates
        scored = []
        for target in self.targets:
            offset = sum(rows * columns for rows, columns in grids.grids[: target.anchor.level])
            number = offset + target.anchor.row * grids.grids[target.anchor.level][1] + target.anchor.column
            scored.append(self.reader.scored(grids, number, target))
        return d_rise(self.reader, self.changed, scored, DRISE_MASKS)


class Measured:
    """One cut of the detector: the plain pass with its features, and the plan."""

    def __init__(self, network: Network, cut: Cut, image: Tensor) -> None:
        self.split: DetectorSplit = build_split(network, cut, SCORE_MAPS)
        self.image = image
        self.cut_features = self.split.features(image)
        self.plan = ConePlan(self.split, self.cut_features)
        self.plain = with_features(network, self.plan.nodes)
        _, self.features = self.plain(image)

    def explained(self, anchors: Sequence[AnchorReads], sides: Sequence[int], mode: Mode) -> object:
        """Return the raw maps and the responses of some anchors."""
        maps, features = self.plain(self.image)
        return maps, self.plan.windows(features, anchors, sides, mode)

    def check(self, anchors: Sequence[AnchorReads], sides: Sequence[int], mode: Mode) -> None:
        """Compare the regions next to each anchor with the definition; raise when they differ, or are flat."""
        for anchor, side, response in zip(
            anchors, sides, self.plan.windows(self.features, anchors, sides, mode), strict=True
        ):
            regions = Regions(self.split.image_size, side)
            (top, left), (height, width) = response.first, response.size
            rows = {top, top + height // 2, top + height - 1}
            chosen = [row * regions.grid[1] + left + width // 2 for row in sorted(rows)][:CHECKED_REGIONS]
            masks = [
                regions.mask(stride, (f.shape[2], f.shape[3]))[chosen][:, None]
                for f, stride in zip(self.cut_features, self.split.cut.strides, strict=True)
            ]
            maps = self.split.tail(
                *(f * (m if mode == "keep" else ~m) for f, m in zip(self.cut_features, masks, strict=True))
            )
            for read, channels, vectors in zip(anchor.reads, anchor.channels or (), response.vectors, strict=True):
                expected = maps[self.split.maps.index(read.map)][:, list(channels), read.row, read.column]
                found = response.spread(vectors)[chosen]
                spread = float((vectors.amax(0) - vectors.amin(0)).max())
                difference = float((found - expected).abs().max())
                if spread <= 0 or difference > TOLERANCE * spread:
                    message = f"{read}: responses differ by {difference:.3g} of a range of {spread:.3g}"
                    raise RuntimeError(message)


def anchors_of(case: Case, size: tuple[int, int], source: random.Random) -> tuple[list[AnchorReads], list[int]]:
    """Return random anchors of a case, and the side of their regions."""
    anchors, sides = [], []
    for level, (count, stride) in enumerate(zip(case.boxes, STRIDES, strict=True)):
        for _ in range(count):
            row, column = (source.randrange(side // stride) for side in size)
            reads = tuple(Read(m, row, column) for m in LAYOUT.levels[level].score_maps)
            target = Target(Anchor(level, row, column), source.choice(CLASSES))
            anchors.append(AnchorReads(reads, channels=LAYOUT.score_channels(target, LAYOUT.classes)))
            sides.append(stride if case.own_level else 32)
    return anchors, sides


def measure(size: tuple[int, int], mode: Mode, rounds: int) -> dict[str, object]:
    """Time all cases beside the plain pass."""
    torch.manual_seed(0)
    real = WEIGHTS.is_file()
    net = load_yolox("yolox_nano", WEIGHTS) if real else Yolox(YOLOX_SIZES["yolox_nano"], 80)
    network = normalise(net, size)
    parts = [F.interpolate(torch.rand(1, 3, size[0] // k, size[1] // k), size) for k in (4, 16, 64)]
    image = torch.stack(parts).sum(0) * 85
    source = random.Random(1)
    calls: dict[str, Callable[[int], object]] = {}
    macs = {}
    with torch.inference_mode():
        own = [own_level_cut(network, LAYOUT, level) for level in range(3)]
        heads = Cut(tuple(cut.nodes[0] for cut in own), STRIDES, "own level")
        complete, fast = Measured(network, find_cut(network, LAYOUT, 0), image), Measured(network, heads, image)
        calls["plain"] = lambda _: network.module(image)
        for case in CASES:
            measured = fast if case.own_level else complete
            sets = [anchors_of(case, size, source) for _ in range(ANCHOR_SETS)]
            measured.check(*sets[0], mode)
            for anchors, sides in sets:
                for anchor, side in zip(anchors, sides, strict=True):
                    measured.plan.warm_up(anchor.reads, side)
            macs[case.name] = sum(measured.plan.macs([a], side, mode) for a, side in zip(*sets[0], strict=True))
            calls[case.name] = lambda _, m=measured, s=sets: m.explained(*s[0], mode)
            if case is PEERS_CASE:
                peers = Peers(net, image, sets[0][0])
                calls |= {
                    "odam": lambda _, p=peers: p.odam(),
                    "eigen_cam": lambda _, p=peers: p.eigen_cam(),
                    f"d_rise_{DRISE_MASKS}_masks": lambda _, p=peers: p.d_rise(),
                }
            calls[f"{case.name}_moving"] = lambda k, m=measured, s=sets: m.explained(*s[k % ANCHOR_SETS], mode)
        seconds = interleaved(calls, rounds)
    plain = seconds.pop("plain")
    return {
        "bench": "detector_cost", "model": "yolox_nano", "weights": "real" if real else "random", "size": list(size),
        "mode": mode, "threads": torch.get_num_threads(), "rounds": rounds, "plain": quantiles(plain),
        "cases": {
            name: {
                **quantiles(times),
                **paired_ratio(times, plain),
                "multiply_adds": macs.get(name.removesuffix("_moving")),
            }
            for name, times in seconds.items()
        },
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[640, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--mode", choices=["keep", "drop"], default="keep")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    height, width = arguments.size
    print_line(**measure((height, width), arguments.mode, arguments.rounds), **environment())


if __name__ == "__main__":
    main()

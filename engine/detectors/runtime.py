"""Runs a detector for one input size: detects boxes, and computes heat maps of selected boxes.

``BoxEngine`` is the common interface for one-stage and two-stage detectors. The plain forward pass of a one-stage
detector also returns the features at its cuts, so a heat map only computes what the masks change.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from engine.detectors.cones.plan import ConePlan
from engine.detectors.cones.responses import AnchorReads, AnchorResponses
from engine.detectors.definition import dense_responses, heat_from_log_scores
from engine.detectors.detections import Detections, select
from engine.detectors.detector import Detector
from engine.detectors.heat import SMOOTHING_STRIDES, BoxHeat
from engine.detectors.outputs import Anchor, Candidates, Target
from engine.detectors.regions import Mode, Regions
from engine.detectors.split import DetectorSplit, with_features
from engine.detectors.two_stage import GRID, Proposals, RegionDetector
from pipeline.errors import ConfigError, LayerError

log = logging.getLogger(__name__)

CutKind = Literal["complete", "level"]
"""``complete``: maps that every path from the image to the box passes; ``level``: only the box's pyramid level."""
CUT_KINDS: tuple[CutKind, ...] = get_args(CutKind)

CompilePlain = Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]
"""Compiles a module for an example input."""


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """The boxes of one image, and the data from which their heat is computed."""

    detections: Detections
    source: Any
    """Data of the engine that created the object."""


class BoxEngine(ABC):
    """Detects and explains boxes in images of one size."""

    image_size: tuple[int, int]
    """Height and width of the input in pixels."""
    cut: str
    """The masked features, as text."""
    plan: str
    """How maps are computed, as text."""

    @abstractmethod
    def run(self, images: Tensor) -> list[ImageBoxes]:
        """Return the boxes of prepared images (N, 3, H, W) float32."""

    @abstractmethod
    def level(self, boxes: ImageBoxes, index: int) -> int:
        """Return the pyramid level of a box, on which the cost of its map depends."""

    def warm_up(self, cell_px: int, mode: Mode) -> dict[int, float]:  # noqa: ARG002 - not every engine needs it
        """Compute each map once, because first maps are slow; return the seconds per map, by level."""
        return {}

    @abstractmethod
    def heat(self, boxes: ImageBoxes, indices: Sequence[int], cell_px: int, mode: Mode) -> list[BoxHeat]:
        """Return the heat of some boxes of an image.

        Args:
            boxes: the image.
            indices: which of its boxes.
            cell_px: side of a region in pixels of the input.
            mode: ``keep`` or ``drop``.
        """


@dataclass(frozen=True, eq=False)
class _Level:
    """The split and the plan that explain the boxes of one pyramid level."""

    split: DetectorSplit
    plan: ConePlan | _DensePlan
    cut: CutKind
    plan_name: str


@dataclass(frozen=True, eq=False)
class _Features:
    """The result of the plain pass for one image of a batch."""

    features: dict[str, Tensor]
    """Features (1, C, h, w) at the nodes that the plans read, by node name."""
    candidates: Candidates
    log_scores: Tensor
    """Log-scores (A, K) of this image."""
    image: Tensor
    """The image (1, 3, H, W), from which levels that are prepared later compute their features."""


class OneStageEngine(BoxEngine):
    """A one-stage detector with a verified split and a plan for each level."""

    def __init__(
        self,
        detector: Detector,
        image_size: tuple[int, int],
        *,
        cut: CutKind | Sequence[str] = "complete",
        compile_plain: CompilePlain | None = None,
        prepare: bool = True,
    ) -> None:
        """Find the cuts, verify the splits, compile the forward pass, and choose the plans.

        If the tail of a level cannot be computed from cones (group norms, attention), the cut of its own level is used,
        because the dense computation at the complete cut takes minutes. If that has no cones either, or the cut is
        named, the dense computation is used. A warning is logged.

        Args:
            detector: the detector.
            image_size: height and width of the input in pixels.
            cut: which features are masked: a kind of cut, or the names of maps, which are verified to be a complete
                cut.
            compile_plain: compiles the plain pass; None: eager PyTorch.
            prepare: True: prepare all levels now; False: prepare each level when it is first explained.

        Raises:
            ConfigError: the detector does not accept this size.
            LayerError: no such cut exists.
            EngineError: a split differs from the network.
        """
        if not isinstance(cut, str):
            detector, cut = replace(detector, complete_cut=tuple(cut)), "complete"
        self.image_size, self._detector = image_size, detector
        self._network, self._layout = detector.network(image_size), detector.layout
        self._cut_kinds: tuple[CutKind, ...] = ("complete", "level") if cut == "complete" else ("level",)
        self._levels: dict[int, _Level] = {}
        levels = [self._prepared(level) for level in range(len(self._layout.levels) if prepare else 0)]
        cut_nodes = dict.fromkeys(node for level in levels for node in level.split.cut.nodes)
        self._nodes = tuple(dict.fromkeys(node for level in levels for node in level.plan.nodes))
        self.cut = ", ".join(dict.fromkeys(level.cut for level in levels)) + f" at {', '.join(cut_nodes)}"
        self.plan = ", ".join(dict.fromkeys(level.plan_name for level in levels))
        plain = _FlatOutputs(with_features(self._network, self._nodes))
        self._plain = compile_plain(plain, torch.zeros(1, 3, *image_size)) if compile_plain else plain

    def _prepared(self, number: int) -> _Level:
        """Return the split and the plan of one level; they are created at the first call."""
        if number not in self._levels:
            self._levels[number] = self._explained_level(number)
        return self._levels[number]

    def _explained_level(self, number: int) -> _Level:
        detector, size = self._detector, self.image_size
        kinds = self._cut_kinds if detector.complete_cut is None else self._cut_kinds[:1]
        for kind in kinds:
            split = detector.split(number, "complete" if kind == "complete" else "own level", size)
            with torch.inference_mode():
                features = split.features(torch.zeros(1, 3, *size))
            try:
                return _Level(split, ConePlan(split, features), kind, "cones")
            except LayerError as reason:
                instead = "by the definition, which is slow," if kind == kinds[-1] else "at its own level"
                log.warning("%s, level %d: maps are computed %s because %s", detector.name, number, instead, reason)
        return _Level(split, _DensePlan(split), kinds[-1], "dense")

    def run(self, images: Tensor) -> list[ImageBoxes]:
        """Return the boxes of each image."""
        with torch.inference_mode():
            outputs = self._plain(images)
            count = len(self._network.outputs)
            candidates = self._layout.decode(outputs[:count], self.image_size)
        found = []
        for n in range(len(images)):
            part = [output[n : n + 1] for output in outputs]
            features = dict(zip(self._nodes, part[count:], strict=True))
            detections = select(candidates, n, score=self._detector.score, iou=self._detector.iou)
            source = _Features(features, candidates, candidates.log_scores[n], images[n : n + 1])
            found.append(ImageBoxes(detections, source))
        return found

    def has_cones(self, level: int) -> bool:
        """Return whether maps of a level are computed from cones instead of one run of the tail per region."""
        return isinstance(self._prepared(level).plan, ConePlan)

    def target(self, boxes: ImageBoxes, index: int) -> Target:
        """Return the anchor and class of a box."""
        source: _Features = boxes.source
        anchor = self._layout.locate(source.candidates.grids, int(boxes.detections.anchors[index]))
        return Target(anchor, int(boxes.detections.classes[index]))

    def level(self, boxes: ImageBoxes, index: int) -> int:
        """Return the pyramid level of a box."""
        return self.target(boxes, index).anchor.level

    def heat(self, boxes: ImageBoxes, indices: Sequence[int], cell_px: int, mode: Mode) -> list[BoxHeat]:
        """Return the heat of some boxes, level by level together."""
        return self.heat_of_targets(boxes, [self.target(boxes, index) for index in indices], cell_px, mode)

    def warm_up(self, cell_px: int, mode: Mode) -> dict[int, float]:
        """Build the tables of all anchors; return the seconds of a map, by level."""
        boxes = self.run(torch.zeros(1, 3, *self.image_size))[0]
        seconds = {}
        for level, (rows, columns) in enumerate(boxes.source.candidates.grids):
            plan = self._prepared(level).plan
            if not isinstance(plan, ConePlan):
                continue  # a dense plan has nothing to prepare, and may take minutes
            target = Target(Anchor(level, rows // 2, columns // 2), 0)
            plan.warm_up(self._layout.reads(target.anchor), cell_px)
            for _ in range(2):
                started_at = time.perf_counter()
                self.heat_of_targets(boxes, [target], cell_px, mode)
                seconds[level] = time.perf_counter() - started_at
        return seconds

    def heat_of_targets(self, boxes: ImageBoxes, targets: Sequence[Target], cell_px: int, mode: Mode) -> list[BoxHeat]:
        """Return the heat of any anchors and classes, for example for a missed object."""
        source: _Features = boxes.source
        rows, columns = Regions(self.image_size, cell_px).grid
        rectangle = (0.0, 0.0, float(columns * cell_px), float(rows * cell_px))
        found: dict[int, BoxHeat] = {}
        for level in sorted({target.anchor.level for target in targets}):
            chosen = [number for number, target in enumerate(targets) if target.anchor.level == level]
            explained = self._prepared(level)
            features = self._given(source, explained.plan.nodes)
            anchors = [self._reads(targets[number]) for number in chosen]
            windows = explained.plan.windows(features, anchors, cell_px, mode)
            for number, window in zip(chosen, windows, strict=True):
                target = targets[number]
                anchor = self._layout.number(source.candidates.grids, target.anchor)
                log_score = source.log_scores[anchor, target.class_index]
                masked = self._layout.log_score_of_channels(window.vectors, target)
                values = window.spread(heat_from_log_scores(masked, log_score, mode))
                score = float(log_score.exp())
                sigma = SMOOTHING_STRIDES * self._layout.levels[level].stride / cell_px
                found[number] = BoxHeat(values.view(rows, columns), rectangle, score, mode, explained.cut, sigma)
        return [found[number] for number in range(len(targets))]

    def _given(self, source: _Features, nodes: Sequence[str]) -> list[Tensor]:
        """Return the features that a plan reads; compute them if the forward pass did not."""
        if any(node not in source.features for node in nodes):
            with torch.inference_mode():
                _, found = with_features(self._network, nodes)(source.image)
            source.features.update(zip(nodes, found, strict=True))
        return [source.features[node] for node in nodes]

    def _reads(self, target: Target) -> AnchorReads:
        """Return the vectors and channels from which the score of a target is computed."""
        class_map = self._network.outputs[self._layout.levels[target.anchor.level].class_map]
        width = self._network.shapes[class_map.name][1]
        return AnchorReads(self._layout.reads(target.anchor), channels=self._layout.score_channels(target, width))


class _DensePlan:
    """Computes maps by definition: runs the whole tail for each region."""

    def __init__(self, split: DetectorSplit) -> None:
        self._split = split
        self.nodes = split.cut.nodes

    def windows(
        self, features: Sequence[Tensor], anchors: Sequence[AnchorReads], cell_px: int, mode: Mode
    ) -> list[AnchorResponses]:
        """Return the responses of each anchor for all regions of one image."""
        grid = Regions(self._split.image_size, cell_px).grid
        found = []
        for anchor in anchors:
            responses = dense_responses(self._split, features, anchor.reads, cell_px, mode)
            if anchor.channels is not None:
                responses = [v[:, list(chosen)] for v, chosen in zip(responses, anchor.channels, strict=True)]
            vectors = [torch.cat([vector[:1], vector]) for vector in responses]  # all regions are in the window
            found.append(AnchorResponses(grid, (0, 0), grid, vectors))
        return found


class _FlatOutputs(nn.Module):
    """The forward pass with one flat tuple of outputs, as backends require."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps, features = self.module(images)
        return (*maps, *features)


class TwoStageEngine(BoxEngine):
    """A two-stage detector, which explains a box on the 7x7 features of its region."""

    def __init__(self, detector: RegionDetector, image_size: tuple[int, int]) -> None:
        """Create the engine of a detector, which runs in eager PyTorch."""
        self.image_size, self.cut, self.plan, self._detector = image_size, "region", "region features", detector

    def run(self, images: Tensor) -> list[ImageBoxes]:
        """Return the boxes of each image."""
        return [ImageBoxes(self._detector.select(found), found) for found in self._detector.proposals(images)]

    def level(self, boxes: ImageBoxes, index: int) -> int:  # noqa: ARG002 - all maps cost the same
        """Return 0."""
        return 0

    def heat(self, boxes: ImageBoxes, indices: Sequence[int], cell_px: int, mode: Mode) -> list[BoxHeat]:  # noqa: ARG002
        """Return the heat of some boxes on the grid of their regions; ``cell_px`` is ignored."""
        proposals: Proposals = boxes.source
        detections = boxes.detections
        numbers = [int(detections.anchors[index]) for index in indices]
        classes = [int(detections.classes[index]) for index in indices]
        values = self._detector.heat(proposals, numbers, classes, mode)
        found = []
        for index, number, row in zip(indices, numbers, values, strict=True):
            left, top, right, bottom = proposals.rectangles[number].tolist()
            score = float(detections.scores[index])
            found.append(BoxHeat(row.view(GRID), (left, top, right, bottom), score, mode, "region"))
        return found


def cut_choice(words: Sequence[str]) -> CutKind | tuple[str, ...]:
    """Return the cut for the words of an option: a single kind of cut, or names of maps."""
    kind = next((kind for kind in CUT_KINDS if [*words] == [kind]), None)
    return kind or tuple(words)


def build_engine(
    detector: Detector | RegionDetector,
    image_size: tuple[int, int] | None = None,
    *,
    cut: CutKind | Sequence[str] = "complete",
    compile_plain: CompilePlain | None = None,
) -> BoxEngine:
    """Create the engine of a detector; arguments and errors are those of ``OneStageEngine``.

    Raises:
        ConfigError: ``cut`` is set for a two-stage detector.
    """
    size = image_size or detector.input.size
    if isinstance(detector, Detector):
        return OneStageEngine(detector, size, cut=cut, compile_plain=compile_plain)
    if cut != "complete":
        name = cut if isinstance(cut, str) else ", ".join(cut)
        raise ConfigError(
            f"cut {name!r}: {detector.name} explains each box on the features of its region and has no cut; omit it"
        )
    return TwoStageEngine(detector, size)

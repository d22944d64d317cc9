"""Evaluates the heat maps of a detector's boxes, image by image; reads no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.detectors.detector import Detector
from engine.detectors.heat import BoxHeat
from engine.detectors.input_format import Placement
from engine.detectors.regions import Mode
from engine.evaluation import metrics
from engine.evaluation.detectors.maps import (
    BLIND,
    METHODS,
    ExplainedBox,
    Explaining,
    ImageMaps,
    PlacedMap,
    shuffled_channels,
)
from engine.evaluation.detectors.matching import BoxClasses, Match, Matching, cut_at_edges, match_boxes
from engine.evaluation.detectors.perturbation import (
    Ends,
    PerturbedImage,
    ScoredBox,
    ScoreReader,
    curve_areas,
    curve_ends,
    d_rise,
    perturbed_image,
)
from engine.evaluation.evaluator import inside
from engine.runtime.compile_cache import CompileCache
from pipeline.frames import Box, Frame, GroundTruth

D_RISE: Final = "d-rise"
SHOWN: Final = ("keep", "drop")
"""Methods whose maps are stored in the record."""


@dataclass(frozen=True)
class BoxEvaluationOptions:
    """Methods and optional measurements of an evaluation of boxes."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Names in ``METHODS``."""
    steps: int = 28
    """Number of steps of Deletion and Insertion; 0: not measured."""
    cell_px: int | None = None
    """Side of a region in pixels of the input; None: depends on the box's level."""
    boxes_per_image: int | None = None
    """Maximum number of evaluated boxes per image, evenly spaced by score; None: all."""
    backend: str = "eager"
    """Backend that computes changed images: a name or ``auto``."""
    drise_masks: int = 0
    """Number of masks of D-RISE; 0: not measured."""
    randomize: bool = True
    """True: run the check with randomised weights."""
    any_box: bool = False
    """True: match boxes regardless of their class."""
    class_map: Mapping[str, list[int]] = field(default_factory=dict)
    """Box class -> corresponding classes of the detector."""


class _Judged(NamedTuple):
    """A detected box whose maps are evaluated."""

    match: Match
    box: Box
    """The detected box in frame pixels."""
    score: float
    explained: ExplainedBox
    scored: ScoredBox
    ends: Ends | None
    """None if Deletion and Insertion are not measured."""


@dataclass(frozen=True, eq=False)
class _Scene:
    """One image of an evaluation."""

    found: ImageMaps
    randomised: ImageMaps | None
    perturbed: PerturbedImage
    placement: Placement
    region: Box
    """The rectangle of the frame that the network's input shows, in frame pixels."""


class BoxEvaluator:
    """Evaluates the maps of one detector."""

    labels: Sequence[str] = ()
    """Empty, because an image's folder does not determine the class of its boxes."""

    def __init__(self, detector: Detector, options: BoxEvaluationOptions, cache: CompileCache | None = None) -> None:
        """Build the engines of the detector, and of the same detector with shuffled weights.

        Args:
            detector: the detector.
            options: what is measured.
            cache: cache of compiled results.

        Raises:
            ConfigError: the detector does not accept its input size.
            LayerError, EngineError: the detector cannot be split.
        """
        self._detector, self._options = detector, options
        self._classes = BoxClasses(detector.labels, options.class_map, options.any_box)
        self._explaining = Explaining(detector)
        self._randomised = None
        if options.randomize:
            other = replace(detector, module=shuffled_channels(detector.module), networks={}, splits={})
            self._randomised = Explaining(other)
        self._reader = ScoreReader(detector, options.backend, cache)

    def evaluate(
        self,
        frame: Frame,
        truths: Sequence[GroundTruth] | None = None,
        mask: object = None,  # noqa: ARG002 - the signature of the other evaluator
    ) -> dict[str, Any]:
        """Return the record of an image, as JSON values: counts, and one entry per evaluated box.

        Args:
            frame: the image.
            truths: the annotated objects.
            mask: not used.
        """
        with torch.inference_mode():
            images = self._detector.input.prepare([frame.image])
            found = self._explaining.run(images)
            matching, boxes = self._match(frame, found, truths or ())
            placement = self._detector.input.place(frame.height, frame.width)
            scene = _Scene(
                found,
                None if self._randomised is None or not matching.matches else self._randomised.run(images),
                perturbed_image(images, self._detector.input, placement),
                placement,
                _region(placement, self._detector.input.size),
            )
            chosen = [self._judged(scene, boxes, match) for match in self._selected(matching)]
            entries = [self._entry(scene, judged) for judged in chosen]
            self._add_d_rise(scene, chosen, entries)
        return {
            "objects": sum(len(truth.boxes) for truth in truths or ()),
            "detections": len(boxes),
            "matched": len(matching.matches),
            "missed": matching.missed,
            "unknown": matching.unknown,
            "extra": matching.extra,
            "region": list(scene.region),
            "judged": entries,
        }

    def _match(self, frame: Frame, found: ImageMaps, truths: Sequence[GroundTruth]) -> tuple[Matching, list[Box]]:
        """Match detections to objects; return the matches and the clipped boxes in frame pixels."""
        detections = found.complete_boxes.detections
        edges = self._detector.input.place(frame.height, frame.width).to_image(detections.boxes)
        limit = torch.tensor([frame.width, frame.height] * 2, dtype=edges.dtype)
        boxes = [Box(*corners) for corners in torch.minimum(edges.clamp(min=0.0), limit).tolist()]
        objects = cut_at_edges(truths, (frame.height, frame.width))
        return match_boxes(boxes, detections.classes.tolist(), objects, self._classes), boxes

    def _selected(self, matching: Matching) -> list[Match]:
        """Return at most ``boxes_per_image`` matches, evenly spaced by score."""
        count, limit = len(matching.matches), self._options.boxes_per_image
        if limit is None or limit >= count:
            return list(matching.matches)
        return [matching.matches[k * count // limit] for k in range(limit)]

    def _judged(self, scene: _Scene, boxes: Sequence[Box], match: Match) -> _Judged:
        detections, found = scene.found.complete_boxes.detections, scene.found
        number = int(detections.anchors[match.detection])
        corners = detections.boxes[match.detection].tolist()
        target = found.complete.target(found.complete_boxes, match.detection)
        explained = ExplainedBox(found, target, tuple(corners), self._options.cell_px, seed=number)
        scored = self._reader.scored(found.complete_boxes.source.candidates, number, target)
        score = float(detections.scores[match.detection])
        ends = curve_ends(self._reader, scene.perturbed, scored) if self._options.steps else None
        return _Judged(match, boxes[match.detection], score, explained, scored, ends)

    def _entry(self, scene: _Scene, judged: _Judged) -> dict[str, Any]:
        """Return the record of one box."""
        explained, match = judged.explained, judged.match
        placed = {name: METHODS[name](explained) for name in self._options.methods}
        methods = {name: self._measure(scene, judged, made) for name, made in placed.items()}
        if scene.randomised is not None:
            other = replace(explained, image=scene.randomised)
            for name in (name for name in placed if name not in BLIND):
                methods[name]["randomised"] = _rank_correlation(placed[name], METHODS[name](other))
        return {
            "label": self._detector.labels[explained.target.class_index],
            "score": judged.score,
            "iou": match.iou,
            "stride": explained.stride,
            "cell_px": explained.cell,
            "input_size": list(explained.size),
            "box": _rounded(judged.box),
            "truth": _rounded(match.truth),
            "anchor_inside": match.truth.holds(*_in_frame(scene, explained.anchor_centre)),
            "methods": methods,
            "maps": {name: _shown(placed[name], judged.score) for name in SHOWN if name in placed},
        }

    def _measure(self, scene: _Scene, judged: _Judged, made: PlacedMap) -> dict[str, Any]:
        """Return the metrics of one map."""
        size, truth = judged.explained.size, judged.match.truth
        wide = made.on_input(size)
        (left, top), (height, width) = scene.placement.offset, scene.placement.size
        inner = (slice(top, top + height), slice(left, left + width))
        covered = inside([truth], scene.region, size)[inner]
        values = wide[inner].numpy()
        record: dict[str, Any] = {
            "flat": not float(made.values.max() - made.values.min()) > 0.0,
            "pointing": truth.holds(*_in_frame(scene, made.peak())),
            "energy": metrics.energy_inside(_energy(values, made), covered),
            "evidence": metrics.energy_inside(_evidence(values, made), covered),
        }
        if judged.ends:
            areas = curve_areas(
                self._reader, scene.perturbed, judged.scored, wide, steps=self._options.steps, ends=judged.ends
            )
            record |= areas._asdict()
        return record

    def _add_d_rise(self, scene: _Scene, chosen: Sequence[_Judged], entries: Sequence[dict[str, Any]]) -> None:
        """Measure D-RISE's maps of the chosen boxes, which share their masks."""
        count = self._options.drise_masks
        if not count or not chosen:
            return
        maps = d_rise(self._reader, scene.perturbed, [judged.scored for judged in chosen], count)
        for judged, entry, values in zip(chosen, entries, maps, strict=True):
            entry["methods"][D_RISE] = self._measure(scene, judged, PlacedMap(values, 1, absolute=False))


def _energy(values: npt.NDArray[np.float32], made: PlacedMap) -> npt.NDArray[np.float32]:
    """Return positive heat: values above 0, or above the minimum if the map is not absolute."""
    return np.clip(values, 0.0, None) if made.absolute else values - values.min()


def _evidence(values: npt.NDArray[np.float32], made: PlacedMap) -> npt.NDArray[np.float32]:
    """Return evidence: values above 0, or above the median if the map is not absolute."""
    return np.clip(values if made.absolute else values - np.median(values), 0.0, None)


def _rank_correlation(first: PlacedMap, second: PlacedMap) -> float:
    """Return the rank correlation of two maps before smoothing, which would rank places without influence."""
    values = [(made.values if made.heat is None else made.heat).numpy() for made in (first, second)]
    return metrics.rank_correlation(*values)


def _shown(made: PlacedMap, score: float) -> list[list[float]]:
    """Return a map as the stream shows it, in [0, 1]."""
    mode: Mode = "drop" if made.absolute else "keep"
    heat = BoxHeat(made.values, (0.0, 0.0, 1.0, 1.0), score, mode, "").normalised().heat
    return [[round(float(value), 4) for value in row] for row in heat]


def _region(placement: Placement, size: tuple[int, int]) -> Box:
    """Return the rectangle that the input covers, border included, in frame pixels."""
    corners = torch.tensor([0.0, 0.0, float(size[1]), float(size[0])])
    return Box(*placement.to_image(corners).tolist())


def _in_frame(scene: _Scene, point: tuple[float, float]) -> tuple[float, float]:
    """Convert a point from input pixels to frame pixels."""
    x, y, *_ = scene.placement.to_image(Tensor([*point, *point])).tolist()
    return x, y


def _rounded(box: Box) -> list[float]:
    return [round(side, 1) for side in box]

"""Answers why a detector sees an object at a place, or why it does not.

The anchor with the highest product of score and IoU with the place is explained like the anchor of a detected box: by
the score with only one region of the input (``keep``), and by the change of the score without one region (``drop``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from engine.detectors.detections import Missed, missed_anchor
from engine.detectors.detector import Detector
from engine.detectors.heat import BoxHeat
from engine.detectors.input_format import InputFormat, clip_boxes
from engine.detectors.outputs import Target
from engine.detectors.runtime import BoxEngine, CutKind, ImageBoxes, OneStageEngine
from engine.detectors.two_stage import RegionDetector
from pipeline.errors import ConfigError, unknown_name_message
from pipeline.frames import Box, BoxMap, Finding, Frame, Image
from pipeline.input_area import InputArea, input_box
from pipeline.queries import Influence, MapMode, PlaceAnswer

MAX_INFLUENCES: Final = 3
"""Maximum number of regions that an answer lists for each sign."""
MIN_INFLUENCE: Final = 0.1
"""Minimum effect of a listed region, as a fraction of the strongest effect."""
MIN_CHANGE: Final = 0.03
"""Minimum effect of a listed region, as a fraction of the score."""
SAME_BOX_IOU: Final = 0.99
"""A place counts as a detection of its class if their IoU is at least this."""
_BOTH: Final[tuple[MapMode, ...]] = ("keep", "drop")

Steps = Generator[None, None, PlaceAnswer]
"""Yields after each costly step; returns the answer."""


def class_number(labels: tuple[str, ...], name: str) -> int:
    """Return the index of a class.

    Raises:
        ConfigError: there is no class with this name.
    """
    if name not in labels:
        raise ConfigError(f"class {name!r}: {unknown_name_message('class', name, labels)}")
    return labels.index(name)


def explain_place(
    detector: Detector | RegionDetector,
    image: Image,
    box: Box,
    label: str,
    *,
    cut: CutKind | Sequence[str] = "complete",
    cell_px: int | None = None,
    area: InputArea | None = None,
) -> PlaceAnswer:
    """Explain the score of a class at a place of an image.

    Args:
        detector: a one-stage detector.
        image: uint8 RGB, (height, width, 3).
        box: the place in pixels of the image.
        label: the class.
        cut: which features are masked: a kind of cut, or the names of a complete cut.
        cell_px: side of a region in pixels of the network's input; None: the stride of the anchor's level, at least 16,
            because finer regions take seconds.
        area: the part of the image that the detector processes; None: the whole image.

    Returns:
        The answer, with maps of ``keep`` and ``drop``.

    Raises:
        ConfigError: the class is unknown, the box lies outside the image or has no area, or the detector has two
            stages.
    """
    if isinstance(detector, RegionDetector):
        raise ConfigError(
            f"{detector.name}: a two-stage detector has no region at a missed place and cannot explain it; use YOLOX"
        )
    frame = Frame(image, "image", 0, 0.0, area=area)
    check_place(detector.labels, frame, box, label)
    engine = OneStageEngine(detector, detector.input.size, cut=cut, prepare=False)
    steps = PlaceExplainer(engine, detector, detector.input, cell_px).steps(frame, box, label)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            answer: PlaceAnswer = end.value
            return answer


def check_place(labels: tuple[str, ...], frame: Frame, box: Box, label: str) -> None:
    """Check a question about a place before anything is computed.

    Raises:
        ConfigError: the class is unknown, or the box is empty or outside the detector's input area.
    """
    class_number(labels, label)
    if not (all(map(math.isfinite, box)) and box.width > 0.0 and box.height > 0.0):
        raise ConfigError(f"box {_text(box)}: has no area; width and height must be above 0")
    part = input_box(frame)
    if box.left >= part.right or box.top >= part.bottom or box.right <= part.left or box.bottom <= part.top:
        name = f"the image of {frame.width}x{frame.height} pixels"
        name = name if frame.area is None else f"the region of interest {_text(part)} in {name}"
        raise ConfigError(f"box {_text(box)}: lies outside {name}; choose a place inside")


@dataclass(frozen=True, eq=False)
class PlaceExplainer:
    """Explains places in images with the engine of a detector."""

    engine: BoxEngine
    detector: Detector | RegionDetector
    """The detector, for its labels, thresholds and layout."""
    input: InputFormat
    cell_px: int | None = None
    """Side of a region in pixels of the network's input; None = the stride of the anchor's level, at least 16."""
    needs_cones: bool = False
    """True: refuse levels without cones, whose maps take seconds to minutes."""

    def steps(self, frame: Frame, box: Box, label: str, modes: Sequence[MapMode] = _BOTH) -> Steps:
        """Explain a place step by step: the plain pass, then one map for each mode.

        A place that is a detected box is explained at the box's own anchor.

        Raises:
            ConfigError: the class is unknown, the box lies outside the image or has no area, or the detector has two
                stages and the place is no box of the frame.
        """
        check_place(self.detector.labels, frame, box, label)
        class_index = class_number(self.detector.labels, label)
        boxes = self.engine.run(self.input.prepare_frames([frame]))[0]
        placement = self.input.place_frame(frame)
        chosen = self._chosen(boxes, frame, box, class_index)
        heats = []
        for mode in modes:
            yield
            heats.append(chosen.heat(mode))
        region = Box(*placement.to_image(torch.tensor(heats[0].rectangle)).tolist())
        drop = next((heat for heat in heats if heat.mode == "drop"), None)
        named = [] if drop is None else _influences(drop, region, input_box(frame))
        least = MIN_CHANGE * chosen.found.score
        return PlaceAnswer(
            score=chosen.found.score,
            threshold=self.detector.score,
            overlap=chosen.found.iou,
            stride=chosen.stride,
            maps=tuple(_finding(heat, chosen.edges, label, class_index, region) for heat in heats),
            supporting=_strongest([(change, place) for change, place in named if change > least]),
            suppressing=_strongest([(-change, place) for change, place in named if -change > least]),
        )

    def _chosen(self, boxes: ImageBoxes, frame: Frame, box: Box, class_index: int) -> _Chosen:
        """Return the detection that matches ``box``, else the best anchor at this place."""
        index, overlap = self._detection(boxes, frame, box, class_index)
        detections, engine, detector = boxes.detections, self.engine, self.detector
        if not isinstance(engine, OneStageEngine) or isinstance(detector, RegionDetector):
            if index is None:
                raise ConfigError(
                    f"{detector.name}: a two-stage detector has no region at a place without a box and cannot explain "
                    "it; ask about a box, or use a one-stage detector such as YOLOX"
                )
            found = Missed(int(detections.anchors[index]), float(detections.scores[index]), overlap)
            return _Chosen(found, box, 0, lambda mode: engine.heat(boxes, [index], self.cell_px or 32, mode)[0])
        placement, candidates = self.input.place_frame(frame), boxes.source.candidates
        if index is None:
            place = placement.to_input(torch.tensor(tuple(box), dtype=torch.float32))
            found = missed_anchor(candidates, place, class_index)
        else:
            found = Missed(int(detections.anchors[index]), float(detections.scores[index]), overlap)
        target = Target(detector.layout.locate(candidates.grids, found.anchor), class_index)
        edges = Box(*placement.to_image(candidates.boxes[0, found.anchor]).tolist())
        stride = detector.layout.levels[target.anchor.level].stride
        if self.needs_cones and not engine.has_cones(target.anchor.level):
            raise ConfigError(
                f"{detector.name}: the layers of stride {stride} have no cones, so this map takes too long for a "
                "running stream; use `run.py why` on an image"
            )
        cell = self.cell_px or max(16, stride)
        return _Chosen(found, edges, stride, lambda mode: engine.heat_of_targets(boxes, [target], cell, mode)[0])

    def _detection(
        self, boxes: ImageBoxes, frame: Frame, box: Box, class_index: int
    ) -> tuple[int | None, float]:  # fmt: skip
        """Return the index of the detection that matches ``box``, and their IoU; (None, 0.0) if none."""
        edges = self.input.place_frame(frame).to_image(boxes.detections.boxes)
        clipped = clip_boxes(edges, input_box(frame))
        classes = boxes.detections.classes.tolist()
        overlaps = [Box(*corners).iou(box) for corners in clipped.tolist()]
        same = [index for index, number in enumerate(classes) if number == class_index]
        best = max(same, key=overlaps.__getitem__, default=None)
        return (None, 0.0) if best is None or overlaps[best] < SAME_BOX_IOU else (best, overlaps[best])


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The anchor or detection whose map explains a place."""

    found: Missed
    edges: Box
    """The anchor's box in image pixels, not clipped."""
    stride: int
    heat: Callable[[MapMode], BoxHeat]


def _text(box: Box) -> str:
    return f"{box.left:g},{box.top:g},{box.width:g},{box.height:g}"


def _finding(heat: BoxHeat, edges: Box, label: str, class_index: int, region: Box) -> Finding:
    shown = heat.normalised()
    against = None if shown.against is None else shown.against.numpy()
    box_map = BoxMap(heat.mode, heat.cut, region, shown.scale, against, shown.lowest_score)
    return Finding(label, heat.plain_score, shown.heat.numpy(), class_index, box=edges, box_map=box_map)


def _influences(drop: BoxHeat, region: Box, part: Box) -> list[tuple[float, Influence]]:
    """Return (score decrease, region) for each region inside ``part`` of the frame."""
    rows, columns = drop.values.shape
    found = []
    for number, change in enumerate(drop.values.flatten().tolist()):
        row, column = divmod(number, columns)
        left = max(region.left + column * region.width / columns, part.left)
        right = min(region.left + (column + 1) * region.width / columns, part.right)
        top = max(region.top + row * region.height / rows, part.top)
        bottom = min(region.top + (row + 1) * region.height / rows, part.bottom)
        if right > left and bottom > top:
            found.append((change, Influence(Box(left, top, right, bottom), drop.plain_score - change)))
    return found


def _strongest(named: list[tuple[float, Influence]]) -> tuple[Influence, ...]:
    """Return the regions with the largest positive effects, at most ``MAX_INFLUENCES``."""
    ranked = sorted(named, key=lambda entry: -entry[0])[:MAX_INFLUENCES]
    return tuple(place for effect, place in ranked if effect >= MIN_INFLUENCE * ranked[0][0])

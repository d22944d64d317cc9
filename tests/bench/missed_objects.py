"""Answers of ``why`` about objects that a detector misses, with a check of what they state.

    uv run python -m tests.bench.missed_objects ../shared/data/detect/traffic --model yolox_nano.onnx

Reads images with boxes (YOLO text), takes the largest annotated objects that no detection touches, at most
``--per-image`` of an image, and asks for each why it is not there. For each answer, the place that suppresses the
object most is masked in the network itself: the features of this place become zero, the whole tail runs, and the score
is decoded from all raw maps. Prints one JSON line for each object, and a summary: times are those of the answer with a
detector that is loaded and whose splits are proven.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image as Photo

from engine.detectors.detections import missed_anchor
from engine.detectors.detector import Detector
from engine.detectors.layouts import YoloxLayout
from engine.detectors.loader import load_detector
from engine.detectors.outputs import Candidates
from engine.detectors.regions import Regions
from engine.detectors.runtime import OneStageEngine
from engine.detectors.why import PlaceExplainer
from engine.evaluation.boxes import yolo_boxes
from pipeline.frames import Box, Frame, GroundTruth, Image
from pipeline.queries import Influence, PlaceAnswer
from tests.bench.figures import environment, print_line

TRAFFIC = {"0": "bicycle", "1": "bus", "2": "car", "3": "truck"}
"""COCO's names of the classes of ``detect/traffic``."""
MAX_IOU = 0.1
"""An object is missed if no detection of its class overlaps it by this IoU or more."""
MIN_SIDE_PX = 12.0
"""Smallest side of an object in pixels of the network's input."""
TOLERANCE = 1e-4
"""Largest difference of a stated score, as a fraction of the larger one."""


@dataclass(frozen=True, eq=False)
class MissedObject:
    """An annotated object that the detector does not find."""

    name: str
    image: Image
    label: str
    box: Box


def annotated(folder: Path, names: Mapping[str, str]) -> Iterator[tuple[str, Image, tuple[GroundTruth, ...]]]:
    """Yield the images of a folder with their objects."""
    import numpy as np

    for path in sorted((folder / "images").iterdir()):
        pixels = np.asarray(Photo.open(path).convert("RGB"))
        text = (folder / "labels" / f"{path.stem}.txt").read_text(encoding="utf-8")
        size = (pixels.shape[0], pixels.shape[1])
        yield path.name, pixels, yolo_boxes(text, {int(key): label for key, label in names.items()}, size, path.name)


class Questions:
    """Asks a detector about objects, and checks the answers."""

    def __init__(self, detector: Detector, cell_px: int | None = None) -> None:
        self.detector = detector
        self.engine = OneStageEngine(detector, detector.input.size)
        self.explainer = PlaceExplainer(self.engine, detector, detector.input, cell_px)

    def missed(self, name: str, image: Image, truths: Sequence[GroundTruth]) -> list[MissedObject]:
        """Return the objects of an image that are not found, the largest first."""
        found = self.engine.run(self.detector.input.prepare([image]))[0].detections
        placement = self.detector.input.place(*image.shape[:2])
        edges = placement.to_image(found.boxes).tolist()
        labels = [self.detector.labels[number] for number in found.classes.tolist()]
        objects = [
            MissedObject(name, image, truth.label, box)
            for truth in truths
            for box in truth.boxes
            if _least_side(placement.to_input(torch.tensor(tuple(box), dtype=torch.float32))) >= MIN_SIDE_PX
            and not any(
                label == truth.label and Box(*corners).iou(box) >= MAX_IOU
                for label, corners in zip(labels, edges, strict=True)
            )
        ]
        return sorted(objects, key=lambda missed: -missed.box.width * missed.box.height)

    def answer(self, missed: MissedObject) -> PlaceAnswer:
        """Return the answer about an object."""
        frame = Frame(missed.image, "bench", 0, 0.0)
        steps = self.explainer.steps(frame, missed.box, missed.label)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                answer: PlaceAnswer = end.value
                return answer

    def score_without(self, missed: MissedObject, place: Influence, stride: int) -> float:
        """Return the score with a place's features zero in the network: the definition, for a single region."""
        detector, layout = self.detector, self.detector.layout
        images = detector.input.prepare([missed.image])
        placement = detector.input.place(*missed.image.shape[:2])
        candidates = self._candidates(images)
        corners = placement.to_input(torch.tensor(tuple(missed.box), dtype=torch.float32))
        number = detector.labels.index(missed.label)
        anchor = missed_anchor(candidates, corners, number).anchor
        level = layout.locate(candidates.grids, anchor).level
        split = detector.split(level, "complete")
        regions = Regions(detector.input.size, self.explainer.cell_px or max(16, stride))
        middle = placement.to_input(torch.tensor(tuple(place.box), dtype=torch.float32)).view(2, 2).mean(0)
        column, row = (int(value) // regions.cell_px for value in middle.tolist())
        region = row * regions.grid[1] + column
        with torch.inference_mode():
            masked = [
                feature * ~regions.mask(stride_of_map, (feature.shape[2], feature.shape[3]))[region]
                for feature, stride_of_map in zip(split.features(images), split.cut.strides, strict=True)
            ]
            outputs = list(detector.network().module(images))
            for index, output in zip(split.maps, split.tail(*masked), strict=True):
                outputs[index] = output
            scores = layout.decode(tuple(outputs), detector.input.size).log_scores
        return float(scores[0, anchor, number].exp())

    def _candidates(self, images: torch.Tensor) -> Candidates:
        with torch.inference_mode():
            return self.detector.layout.decode(self.detector.network().module(images), self.detector.input.size)


def _least_side(edges: torch.Tensor) -> float:
    return float((edges[2:] - edges[:2]).min())


def measure(questions: Questions, objects: Sequence[MissedObject]) -> dict[str, object]:
    """Ask about each object, check each answer, print its line, and return the summary."""
    seconds, processor, named = [], [], 0
    for missed in objects:
        started_at, processor_at = time.perf_counter(), time.process_time()
        answer = questions.answer(missed)
        seconds.append(time.perf_counter() - started_at)
        processor.append(time.process_time() - processor_at)
        line: dict[str, object] = {
            "image": missed.name, "class": missed.label, "box": [round(value) for value in missed.box],
            "score": answer.score, "overlap": round(answer.overlap, 2), "stride": answer.stride,
            "seconds": round(seconds[-1], 3), "processor_seconds": round(processor[-1], 3),
        }  # fmt: skip
        for kind, places in (("supporting", answer.supporting), ("suppressing", answer.suppressing)):
            for place in places[:1]:
                masked = questions.score_without(missed, place, answer.stride)
                if abs(masked - place.score_without) > TOLERANCE * max(masked, place.score_without):
                    message = f"{missed.name}: states {place.score_without:.6g} without {kind} place, not {masked:.6g}"
                    raise RuntimeError(message)
                line[kind] = [round(value) for value in place.box]
                line[f"without_{kind}"] = place.score_without
        named += bool(answer.suppressing)
        print_line(**line)
    return {
        "objects": len(objects), "with_suppressing_place": named,
        "longest_seconds": round(max(seconds, default=0.0), 3),
        "longest_processor_seconds": round(max(processor, default=0.0), 3),
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the folders images and labels")
    parser.add_argument("--model", default="yolox_nano")
    parser.add_argument("--count", type=int, default=20, help="number of objects")
    parser.add_argument("--per-image", type=int, default=2, help="largest number of objects of one image")
    parser.add_argument("--cell", type=int, default=None, help="side of a place in input pixels")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = load_detector(arguments.model)
    if not isinstance(detector, Detector) or not isinstance(detector.layout, YoloxLayout):
        parser.error("give a YOLOX")
    questions = Questions(detector, arguments.cell)
    objects: list[MissedObject] = []
    for name, image, truths in annotated(arguments.folder, TRAFFIC):
        objects += questions.missed(name, image, truths)[: arguments.per_image]
    objects = sorted(objects, key=lambda missed: -missed.box.width * missed.box.height)[: arguments.count]
    if objects:
        questions.answer(objects[0])  # builds the index tables
    print_line(bench="missed_objects", **measure(questions, objects), **environment())


if __name__ == "__main__":
    main()

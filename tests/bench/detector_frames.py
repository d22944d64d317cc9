"""Frames per second of a whole run with explained boxes, beside the plain detector and beside the methods of others.

    uv run python -m tests.bench.detector_frames CLIP --frames 20 --rounds 5

Frames of a clip go from memory through the whole pipeline: detector, tracks, maps, drawing, page (without a viewer),
MP4 and JSON lines. The cases differ in the maps only: none (``plain``), ours within the default budget and without a
limit, and the maps of others for all boxes of every frame, from the features of the same plain pass. Cases are
interleaved, and each run is checked: it has all boxes, and maps where the case makes maps. Prints one JSON line: frames
per second, and the time as a multiple of the plain detector's, round by round.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from commands.wiring.sinks import open_sinks
from engine.detectors.detector import Detector
from engine.detectors.heat import BoxHeat
from engine.detectors.loader import load_detector
from engine.detectors.plain_pass import compile_plain_pass
from engine.detectors.regions import Mode, Regions
from engine.detectors.runtime import ImageBoxes, OneStageEngine, _FlatOutputs
from engine.detectors.split import with_features
from engine.evaluation.detectors.maps import METHODS, ExplainedBox, ImageMaps, PlacedMap
from engine.evaluation.detectors.perturbation import PerturbedImage, ScoreReader, border_colour, d_rise
from engine.explainers.detector import DetectorExplainer
from overlays.render.renderer import HeatRenderer
from pipeline.config_loader import validate_config
from pipeline.frames import Frame, Image
from pipeline.loop import Pipeline
from pipeline.ports import Sink
from pipeline.result import RunLimits
from stream.file import FileSource
from tests.bench.figures import ROOT, environment, interleaved, paired_ratio, print_line
from tests.support.fakes import FakeSource

WEIGHTS: Final = ROOT.parent / "shared" / "data" / "weights" / "detectors" / "yolox_nano.onnx"
PEERS: Final = ("odam", "eigen-cam", "d-rise")
FIRST_FRAME: Final = 50
"""Index of the first frame that is used."""


class Clip(FakeSource):
    """Gives some images once, as fast as they are read."""

    def __init__(self, images: Sequence[Image]) -> None:
        super().__init__(len(images), camera="clip")
        self.images = images

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        for index, image in enumerate(self.images):
            if stop.is_set():
                return
            yield Frame(image, self.camera, index, time.monotonic(), index / 25.0)


class Checked(Sink):
    """Counts the frames, boxes and maps of a run."""

    uri = "checked"

    def __init__(self) -> None:
        self.frames = self.boxes = self.maps = 0

    def needs_image(self, camera: str) -> bool:
        return False

    def put(self, overlay: Any) -> None:
        explanation = overlay.explanation
        self.frames += 1
        self.boxes += len(explanation.findings)
        made = (f.box_map for f in explanation.findings if f.box_map is not None)
        self.maps += sum(box_map.index == explanation.frame.index for box_map in made)


class PeerEngine(OneStageEngine):
    """Explains boxes by another method, from features that the compiled plain pass returns."""

    def __init__(self, detector: Detector, backend: str, method: str, masks: int) -> None:
        size = detector.input.size
        super().__init__(detector, size, cut="level", prepare=False)
        self.method, self.masks = method, masks
        splits = [detector.split(level, "own level", size) for level in range(len(detector.layout.levels))]
        self._nodes = tuple(dict.fromkeys(node for split in splits for node in split.cut.nodes))
        plain = _FlatOutputs(with_features(self._network, self._nodes))
        self._plain = compile_plain_pass(plain, torch.zeros(1, 3, *size), backend, None)
        self.reader = ScoreReader(detector, backend)

    def heat(self, boxes: ImageBoxes, indices: Sequence[int], cell_px: int, mode: Mode) -> list[BoxHeat]:
        explained = [self._explained(boxes, index) for index in indices]
        with torch.inference_mode():
            if self.method == "d-rise":
                placed = self._d_rise(boxes, indices, cell_px)
            elif self.method == "eigen-cam":  # it does not depend on the box: one map for each level
                maps = {box.target.anchor.level: box for box in explained}
                made = {level: METHODS[self.method](box) for level, box in maps.items()}
                placed = [made[box.target.anchor.level] for box in explained]
            else:
                placed = [METHODS[self.method](box) for box in explained]
        scores = boxes.detections.scores[list(indices)].tolist()
        height, width = self.image_size
        whole = (0.0, 0.0, float(width), float(height))
        return [BoxHeat(one.values, whole, score, "keep", "level") for one, score in zip(placed, scores, strict=True)]

    def _explained(self, boxes: ImageBoxes, index: int) -> ExplainedBox:
        found = {(node,): (feature,) for node, feature in boxes.source.features.items()}
        image = ImageMaps(self._detector, self, self, boxes, boxes, found)
        corners = boxes.detections.boxes[index].tolist()
        return ExplainedBox(image, self.target(boxes, index), tuple(corners))

    def _d_rise(self, boxes: ImageBoxes, indices: Sequence[int], cell_px: int) -> list[PlacedMap]:
        image = boxes.source.image
        grey = border_colour(self._detector.input).expand_as(image)
        whole = self._detector.input.place(*self.image_size)
        anchors = boxes.detections.anchors.tolist()
        candidates = boxes.source.candidates
        scored = [self.reader.scored(candidates, anchors[index], self.target(boxes, index)) for index in indices]
        maps = d_rise(self.reader, PerturbedImage(image, grey, grey, whole), scored, self.masks)
        rows, columns = Regions(self.image_size, cell_px).grid
        shrunk = torch.nn.functional.adaptive_avg_pool2d(torch.stack(maps)[:, None], (rows, columns))[:, 0]
        return [PlacedMap(values, cell_px) for values in shrunk]


def explainers(detector: Detector, backend: str, masks: int) -> dict[str, DetectorExplainer]:
    """Return the explainer of each case; they share what they can. ``plain`` makes no maps."""
    boxes = {"min_score": detector.score}
    settings = validate_config({}, "bench", {"engine": {"backend": backend, "cache": "off", "boxes": boxes}}).engine
    first = DetectorExplainer(detector, settings)
    peer = PeerEngine(first._detector, backend, PEERS[0], masks)
    budgets: dict[str, float | None] = {"plain": 0.0, "in_budget": settings.boxes.budget, "all_boxes": None}
    found = {}
    for name, budget in (budgets | dict.fromkeys(PEERS)).items():
        found[name] = explainer = copy.copy(first)
        explainer._settings = settings.boxes.model_copy(update={"budget": budget})
        explainer._scheduler = replace(first._scheduler, fraction=budget, _accounts={})
        explainer._cameras = {}
        if name in PEERS:
            explainer._engine = copy.copy(peer)
            explainer._engine.method = name
    return found


def run_once(explainer: DetectorExplainer, images: Sequence[Image]) -> Checked:
    """Run the whole pipeline once over the images, with all sinks."""
    checked = Checked()
    explainer.forget_camera("clip")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        uris = ["http://127.0.0.1:0", f"{folder}/out.mp4", f"{folder}/out.jsonl"]
        config = validate_config({}, "bench", {"sinks": uris})
        sinks = [stack.enter_context(sink) for sink in open_sinks(config.sinks, ["clip"], config.overlay)]
        limits = RunLimits(batch_size=1)
        renderer = HeatRenderer(**config.overlay.model_dump())
        pipeline = Pipeline(
            [(Clip(images), "wait")], explainer, renderer, [*sinks, checked], limits=limits, stop=threading.Event()
        )
        outcome = pipeline.run()
    if outcome.errors or checked.frames != len(images):
        raise RuntimeError(f"{checked.frames} of {len(images)} frames arrived; {outcome.errors}")
    return checked


def measure(
    detector: Detector, images: Sequence[Image], rounds: int, *, backend: str = "auto", masks: int = 16
) -> dict[str, Any]:
    """Time all cases, interleaved."""
    built = explainers(detector, backend, masks)
    counted: dict[str, Checked] = {}

    def case(name: str) -> Callable[[int], object]:
        def run(_: int) -> None:
            counted[name] = run_once(built[name], images)
            check(name, counted[name], counted["plain"])

        return run

    seconds = interleaved({name: case(name) for name in built}, rounds, warmup=1)
    plain = seconds["plain"]
    return {
        "bench": "detector_frames", "model": detector.name, "size": list(detector.input.size), "frames": len(images),
        "rounds": rounds, "boxes_per_frame": round(counted["plain"].boxes / len(images), 2), "drise_masks": masks,
        "cases": {
            name: {
                "frames_per_second": round(len(images) / sorted(times)[len(times) // 2], 3),
                "maps_per_frame": round(counted[name].maps / len(images), 2),
                **paired_ratio(times, plain),
            }
            for name, times in seconds.items()
        },
    }  # fmt: skip


def check(name: str, found: Checked, plain: Checked) -> None:
    """Refuse to time a run with other boxes than the plain detector's, or without its maps.

    Raises:
        RuntimeError: the numbers of boxes or maps are wrong.
    """
    least = {"plain": 0, "in_budget": 1}.get(name, plain.boxes)
    most = 0 if name == "plain" else plain.boxes
    if found.boxes != plain.boxes or not least <= found.maps <= most:
        raise RuntimeError(f"{name}: {found.maps} maps of {found.boxes} boxes; the plain detector has {plain.boxes}")


def images_of(clip: Path, count: int) -> list[Image]:
    """Return consecutive frames of a clip."""
    with FileSource(str(clip), camera="clip") as source:
        frames = source.frames(threading.Event())
        return [frame.image for frame in itertools.islice(frames, FIRST_FRAME, FIRST_FRAME + count)]


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = load_detector(arguments.model)
    figures = measure(detector, images_of(arguments.clip, arguments.frames), arguments.rounds, masks=arguments.masks)
    print_line(**figures, threads=arguments.threads, **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

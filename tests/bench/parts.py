"""Parts of the simulated line, counted: ``python -m tests.bench.parts [--minutes M] [--cache FILE]``.

Prints one JSON line for each case: all frames at 30 frames per second, every third (10 per second), and both without a
random tenth of the frames. The shipped detector sees each frame once; its boxes are kept (in FILE, which a later run
continues). Each case then runs them through the tracker, the counting and the whole pipeline, with one zone in the
middle of the image. The line knows which part lies where, so each counted part is found on the belt by the place of
its box in the frame that decided. ``expected``: parts whose centre passed the whole zone. ``missed`` and ``twice``:
expected parts that were counted never, or more than once. ``extra``: counted, and not expected (parts that were in the
zone at the first or the last frame are neither). ``accuracy``: expected parts with the right class;
``frame_accuracy`` is that of the single boxes in the zone.
"""

from __future__ import annotations

import argparse
import json
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from commands.wiring.detectors import build_detector_explainer
from engine.finetuning.metrics import wilson_interval
from overlays.render.renderer import HeatRenderer
from pipeline.config_loader import validate_config
from pipeline.frames import NO_HEAT, Box, Explanation, Finding, Frame, Overlay
from pipeline.loop import Pipeline
from pipeline.passages.config import ZoneConfig
from pipeline.passages.counter import Places
from pipeline.passages.monitor import PassageMonitor
from pipeline.passages.passage import Passage
from pipeline.ports import Explainer, Health, Sink, Source
from pipeline.result import RunLimits
from pipeline.tracking import BoxTracker
from stream.simulated.scene import Scene, draw_frame
from stream.simulated.schedule import OK
from tests.bench.guards import commit

SIZE = (640, 480)
FPS = 30.0
ZONE = (0.25, 0.75)
"""The zone from left to right, as fractions of the image."""


@dataclass(frozen=True, slots=True)
class Case:
    """The frames of the line that are not dropped."""

    step: int
    """1: all frames; 3: every third."""
    drop: float
    """Fraction of the others that is lost."""


CASES: Final = (Case(1, 0.0), Case(3, 0.0), Case(1, 0.1), Case(3, 0.1))
Boxes = list[tuple[str, int, float, tuple[float, float, float, float]]]
"""Label, class index, score and corners of each box of a frame."""


class BlankLine(Source):
    """Frames at the times of the line, without its images: the boxes are known."""

    uri = "line:"
    camera = "line"

    def __init__(self, frames: int, case: Case) -> None:
        """Set the number of frames of the line, and which of them are there."""
        self._count, self._case = frames, case
        self._image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames that are not dropped."""
        self.health = Health("live")
        dice = np.random.default_rng(7)
        for index in range(0, self._count, self._case.step):
            if stop.is_set():
                return
            if dice.random() >= self._case.drop:
                yield Frame(self._image, self.camera, index, time.monotonic(), pts_seconds=index / FPS)


class KnownBoxes(Explainer):
    """Follows the boxes of frames that a detector has seen before."""

    box_mode = "keep"

    def __init__(self, boxes: Sequence[Boxes]) -> None:
        """Set the boxes by frame."""
        self._boxes, self._tracker = boxes, BoxTracker()

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Return the boxes of each frame with their tracks."""
        explained = []
        for frame in frames:
            known = self._boxes[frame.index]
            tracks = self._tracker.update(
                [Box(*corners) for *_, corners in known], [index for _, index, *_ in known], frame.pts_seconds or 0.0
            )
            findings = [
                Finding(label, score, NO_HEAT, index, box=Box(*corners), track=track)
                for (label, index, score, corners), track in zip(known, tracks, strict=True)
            ]
            explained.append(Explanation(frame, tuple(findings), "none", "none"))
        return explained


def detect(explainer: Explainer, scene: Scene, frames: int, cache: Path | None = None) -> list[Boxes]:
    """Return the boxes that a detector finds in each frame of the line; ``cache`` holds those of earlier runs."""
    lines = cache.read_text(encoding="utf-8").splitlines() if cache is not None and cache.exists() else []
    known: list[Boxes] = [json.loads(line) for line in lines[:frames]]
    with ExitStack() as stack:
        file = None if cache is None else stack.enter_context(cache.open("a", encoding="utf-8"))
        for index in range(len(known), frames):
            image, _ = draw_frame(scene, index)
            [explained] = explainer.explain([Frame(image, "line", index, index / FPS, index / FPS)])
            known.append([(f.label, f.class_index, f.score, tuple(f.box or ())) for f in explained.findings])
            if file is not None:
                file.write(json.dumps(known[-1]) + "\n")
    return known


class Collected(Sink):
    """Keeps the passages, and compares the boxes of each frame with the belt."""

    uri = "collected:"
    lossless = True

    def __init__(self, scene: Scene) -> None:
        """Set the belt."""
        self._scene = scene
        self.passages: list[Passage] = []
        self.boxes = self.right = 0
        """Boxes in the zone, and those with the class of their part."""

    def put(self, overlay: Overlay) -> None:
        """Keep the passages of a frame."""
        explanation = overlay.explanation
        self.passages.extend(explanation.passages)
        for finding in explanation.findings:
            if finding.box is not None and ZONE[0] <= _centre(finding.box) / SIZE[0] <= ZONE[1]:
                slot = slot_at(self._scene, explanation.frame.index, finding.box)
                self.boxes += 1
                self.right += finding.label == self._scene.segment(slot).label

    def __enter__(self) -> Self:
        return self


def _centre(box: Box) -> float:
    return (box.left + box.right) / 2.0


def slot_at(scene: Scene, index: int, box: Box) -> int:
    """Return the slot of the belt in which the centre of a box of a frame lies."""
    return int((scene.offset(index) + _centre(box)) // scene.slot_pixels)


def expected_parts(scene: Scene, frames: int) -> tuple[dict[int, str], set[int]]:
    """Return the class by slot of parts that pass the whole zone, and the slots of those that pass a part of it."""
    expected, partial = {}, set()
    left, right = (edge * SIZE[0] for edge in ZONE)
    last = scene.offset(frames - 1)
    margin = 0.15 * SIZE[0]  # beyond: half a part, and the clear distance from the border
    for slot in range((last + SIZE[0]) // scene.slot_pixels + 1):
        segment = scene.segment(slot)
        if segment.part_box is None:
            continue
        position = slot * scene.slot_pixels + _centre(segment.part_box)
        if position > right + margin and position - last < left - margin:
            expected[slot] = segment.label
        elif position - last < right + margin:
            partial.add(slot)
    return expected, partial


def count_parts(boxes: Sequence[Boxes], scene: Scene, case: Case, *, vote: str = "mean") -> dict[str, Any]:
    """Count the parts of a belt, and compare them with it."""
    zone = ZoneConfig(
        name="station", vote=vote, polygon=[(ZONE[0], 0.0), (ZONE[1], 0.0), (ZONE[1], 1.0), (ZONE[0], 1.0)]
    )
    sink = Collected(scene)
    monitor = PassageMonitor(KnownBoxes(boxes), lambda _: Places((zone,)), ok_default={OK})
    with BlankLine(len(boxes), case) as source:
        result = Pipeline(
            [(source, "wait")], monitor, HeatRenderer(), [sink], limits=RunLimits(), stop=threading.Event()
        ).run()
    if result.errors:
        raise RuntimeError("; ".join(result.errors))
    return compared(sink, scene, len(boxes)) | {"frames": result.explained}


def compared(sink: Collected, scene: Scene, frames: int) -> dict[str, Any]:
    """Return what was counted beside what the belt holds."""
    expected, partial = expected_parts(scene, frames)
    slots = [slot_at(scene, passage.index, passage.finding.box or passage.image_box) for passage in sink.passages]
    counts = Counter(slots)
    right = sum(passage.label == expected[slot] for slot, passage in _first(slots, sink.passages) if slot in expected)
    wrong = {slot: f"{expected[slot]}, counted as {passage.label}" for slot, passage in _first(slots, sink.passages)
             if slot in expected and passage.label != expected[slot]}  # fmt: skip
    low, high = wilson_interval(right / len(expected), len(expected)) if expected else (0.0, 1.0)
    return {
        "expected": len(expected),
        "counted": sum(slot in expected for slot in counts),
        "missed": sorted(slot for slot in expected if slot not in counts),
        "twice": sorted(slot for slot, count in counts.items() if count > 1),
        "extra": sorted(slot for slot in counts if slot not in expected and slot not in partial),
        "defective": sum(label != OK for label in expected.values()),
        "accuracy": round(right / len(expected), 4) if expected else None,
        "accuracy_95": [round(low, 4), round(high, 4)],
        "wrong": wrong,
        "frame_accuracy": round(sink.right / sink.boxes, 4) if sink.boxes else None,
    }


def _first(slots: Sequence[int], passages: Sequence[Passage]) -> list[tuple[int, Passage]]:
    return list({slot: (slot, passage) for slot, passage in reversed(list(zip(slots, passages, strict=True)))}.values())


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the cases, and print each as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the line, not of this run")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--vote", default="mean")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args(arguments)
    engine = {"model": "line_detector", "backend": options.backend, "boxes": {"min_score": 0.5, "budget": 0}}
    explainer = build_detector_explainer(validate_config({"engine": engine}, "bench").engine)
    scene = Scene(size=SIZE, seed=options.seed, fps=FPS)
    boxes = detect(explainer, scene, round(60.0 * options.minutes * FPS), options.cache)
    results = []
    for case in CASES:
        given = {"seed": options.seed, "minutes": options.minutes, "fps": FPS / case.step, "drop": case.drop}
        counted = count_parts(boxes, scene, case, vote=options.vote)
        results.append({**given, "vote": options.vote, **counted, "machine": platform.machine(), "commit": commit()})
        print(json.dumps(results[-1]))
    return results


if __name__ == "__main__":
    main()

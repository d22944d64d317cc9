"""Parts of the simulated line, counted: ``python -m tests.bench.parts [--minutes M] [--fps F] [--drop FRACTION]``.

Prints one JSON line. The shipped detector reads the line as fast as it can, through the whole pipeline, with one zone
in the middle of the image. The line knows which part lies where, so each counted part is found on the belt by the place
of its box in the frame that decided. ``expected``: parts whose centre passed the whole zone. ``missed`` and ``twice``:
expected parts that were counted never, or more than once. ``extra``: counted, and not expected (parts that were in the
zone at the first or the last frame are neither). ``accuracy``: expected parts with the right class; beside it that of
single frames, of the same boxes.
"""

from __future__ import annotations

import argparse
import json
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from commands.wiring.detectors import build_detector_explainer
from engine.finetuning.metrics import wilson_interval
from overlays.render.renderer import HeatRenderer
from pipeline.config_loader import validate_config
from pipeline.frames import Box, Frame, Overlay
from pipeline.loop import Pipeline
from pipeline.passages.config import ZoneConfig
from pipeline.passages.counter import Places
from pipeline.passages.monitor import PassageMonitor
from pipeline.passages.passage import Passage
from pipeline.ports import Health, Sink, Source
from pipeline.result import RunLimits
from stream.simulated.scene import Scene, draw_frame
from stream.simulated.schedule import OK
from tests.bench.guards import commit

SIZE = (640, 480)
ZONE = (0.25, 0.75)
"""The zone from left to right, as fractions of the image."""


class LineWithDrops(Source):
    """The simulated line without a fraction of its frames, which leaves gaps in the index."""

    uri = "line:"
    camera = "line"

    def __init__(self, scene: Scene, frames: int, drop: float) -> None:
        """Set the belt, the number of frames before the drops, and the fraction to drop."""
        self._scene, self._count, self._drop = scene, frames, drop
        self._dice = np.random.default_rng(scene.seed)

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames that are not dropped."""
        self.health = Health("live")
        for index in range(self._count):
            if stop.is_set():
                return
            if self._dice.random() < self._drop:
                continue
            image, truth = draw_frame(self._scene, index)
            seconds = index / self._scene.fps
            yield Frame(image, self.camera, index, time.monotonic(), pts_seconds=seconds, truth=truth)


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


def count_parts(explainer: Any, *, seed: int, fps: float, minutes: float, drop: float, vote: str) -> dict[str, Any]:
    """Count the parts of a belt and compare them with it."""
    frames = round(60.0 * minutes * fps)
    zone = ZoneConfig(
        name="station", vote=vote, polygon=[(ZONE[0], 0.0), (ZONE[1], 0.0), (ZONE[1], 1.0), (ZONE[0], 1.0)]
    )
    sink = Collected(Scene(size=SIZE, seed=seed, fps=fps))
    explainer.forget_camera("line")
    monitor = PassageMonitor(explainer, lambda _: Places((zone,)), ok_default={OK})
    with LineWithDrops(Scene(size=SIZE, seed=seed, fps=fps), frames, drop) as source:
        result = Pipeline(
            [(source, "wait")], monitor, HeatRenderer(), [sink], limits=RunLimits(), stop=threading.Event()
        ).run()
    if result.errors:
        raise RuntimeError("; ".join(result.errors))
    return compared(sink, Scene(size=SIZE, seed=seed, fps=fps), frames) | {"frames": result.explained}


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


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the cases and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the line, not of this run")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--drop", type=float, default=0.0, help="fraction of the frames, 0 to 1")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--vote", default="mean")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args(arguments)
    engine = {"model": "line_detector", "backend": options.backend, "boxes": {"min_score": 0.5, "budget": 0}}
    explainer = build_detector_explainer(validate_config({"engine": engine}, "bench").engine)
    case = {"seed": options.seed, "fps": options.fps, "minutes": options.minutes, "drop": options.drop}
    counted = count_parts(explainer, **case, vote=options.vote)
    result = {**case, "vote": options.vote, **counted, "machine": platform.machine(), "commit": commit()}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()

"""The benchmark of parts measures what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stream.simulated.scene import Scene, parts_in_view
from tests.bench import parts

FRAMES = 300


@pytest.fixture(scope="module")
def scene():
    return Scene(size=parts.SIZE, seed=7, fps=parts.FPS)


@pytest.fixture(scope="module")
def true_boxes(scene):
    """Return what a detector without mistakes finds; the class of a part is known where its defect is in the image."""
    return [
        [(truth.label, 0, 0.9, tuple(truth.boxes[0])) for truth in parts_in_view(scene, index)]
        for index in range(FRAMES)
    ]


@pytest.mark.parametrize("case", parts.CASES)
def test_parts_bench_finds_each_part_of_a_perfect_detector_once(scene, true_boxes, case):
    result = parts.count_parts(true_boxes, scene, case)
    assert result["expected"] == result["counted"] >= 5
    assert (result["missed"], result["twice"], result["extra"], result["accuracy"]) == ([], [], [], 1.0)
    assert (result["frames"] == -(-FRAMES // case.step)) == (case.drop == 0.0)


def test_parts_bench_names_parts_that_are_missed_twice_or_wrong(scene, true_boxes):
    sink = parts.Collected(scene)
    expected, _ = parts.expected_parts(scene, FRAMES)
    first, second, third = list(expected)[:3]
    found = [[box for box in boxes if parts.slot_at(scene, index, parts.Box(*box[3])) in expected]
             for index, boxes in enumerate(true_boxes)]  # fmt: skip
    monitor = parts.PassageMonitor(
        parts.KnownBoxes(found),
        lambda _: parts.Places((parts.ZoneConfig(name="z", polygon=[(0.25, 0), (0.75, 0), (0.75, 1), (0.25, 1)]),)),
    )
    with parts.BlankLine(FRAMES, parts.Case(1, 0.0)) as source:
        for frame in source.frames(parts.threading.Event()):
            sink.passages.extend(monitor.explain([frame])[0].passages)
    by_slot = {parts.slot_at(scene, each.index, each.finding.box): each for each in sink.passages}
    sink.passages = [each for slot, each in by_slot.items() if slot != first] + [by_slot[second]]
    sink.passages[sink.passages.index(by_slot[third])] = replace(by_slot[third], label="stain?")
    result = parts.compared(sink, scene, FRAMES)
    assert (result["missed"], result["twice"]) == ([first], [second])
    assert list(result["wrong"]) == [third]


def test_parts_bench_continues_its_cache(scene, tmp_path):
    class Counting(parts.Explainer):
        calls = 0

        def explain(self, frames):
            self.calls += 1
            return [parts.Explanation(frame, (), "", "") for frame in frames]

    explainer, cache = Counting(), tmp_path / "boxes.jsonl"
    assert parts.detect(explainer, scene, 3, cache) == [[], [], []]
    assert parts.detect(explainer, scene, 5, cache) == [[]] * 5
    assert explainer.calls == 5

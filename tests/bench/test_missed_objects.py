"""The benchmark of missed objects finds them by the annotations, and refuses answers that are not true."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Photo

from pipeline.frames import Box, GroundTruth
from tests.bench import missed_objects
from tests.bench.missed_objects import Questions, annotated, measure
from tests.support.tiny_detector import calm_detector, coarse_image


@pytest.fixture(scope="module")
def questions():
    return Questions(calm_detector(0.6), 32)


@pytest.fixture(scope="module")
def missed(questions):
    truths = [
        GroundTruth("truck", (Box(20.0, 30.0, 120.0, 110.0),)),
        GroundTruth("cat", (Box(100.0, 60.0, 230.0, 150.0),)),
    ]
    objects = questions.missed("coarse.png", coarse_image(), truths)
    assert objects
    return objects


def test_detected_and_tiny_objects_are_not_missed(questions):
    image = coarse_image()
    boxes = questions.engine.run(questions.detector.input.prepare([image]))[0].detections
    edges = questions.detector.input.place(*image.shape[:2]).to_image(boxes.boxes)
    sides = [min(right - left, bottom - top) for left, top, right, bottom in edges.tolist()]
    number = int(np.argmax(sides))
    label = questions.detector.labels[int(boxes.classes[number])]
    found = GroundTruth(label, (Box(*edges[number].tolist()),))
    tiny = GroundTruth(label, (Box(3.0, 3.0, 5.0, 5.0),))
    assert questions.missed("coarse.png", image, [found, tiny]) == []


def test_missed_objects_come_with_a_checked_answer_each(questions, missed, capsys):
    summary = measure(questions, missed)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert summary["objects"] == len(lines) == len(missed)
    assert summary["with_suppressing_place"] == sum("suppressing" in line for line in lines)
    assert any("without_suppressing" in line or "without_supporting" in line for line in lines)
    for line in lines:
        if "suppressing" in line:
            assert line["without_suppressing"] > line["score"]


def test_answer_that_states_another_score_is_refused(questions, missed, monkeypatch):
    answer = questions.answer(missed[0])
    places = answer.suppressing or answer.supporting
    wrong = (replace(places[0], score_without=places[0].score_without * 1.01),)
    wrong_answer = replace(answer, suppressing=wrong, supporting=())
    monkeypatch.setattr(questions.__class__, "answer", lambda self, missed: wrong_answer)
    with pytest.raises(RuntimeError, match="without suppressing place"):
        measure(questions, missed[:1])


def test_annotated_images_have_the_boxes_of_their_label_file(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Photo.fromarray(coarse_image()).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("2 0.5 0.5 0.5 0.25\n", encoding="utf-8")
    ((name, image, (truth,)),) = annotated(tmp_path, missed_objects.TRAFFIC)
    assert (name, truth.label) == ("a.png", "car")
    height, width = image.shape[:2]
    assert tuple(truth.boxes[0]) == pytest.approx((width / 4, 3 * height / 8, 3 * width / 4, 5 * height / 8))

"""The passages that explanations carry."""

from dataclasses import replace

import pytest

from pipeline.passages.passage import PassageCursor
from tests.support.detections import detection_frame, detections
from tests.support.passages import part


def _explained(*recent, camera="road"):
    return replace(detections(detection_frame(0, camera=camera)), recent_passages=recent)


def test_cursor_returns_each_passage_once():
    cursor = PassageCursor()
    assert [p.sequence for p in cursor.take(_explained(part(1), part(2)))] == [1, 2]
    assert cursor.take(_explained(part(1), part(2))) == ()
    assert [p.sequence for p in cursor.take(_explained(part(1), part(2), part(3)))] == [3]


def test_cursor_returns_passages_of_frames_that_were_lost():
    cursor = PassageCursor()
    cursor.take(_explained(part(1)))
    assert [p.sequence for p in cursor.take(_explained(part(1), part(2), part(3), part(4)))] == [2, 3, 4]


def test_cursor_keeps_cameras_apart():
    cursor = PassageCursor()
    cursor.take(_explained(part(5), camera="a"))
    assert [p.sequence for p in cursor.take(_explained(part(1), camera="b"))] == [1]


def test_cursor_forgets_a_camera_that_left():
    cursor = PassageCursor()
    cursor.take(_explained(part(5)))
    cursor.forget("road")
    cursor.forget("other")
    assert [p.sequence for p in cursor.take(_explained(part(1)))] == [1]


def test_passage_is_read_only():
    passage = part()
    with pytest.raises(ValueError, match="read-only"):
        passage.image[0, 0] = 1
    with pytest.raises(TypeError):
        passage.shares["ok"] = 1.0  # type: ignore[index]


def test_passage_dwell_is_the_time_between_its_first_and_last_frame():
    assert part(first_seen_seconds=2.0, last_seen_seconds=3.5).dwell_seconds == pytest.approx(1.5)

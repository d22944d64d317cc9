"""A running detector answers viewers' questions: exactly, step by step, within the time for maps."""

from __future__ import annotations

import numpy as np
import pytest

from engine.detectors.runtime import build_engine
from engine.detectors.schedule import MIN_ANSWER_FRACTION, MapScheduler
from engine.detectors.why import PlaceExplainer
from engine.explainers.detector import DetectorExplainer
from pipeline.config import BoxesConfig, EngineConfig
from pipeline.errors import ConfigError, FrameGoneError
from pipeline.frames import Box, Frame
from pipeline.queries import PlaceQueries, PlaceQuery
from tests.support.tiny_detector import SIZE, calm_detector, coarse_image

STEPS = 3
"""The plain pass and two maps."""


@pytest.fixture(scope="module")
def detector():
    return calm_detector(0.6)


@pytest.fixture(scope="module")
def frames():
    image = coarse_image()
    return [Frame(np.roll(image, 9 * k, axis=1), "north", k, 100.0 + k / 10.0, k / 10.0) for k in range(3)]


@pytest.fixture(scope="module")
def running(detector):
    settings = BoxesConfig(min_score=0.6, cell_px=32, budget=0.0)
    return DetectorExplainer(detector, EngineConfig(backend="eager", boxes=settings))


@pytest.fixture
def asked(running, frames):
    """The explainer with its queries, after it has explained the frames."""
    queries = PlaceQueries()
    running.accept(queries)
    with queries.viewing():
        yield queries, running, [running.explain([frame])[0] for frame in frames]


@pytest.mark.slow
def test_answer_about_a_box_is_the_map_of_this_box_in_its_frame(detector, asked, frames):
    queries, running, explained = asked
    number, finding = next((k, f) for k, f in enumerate(explained[1].findings) if f.box.width > 5 and f.box.height > 5)
    future = queries.ask(PlaceQuery("north", 1, finding.box, finding.label, ("drop",)))
    running.idle()
    assert not future.done()
    running.idle()
    answer = future.result(timeout=0)
    assert answer.score == finding.score
    engine = build_engine(detector, SIZE)
    boxes = engine.run(detector.input.prepare([frames[1].image]))[0]
    expected = engine.heat(boxes, [number], 32, "drop")[0].normalised()
    (made,) = answer.maps
    assert float(expected.heat.std()) > 0.05
    np.testing.assert_allclose(made.heat, expected.heat.numpy(), atol=1e-4)
    np.testing.assert_allclose(made.box_map.against, expected.against.numpy(), atol=1e-4)
    assert answer.supporting[0].score_without == pytest.approx(made.box_map.lowest_score, abs=1e-5)


def test_answer_about_a_missed_object_names_places_in_the_image(asked):
    queries, running, _ = asked
    future = queries.ask(PlaceQuery("north", 0, Box(20, 30, 90, 110), "dog"))
    for _ in range(STEPS):
        running.idle()
    answer = future.result(timeout=0)
    assert [finding.box_map.mode for finding in answer.maps] == ["keep", "drop"]
    places = [*answer.supporting, *answer.suppressing]
    assert places
    for place in places:
        assert 0.0 <= place.box.left < place.box.right <= 240.0
        assert 0.0 <= place.box.top < place.box.bottom <= 180.0
    for supporting in answer.supporting:
        assert supporting.score_without < answer.score
    for suppressing in answer.suppressing:
        assert suppressing.score_without > answer.score


@pytest.mark.parametrize(
    ("index", "box", "label", "error", "message"),
    [
        (99, Box(0, 0, 50, 50), "dog", FrameGoneError, "frame 99 of north: is not kept"),
        (0, Box(0, 0, 50, 50), "dgo", ConfigError, "class 'dgo'.*Did you mean 'dog'"),
        (0, Box(300, 0, 350, 50), "dog", ConfigError, "outside the image of 240x180"),
        (0, Box(10, 10, 10, 50), "dog", ConfigError, "has no area"),
        (0, Box(10, float("nan"), 20, 50), "dog", ConfigError, "has no area"),
    ],
)
def test_wrong_question_gets_its_reason_and_the_next_one_its_answer(asked, index, box, label, error, message):
    queries, running, _ = asked
    wrong = queries.ask(PlaceQuery("north", index, box, label))
    right = queries.ask(PlaceQuery("north", 0, Box(20, 30, 90, 110), "dog", ("keep",)))
    for _ in range(STEPS):
        running.idle()
    with pytest.raises(error, match=message):
        wrong.result(timeout=0)
    assert right.result(timeout=0).maps


def test_answer_waits_for_the_time_that_frames_earn(asked, frames, monkeypatch):
    queries, running, _ = asked
    scheduler = MapScheduler(fraction=0.0)
    monkeypatch.setattr(running._answers, "_scheduler", scheduler)
    future = queries.ask(PlaceQuery("north", 0, Box(20, 30, 90, 110), "dog"))
    running.after_batch()
    owed = scheduler._answer_debt_seconds
    assert owed > 0.0
    for _ in range(5):
        running.after_batch()
    assert scheduler._answer_debt_seconds == owed, "no step is made before its time is earned"
    for _ in range(STEPS):
        scheduler.record_plain("north", 1e3)
        running.after_batch()
    assert future.done()


def test_scheduler_lets_other_maps_of_the_camera_wait_for_an_answer():
    scheduler = MapScheduler(fraction=1.0)
    scheduler.record_plain("north", 0.1)
    scheduler.record_answer("north", 0.25)
    assert not scheduler.may_answer
    scheduler.record_plain("north", 0.1)
    assert not scheduler.may_answer
    assert scheduler._accounts["north"].saved_seconds == pytest.approx(-0.05)
    scheduler.record_plain("north", 0.15)
    assert scheduler.may_answer
    small = MapScheduler(fraction=0.01)
    small.record_answer("north", 0.1)
    small.record_plain("north", 0.1 / MIN_ANSWER_FRACTION)
    assert small.may_answer
    free = MapScheduler(fraction=None)
    free.record_answer("north", 10.0)
    free.record_plain("north", 0.001)
    assert free.may_answer


def test_bug_in_an_answer_does_not_end_the_run(asked, monkeypatch, caplog):
    queries, running, _ = asked

    def broken(*_):
        raise ZeroDivisionError
        yield

    monkeypatch.setattr(PlaceExplainer, "steps", broken)
    future = queries.ask(PlaceQuery("north", 0, Box(20, 30, 90, 110), "dog"))
    running.idle()
    assert "ZeroDivisionError" in str(future.exception(timeout=0))
    assert "cannot be answered" in caplog.text

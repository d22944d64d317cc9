"""Queries to the detector: limited in number, cancellable, about frames that are stored for a short time."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import EngineError, FrameGoneError
from pipeline.frames import Box, Frame
from pipeline.queries import (
    HELD_SECONDS,
    MAX_HELD,
    RECENT_SECONDS,
    ClassQuery,
    PlaceAnswer,
    PlaceQueries,
    PlaceQuery,
    RecentFrames,
)

IMAGE = np.zeros((10, 10, 3), np.uint8)
QUERY = PlaceQuery("north", 3, Box(0, 0, 5, 5), "car")
ANSWER = PlaceAnswer(0.5, 0.3, 1.0, 8, ())


def frame(index, camera="north"):
    return Frame(IMAGE, camera, index, captured_at=0.0)


def test_recent_frames_keep_the_newest_within_the_memory_limit():
    frames = RecentFrames(max_bytes=3 * IMAGE.nbytes, clock=lambda: 0.0)
    for index in range(5):
        frames.add(frame(index))
    assert [frames.find("north", index).index for index in (2, 3, 4)] == [2, 3, 4]
    with pytest.raises(FrameGoneError, match="frame 1 of north: is not kept any more"):
        frames.find("north", 1)
    with pytest.raises(FrameGoneError, match="of south"):
        frames.find("south", 4)


def test_recent_frames_forget_old_ones():
    now = [0.0]
    frames = RecentFrames(clock=lambda: now[0])
    frames.add(frame(1))
    now[0] = RECENT_SECONDS + 0.1
    frames.add(frame(2))
    with pytest.raises(FrameGoneError):
        frames.find("north", 1)


def test_held_frame_outlives_the_recent_ones_until_released_or_expired():
    now = [0.0]
    frames = RecentFrames(max_bytes=IMAGE.nbytes, clock=lambda: now[0])
    frames.add(frame(1))
    frames.hold("viewer", "north", 1)
    frames.add(frame(2))
    assert frames.find("north", 1).index == 1
    frames.release("viewer")
    with pytest.raises(FrameGoneError):
        frames.find("north", 1)
    frames.hold("viewer", "north", 2)
    now[0] = HELD_SECONDS + 1.0
    frames.add(frame(3))
    with pytest.raises(FrameGoneError):
        frames.find("north", 2)


def test_held_frames_are_limited_and_each_viewer_holds_one():
    frames = RecentFrames(max_bytes=IMAGE.nbytes, clock=lambda: 0.0)
    for index in range(MAX_HELD + 1):
        frames.add(frame(index))
        frames.hold(index, "north", index)
    with pytest.raises(FrameGoneError):
        frames.find("north", 0)
    assert frames.find("north", 1).index == 1
    frames.hold(1, "north", MAX_HELD)
    with pytest.raises(FrameGoneError):
        frames.find("north", 1)


def test_queries_keep_frames_only_while_anyone_views():
    queries = PlaceQueries()
    queries.remember(frame(1))
    with queries.viewing():
        queries.remember(frame(2))
        with pytest.raises(FrameGoneError):
            queries.frames.find("north", 1)
        assert queries.frames.find("north", 2).index == 2
    with pytest.raises(FrameGoneError):
        queries.frames.find("north", 2)


def test_queries_are_refused_without_a_detector_and_after_the_run():
    queries = PlaceQueries()
    with pytest.raises(EngineError, match="has none that can"):
        queries.ask(QUERY)
    queries.open(("car",), "classes")
    with pytest.raises(EngineError, match="only questions about a class"):
        queries.ask(QUERY)
    queries.open(("car",))
    with pytest.raises(EngineError, match="only questions about a place of a frame"):
        queries.ask(ClassQuery("north", "car"))
    waiting = queries.ask(QUERY)
    queries.close()
    with pytest.raises(EngineError, match="the run has ended"):
        waiting.result(timeout=0)
    with pytest.raises(EngineError, match="the run has ended"):
        queries.ask(QUERY)


def test_queries_are_taken_in_order_without_the_cancelled_ones():
    queries = PlaceQueries(max_waiting=3)
    queries.open(("car",))
    first, second, third = (queries.ask(QUERY) for _ in range(3))
    with pytest.raises(EngineError, match="3 questions wait"):
        queries.ask(QUERY)
    first.cancel()
    query, future = queries.take()
    assert (query, future) == (QUERY, second)
    assert not second.cancel(), "a question that is being answered is not cancelled any more"
    second.set_result(ANSWER)
    assert queries.take()[1] is third
    assert queries.take() is None

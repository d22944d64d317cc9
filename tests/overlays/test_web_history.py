"""The last minute of the cameras, as a new viewer gets it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

from overlays.web.history import HISTORY_SECONDS, MAX_POINTS, STEP_SECONDS, History, Point
from overlays.web.status import StatusBoard
from pipeline.frames import Overlay
from pipeline.guards.state import GuardState
from pipeline.result import RunResult
from pipeline.stats import RunStats
from tests.overlays.conftest import explain
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import connect_viewer, page


def test_history_keeps_a_minute_in_bounded_memory_and_each_change_of_an_alarm():
    history = History()
    for index in range(100 * 30):
        history.record("line", Point(index / 30, 0.5, is_firing=False))
    assert len(history._points["line"]) <= MAX_POINTS
    history.record("line", Point(100.01, 0.5, is_firing=True))
    history.record("line", Point(100.02, 0.4, is_firing=True))
    history.record("line", Point(100.03, 0.5, is_firing=False))
    points = history.records(now=101.0, unix=1001.0)["line"]
    assert points[-2:] == [[1000.01, 0.5, 1], [1000.03, 0.5, 0]]
    assert points[0][0] >= 1001.0 - HISTORY_SECONDS
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(points[:-2])]
    assert min(gaps) >= STEP_SECONDS - 0.011
    history.forget("line")
    assert history.records(101.0, 1001.0) == {}


def test_viewer_gets_the_past_on_connecting(overlaid):
    with page() as sink:
        sink.put(overlaid(score=0.25))
        alarmed = explain(score=0.75, index=1)
        guard = GuardState("on-the-part", True, 1.0, "heat_inside(part) >= 0.6, but is 0.1", 1)
        sink.put(Overlay(alarmed.frame.image, replace(alarmed, guards=(guard,))))
        with connect_viewer(sink) as link:
            hello = json.loads(link.recv(timeout=LIMIT_SECONDS))
    assert [point[1:] for point in hello["history"]["line"]] == [[0.25, 0], [0.75, 1]]


def test_status_counts_the_time_of_building_until_the_run_or_a_frame(overlaid):
    now = 10.0
    board = StatusBoard(["line"], clock=lambda: now)
    now = 22.0
    assert board.building_seconds == 12.0
    board.update(overlaid())
    assert board.building_seconds is None
    other = StatusBoard(["line"], clock=lambda: now)
    other.outcome = RunResult(RunStats(["line"]), [], [])
    assert other.building_seconds is None

"""Changes that a page makes to a running camera are checked, applied and written to the YAML with its comments."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import yaml

from commands.wiring.kinds import load_config
from commands.wiring.rule_check import MAX_REGIONS
from pipeline.errors import ConfigError, SetupConflictError
from pipeline.frames import Explanation, Finding, Frame
from tests.support.camera_setup import CORNER, TEXT, made, with_corner


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.yaml"


def nested(depth):
    return [] if depth == 0 else [nested(depth - 1)]


def test_setup_shows_what_concerns_a_camera_and_no_address(path):
    setup, _ = made(path)
    left, right = setup.read("left"), setup.read("right")
    assert [region["name"] for region in left["regions"]] == ["belt"]
    assert [(region["index"], region["name"]) for region in right["regions"]] == [(0, "belt"), (1, "dock")]
    assert (left["file"], left["written"], left["boxes"], left["can_undo"]) == ("run.yaml", True, False, False)
    assert "secret" not in json.dumps([left, right])
    with pytest.raises(ConfigError, match="it has left, right"):
        setup.read("middle")


def test_change_is_applied_and_written_with_comments_and_permissions(path):
    setup, run = made(path)
    path.chmod(0o640)
    after = setup.change("left", with_corner(setup.read("left")))
    text = path.read_text()
    for comment in (
        "# two cameras of the hall",
        "# the left one",
        "# where parts pass",
        "# of the evidence",
        "# the end",
    ):
        assert comment in text
    assert path.stat().st_mode & 0o777 == 0o640
    assert run.applied == [load_config(yaml.safe_load(text), "run.yaml")]
    assert run.applied[0].sources[0].roi == [0.1, 0.1, 0.5, 0.5]
    assert run.applied[0].guards.rules[0].rule == "heat_inside(belt) >= 0.7"
    assert [region["name"] for region in after["regions"]] == ["belt", "corner"]
    assert after["can_undo"]
    before = setup.undo("left", after["revision"])
    assert path.read_text() == TEXT
    assert before["revision"] == setup.read("right")["revision"]
    with pytest.raises(SetupConflictError, match="the last change cannot be undone"):
        setup.undo("left", before["revision"])


def test_wrong_change_is_neither_applied_nor_written(path):
    setup, run = made(path)
    shown = setup.read("left")
    for wrong, why in (
        ({"rules": [{"name": "x", "rule": "heat_inside(bolt) > 0.5"}]}, "Did you mean 'belt'"),
        ({"regions": []}, "unknown region"),
        ({"roi": [0.5, 0.5, 0.9, 0.9]}, "ends outside the frame"),
        ({"rules": [{"name": "x", "rule": "score > 0.5", "index": 7}]}, "not one of the camera's entries"),
        ({"rules": "x"}, "give a list"),
        ({"regions": [{"index": [], "name": "x"}]}, "not one of the camera's entries"),
        ({"regions": [{"index": 0.0, "name": "x"}]}, "not one of the camera's entries"),
        ({"regions": [{"index": 0, "name": "x"}, {"index": 0, "name": "y"}]}, "two entries have the same index"),
        ({"roi": nested(900)}, "levels deep"),
        ({"mask": [CORNER] * 5000}, "more than 20000 values"),
    ):
        with pytest.raises(ConfigError, match=why):
            setup.change("left", {"revision": shown["revision"], **wrong})
    assert run.applied == []
    run.failed = ["left"]
    with pytest.raises(ConfigError, match="cannot be opened"):
        setup.change("left", with_corner(shown))
    assert run.applied[-1].guards.rules[0].rule == "heat_inside(belt) >= 0.6", "the former configuration runs again"
    assert path.read_text() == TEXT


def test_change_without_a_file_is_applied_and_shown():
    setup, run = made(None, "sources: ['line:']\nsinks: [out.jsonl]\n")
    shown = setup.read("line")
    assert (shown["file"], shown["written"], shown["yaml"]) == (None, False, "")
    after = setup.change("line", {"revision": shown["revision"], "mask": [CORNER],
                                  "rules": [{"name": "sure", "rule": "score >= 0.5"}]})  # fmt: skip
    assert yaml.safe_load(after["yaml"]) == {
        "sources": [{"name": "line", "mask": [CORNER]}],
        "guards": {"rules": [{"name": "sure", "rule": "score >= 0.5"}]},
    }
    assert len(run.applied) == 1
    again = {"revision": after["revision"], "rules": after["rules"], "mask": []}
    assert setup.change("line", again)["mask"] == []


def test_cameras_of_the_command_line_keep_their_areas(path):
    setup, run = made(path, has_sources=False)
    shown = setup.read("left")
    assert "--source" in shown["editable"]["places"]
    with pytest.raises(ConfigError, match="--source"):
        setup.change("left", {"revision": shown["revision"], "roi": [0, 0, 0.5, 0.5]})
    setup.change("left", {"revision": shown["revision"], "rules": []})
    assert run.applied[0].guards.rules == []


def test_rule_is_checked_with_the_position_of_a_mistake_and_tried_on_the_past(path):
    setup, _ = made(path)
    history, began_at = setup._bound.history, time.monotonic() - 4.0
    for index in range(40):
        heat = np.zeros((4, 4), np.float32)
        heat[0, 0 if 10 <= index < 20 else 3] = 1.0
        frame = Frame(np.zeros((40, 40, 3), np.uint8), "left", index, began_at + index / 10)
        history.record(Explanation(frame, (Finding("scratch", 0.9, heat, 1),), "m", "l"))
    regions = [{"name": "corner", "polygon": CORNER}]
    for rule, position, why in (
        ("heat_insid(corner) > 0.5", 0, "Did you mean 'heat_inside'"),
        ("heat_inside(cornr) > 0.5", 12, "Did you mean 'corner'"),
        ("score > 0.5 when label=scrach", 23, "Did you mean 'scratch'"),
        ("boxes > 1", 0, "only for the boxes"),
        ("score > 0.5 and", 15, "the end"),
        ("score > 1", None, "is never true"),
    ):
        found = setup.check("left", {"rule": rule}, regions)
        assert (found["position"], why in found["error"]) == (position, True), found
    assert setup.check("left", {"rule": "score > 0.5", "hold_seconds": -1}, regions)["error"].startswith("hold_seconds")
    assert "at most" in setup.check("left", {"rule": "score > 0.5"}, regions * (MAX_REGIONS + 1))["error"]
    past = setup.check(
        "left", {"rule": "heat_inside(corner) < 0.3", "hold_seconds": 0.2, "clear_seconds": 0.2}, regions
    )
    assert (past["error"], past["count"], past["frames"]) == (None, 1, 40)
    [[start, end, text]] = past["spans"]
    assert end - start == pytest.approx(1.0, abs=0.02)
    assert text == "heat_inside(corner) < 0.3, but is 0.50"

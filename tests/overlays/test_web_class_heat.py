"""The heat map of any class on request: a viewer's own view, which is not part of the stream."""

from __future__ import annotations

import base64
import json
import time

import numpy as np
import pytest
from websockets.sync.client import connect

from overlays.render.jpeg import decode_image
from overlays.web import viewer_queries
from pipeline.frames import Finding
from pipeline.queries import ClassAnswer, ClassQuery, PlaceQueries
from tests.support.limits import LIMIT_SECONDS
from tests.support.page_feed import numbered, serve_until, shade, still_page

HEAT = np.zeros((4, 6), np.float32)
HEAT[3, 5] = 1.0
CORNER, MIDDLE = (
    f"[...document.querySelector('.view canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data]"
    for x, y in ((146, 105), (80, 40))
)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(viewer_queries, "MIN_INTERVAL_SECONDS", 0.0)


@pytest.fixture
def queries():
    made = PlaceQueries()
    made.open(("part 1", "truck"), "classes")
    return made


def answer(queries, frame):
    """Answer the next question, as the engine does between two batches."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (taken := queries.take()) is None:
        assert time.monotonic() < deadline, "no question came"
        time.sleep(0.005)
    query, future = taken
    future.set_result(ClassAnswer(Finding(query.label, 0.03, HEAT, 1), frame))
    return query


def test_viewer_gets_the_classes_and_the_heat_of_one(queries):
    frame = numbered(1).explanation.frame
    with still_page("line", queries=queries) as sink:
        sink.put(numbered(1))
        with connect(sink.endpoint.replace("http", "ws") + "/frames", compression=None, proxy=None) as link:

            def reply():
                while True:
                    received = link.recv(timeout=LIMIT_SECONDS)
                    if isinstance(received, str) and (message := json.loads(received))["kind"] == "answer":
                        return message

            link.send('{"id": 1, "classes": true}')
            assert reply()["labels"] == ["part 1", "truck"]
            link.send('{"id": 2, "heat": {"camera": "line", "label": "truck"}}')
            assert answer(queries, frame) == ClassQuery("line", "truck")
            got = reply()
            assert (got["label"], got["score"], got["grid"], got["index"]) == ("truck", 0.03, [4, 6], 1)
            assert got["age_seconds"] >= 0.0
            image = decode_image(base64.b64decode(got["jpeg"]))
            assert (image.shape, abs(int(image.mean()) - shade(1)) < 3) == ((120, 160, 3), True), (
                "the image of the frame"
            )
            for wrong, text in (({"camera": "line"}, "heat.label"), ({"camera": "x", "label": "truck"}, "give one of")):
                link.send(json.dumps({"id": 3, "heat": wrong}))
                assert text in reply()["error"]


@pytest.mark.browser
def test_page_shows_the_heat_of_the_chosen_class_and_names_it(tab, queries):
    with still_page("line", queries=queries) as sink:
        page = tab(sink.endpoint)
        page.locator(".card").wait_for()
        sink.put(numbered(1))
        serve_until(sink, page, ".class-heat")
        cold = page.evaluate(CORNER)
        page.locator(".class-heat input").fill("truck")
        page.keyboard.press("Enter")
        assert answer(queries, numbered(9).explanation.frame) == ClassQuery("line", "truck")
        page.locator(".class-heat p", has_text="Heat for “truck”, score 3 %, in the image shown").wait_for()
        assert page.evaluate(CORNER) != cold
        assert abs(page.evaluate(MIDDLE)[0] - shade(9)) < 4, "the image that the heat belongs to"
        assert page.locator(".label").inner_text() == "part 1", "the verdict stays"
        page.locator(".class-heat input").fill("")
        page.keyboard.press("Enter")
        page.locator(".class-heat .soft", has_text="Heat").wait_for(state="hidden")
        assert page.evaluate(CORNER) == cold

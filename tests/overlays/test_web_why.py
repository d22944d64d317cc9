"""Questions of the page's viewers to a detector: one at a time, about the frame that is seen, answered in words."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
from websockets.sync.client import connect

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from overlays.web import viewer_queries
from overlays.web.viewer_queries import read_query
from pipeline.errors import ConfigError, FrameGoneError, WireError
from pipeline.frames import Box, Overlay
from pipeline.queries import Influence, PlaceAnswer, PlaceQueries, PlaceQuery
from pipeline.settings import SinkContext
from tests.support.boxes import HEIGHT, WIDTH, box, explained_boxes, frame, hot_cell
from tests.support.browser import console_checked_tabs
from tests.support.limits import LIMIT_SECONDS
from tests.support.page_feed import serve_until, settled_box, still_page

GREY = 90
SHOWN = box(100, 80, track=4, label="car", heat=hot_cell(2, 3))
KEEP = box(300, 200, label="truck", score=0.2, heat=hot_cell(6, 9))
DROP = box(300, 200, label="truck", score=0.2, heat=hot_cell(5, 8), mode="drop", against=hot_cell(1, 14))
AGAINST, FOR = Box(560, 40, 600, 80), Box(320, 200, 360, 240)
ANSWER = PlaceAnswer(
    0.2, 0.3, 0.5, 16, (KEEP, DROP), supporting=(Influence(FOR, 0.05),), suppressing=(Influence(AGAINST, 0.49),)
)
WHY = {"camera": "north", "index": 0, "box": [300, 200, 360, 240], "label": "truck"}


class Detector:
    """Answers in the test's own thread what a page asks, as the engine does between two batches."""

    def __init__(self):
        self.queries = PlaceQueries()
        self.queries.open(("car", "truck", "person"))

    def taken(self) -> tuple[PlaceQuery, Future[PlaceAnswer]]:
        deadline = time.monotonic() + LIMIT_SECONDS
        while (taken := self.queries.take()) is None:
            assert time.monotonic() < deadline, "no question came"
            time.sleep(0.005)
        return taken

    def answer(self, answer: PlaceAnswer | Exception) -> PlaceQuery:
        query, future = self.taken()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return query


@contextmanager
def served(detector, **options):
    with WebSink(WebSettings(uri="http://127.0.0.1:0", **options), SinkContext(("north",), queries=detector)) as sink:
        yield sink


class Viewer:
    """A program that asks over the WebSocket."""

    def __init__(self, link):
        self.link = link
        self.hello = json.loads(link.recv(timeout=LIMIT_SECONDS))

    def ask(self, **message):
        self.link.send(json.dumps(message))

    def answer(self):
        while True:
            received = self.link.recv(timeout=LIMIT_SECONDS)
            if isinstance(received, str) and (message := json.loads(received))["kind"] == "answer":
                return message


@contextmanager
def viewing(sink):
    with connect(sink.endpoint.replace("http", "ws") + "/frames", compression=None, proxy=None) as link:
        yield Viewer(link)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(viewer_queries, "MIN_INTERVAL_SECONDS", 0.0)


def test_question_reaches_the_detector_and_its_answer_the_viewer():
    detector = Detector()
    with served(detector.queries) as sink, viewing(sink) as viewer:
        assert viewer.hello["why"] is True
        viewer.ask(id=7, why=WHY)
        query = detector.answer(ANSWER)
        assert query == PlaceQuery("north", 0, Box(300, 200, 360, 240), "truck", ("keep", "drop"))
        answer = viewer.answer()
    assert (answer["id"], answer["score"], answer["threshold"]) == (7, 0.2, 0.3)
    assert [finding["map"]["mode"] for finding in answer["maps"]] == ["keep", "drop"]
    assert answer["suppressing"] == [{"box": list(AGAINST), "score_without": 0.49}]


def test_second_question_of_a_viewer_is_refused_while_the_first_waits_and_another_viewer_is_served():
    detector = Detector()
    with served(detector.queries) as sink, viewing(sink) as first, viewing(sink) as second:
        first.ask(id=1, why=WHY)
        taken = detector.taken()
        first.ask(id=2, why=WHY)
        assert "your last question is being answered" in first.answer()["error"]
        second.ask(id=1, why=WHY)
        detector.answer(ANSWER)
        assert second.answer()["score"] == 0.2
        taken[1].set_result(replace(ANSWER, score=0.25))
        assert first.answer()["score"] == 0.25


def test_questions_in_quick_succession_are_refused(monkeypatch):
    monkeypatch.setattr(viewer_queries, "MIN_INTERVAL_SECONDS", 3600.0)
    detector = Detector()
    with served(detector.queries) as sink, viewing(sink) as viewer:
        viewer.ask(id=1, why=WHY)
        detector.answer(ANSWER)
        viewer.answer()
        viewer.ask(id=2, why=WHY)
        assert "may ask one question every 3600 s" in viewer.answer()["error"]


def test_late_answer_becomes_an_error_and_the_question_is_cancelled(monkeypatch):
    monkeypatch.setattr(viewer_queries, "ANSWER_SECONDS", 0.05)
    detector = Detector()
    with served(detector.queries) as sink, viewing(sink) as viewer:
        viewer.ask(id=1, why=WHY)
        assert "did not answer within 0.05 s" in viewer.answer()["error"]
        assert detector.queries.take() is None


def test_error_of_the_detector_is_passed_on_in_its_words():
    detector = Detector()
    with served(detector.queries) as sink, viewing(sink) as viewer:
        for error, gone in (
            (ConfigError("class 'trck': Did you mean 'truck'?"), False),
            (FrameGoneError("gone"), True),
        ):
            viewer.ask(id=1, why=WHY)
            detector.answer(error)
            answer = viewer.answer()
            assert (answer["error"], answer["gone"]) == (str(error), gone)


def test_viewer_learns_that_there_is_no_detector():
    for queries, text in ((None, "another run"), (PlaceQueries(), "has none that can")):
        with served(queries) as sink, viewing(sink) as viewer:
            assert viewer.hello["why"] is (queries is not None)
            viewer.ask(id=1, why=WHY)
            assert text in viewer.answer()["error"]
    with served(Detector().queries, why=False) as sink, viewing(sink) as viewer:
        assert viewer.hello["why"] is False


def test_frames_are_kept_while_a_viewer_is_connected_and_a_held_one_until_it_leaves(wait_until):
    detector = Detector()
    kept = detector.queries.frames
    with served(detector.queries) as sink:
        with viewing(sink) as viewer:
            wait_until(lambda: detector.queries._viewers == 1)
            detector.queries.remember(frame())
            viewer.ask(id=1, hold={"camera": "north", "index": 0})
            assert viewer.answer()["labels"] == ["car", "truck", "person"]
            viewer.ask(id=2, hold={"camera": "north", "index": 1})
            answer = viewer.answer()
            assert answer["gone"]
            assert "frame 1 of north" in answer["error"]
        wait_until(lambda: detector.queries._viewers == 0)
        with pytest.raises(FrameGoneError):
            kept.find("north", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": "south"}, "camera 'south': is not a camera of this run; give one of north"),
        ({"camera": ["north"]}, "is not a camera"),
        ({"index": "0"}, "index"),
        ({"box": [1, 2, 3]}, "why.box"),
        ({"box": [1, 2, 3, "4"]}, "why.box"),
        ({"box": [1, 2, 3, 10**400]}, "why.box"),
        ({"box": [1, 2, 3, float("nan")]}, "why.box"),
        ({"label": ""}, "why.label"),
        ({"modes": ["keep", "keep"]}, "why.modes"),
        ({"modes": ["kep"]}, "why.modes"),
        ({"modes": [["keep"]]}, "why.modes"),
    ],
)
def test_read_query_names_the_wrong_value(change, message):
    with pytest.raises(WireError, match=message):
        read_query(WHY | change, {"north": None})


@contextmanager
def page_of(chromium, *findings, **looks):
    """Yield a page that shows boxes, its detector, and functions that put and that show the next frame."""
    detector = Detector()
    with console_checked_tabs(chromium) as tab, still_page("north", queries=detector.queries) as sink:
        page = tab(sink.endpoint, **looks)
        page.locator("#link", has_text="building").wait_for()  # frames are kept for a viewer that is connected
        numbers = iter(range(1000))

        def put(*changed):
            made = explained_boxes(*changed, camera="north", index=next(numbers), captured_at=time.monotonic())
            detector.queries.remember(made.frame)
            sink.put(Overlay(made.frame.image, made))
            sink.idle()
            return made.frame.index

        def show(*changed):
            serve_until(sink, page, f'.card[data-index="{put(*changed)}"]')

        deadline = time.monotonic() + LIMIT_SECONDS
        while not detector.queries.is_viewed:  # frames are kept from then on
            assert time.monotonic() < deadline, "the page does not connect"
            page.wait_for_timeout(10)
        show(*findings)
        yield page, detector, put, show


def pixel(page, x, y):
    return page.evaluate(
        "([x, y]) => [...document.querySelector('.view canvas').getContext('2d').getImageData(x, y, 1, 1).data]", [x, y]
    )


def at(page, x, y):
    """Return the position of a pixel of the frame in the tab."""
    area = page.locator(".view canvas").bounding_box()
    scale = min(area["width"] / WIDTH, area["height"] / HEIGHT)
    return (
        area["x"] + area["width"] / 2 + scale * (x - WIDTH / 2),
        area["y"] + area["height"] / 2 + scale * (y - HEIGHT / 2),
    )


def draw(page, left, top, right, bottom):
    settled_box(page)
    page.mouse.move(*at(page, left, top))
    page.mouse.down()
    page.mouse.move(*at(page, right, bottom), steps=3)
    page.mouse.up()


@pytest.mark.browser
def test_drawn_box_is_explained_in_the_frame_that_the_viewer_sees(chromium):
    with page_of(chromium, SHOWN) as (page, detector, put, show):
        page.get_by_role("button", name="Ask about a place").click()
        assert page.locator(".held").inner_text() == "held: frame 0"
        page.locator("datalist option").nth(2).wait_for(state="attached")
        put(SHOWN)
        draw(page, 300, 200, 360, 240)
        page.locator(".why-class:focus").fill("truck")
        page.keyboard.press("Enter")
        query = detector.answer(ANSWER)
        assert query.index == 0
        assert query.label == "truck"
        assert query.box == pytest.approx(Box(300, 200, 360, 240), abs=1.5)
        page.locator(".why-answer").wait_for()
        seen = page.locator(".why-answer").inner_text()
        for text in ("truck: 0.20, too low for a box (from 0.30)", "against it: 0.20 → 0.49", "for it: 0.20 → 0.05"):
            assert text in seen
        hot, blue = (340, 220), (588, 62)
        assert pixel(page, *hot)[0] > GREY + 25, "evidence for it, in the map of drop"
        assert pixel(page, *blue)[2] > GREY + 25, "evidence against it"
        page.locator(".why .modes button", has_text="keep").click()
        assert abs(pixel(page, *blue)[2] - GREY) < 10
        page.keyboard.press("Escape")
        assert page.locator(".held").is_hidden()
        show(SHOWN)


@pytest.mark.browser
def test_box_is_placed_and_asked_about_by_the_keyboard(chromium):
    with page_of(chromium, SHOWN) as (page, detector, *_):
        page.locator(".view").focus()
        page.keyboard.press("w")
        page.locator("datalist option").nth(2).wait_for(state="attached")
        for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "Shift+ArrowRight"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        page.keyboard.type("trck")
        page.keyboard.press("Enter")
        step = 0.02 * WIDTH
        expected = Box(0.4 * WIDTH - 2 * step, 0.4 * HEIGHT - step, 0.6 * WIDTH - step, 0.6 * HEIGHT - step)
        assert detector.answer(ConfigError("class 'trck': Did you mean 'truck'?")).box == pytest.approx(expected)
        page.locator(".why-state.bad", has_text="Did you mean 'truck'?").wait_for()
        page.keyboard.press("Escape")
        assert page.locator(".held").is_hidden()
        assert page.locator(".why-open").evaluate("(button) => button === document.activeElement")
        assert page.locator(".card.large").count() == 1, "the form stands beside the enlarged image"
        page.keyboard.press("Escape")
        assert page.locator(".card.large").count() == 0


@pytest.mark.browser
def test_tap_moves_the_place_on_a_phone_and_a_lost_frame_is_reported(chromium):
    looks = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
    with page_of(chromium, SHOWN, **looks) as (page, detector, *_):
        page.get_by_role("button", name="Ask about a place").tap()
        page.locator(".why-class").fill("truck")
        settled_box(page)
        page.touchscreen.tap(*at(page, 100, 90))
        query = detector.answer(FrameGoneError("frame 0 of north: is not kept any more; ask about a newer frame"))
        assert ((query.box.left + query.box.right) / 2, (query.box.top + query.box.bottom) / 2) == pytest.approx(
            (100, 90), abs=2
        )
        page.locator(".why-state.bad", has_text="ask about a newer frame").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_other_mode_of_a_box_is_asked_for_and_moves_with_the_box(chromium):
    made = replace(ANSWER, maps=(replace(DROP, label="car", score=0.8),))
    with page_of(chromium, SHOWN) as (page, detector, _, show):
        page.locator(".boxes li").first.click()
        assert page.locator(".box-panel .modes [aria-pressed=true]").inner_text() == "keep"
        page.keyboard.press("m")
        query = detector.answer(made)
        assert query == PlaceQuery("north", 0, SHOWN.box, "car", ("drop",))
        page.locator(".box-mode", has_text="drop, complete cut").wait_for()
        assert pixel(page, 340, 220)[0] > GREY + 25
        show(replace(SHOWN, box=Box(*(edge + 40 for edge in SHOWN.box))))
        assert pixel(page, 380, 260)[0] > GREY + 25, "the map has moved with the box"
        page.locator(".box-panel .modes button", has_text="keep").click()
        page.locator(".box-mode", has_text="keep, complete cut").wait_for()


@pytest.mark.browser
def test_place_can_be_asked_about_where_nothing_was_ever_found(chromium):
    with page_of(chromium) as (page, *_):
        page.get_by_role("button", name="Ask about a place").click()
        assert page.locator(".held").inner_text() == "held: frame 0"

"""Boxes of a detector on the page, in a real Chromium: pointing, tapping and the keyboard show one box's evidence."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from overlays.render.boxes import track_colour
from pipeline.frames import Overlay
from tests.support.boxes import HEIGHT, WIDTH, box, explained_boxes, hot_cell, street
from tests.support.browser import CHROMIUM
from tests.support.limits import LIMIT_SECONDS
from tests.support.page_feed import RECORD_ANNOUNCEMENTS, serve_until, settled_box, still_page, wait_for_announcement

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium"),
]
GREY = 90
FIRST = box(100, 80, track=4, label="car", heat=hot_cell(2, 3), mode="drop", against=hot_cell(7, 13), lowest_score=0.49)
SECOND = box(400, 200, track=9, label="truck", score=0.6, heat=hot_cell(5, 10), age_seconds=1.23)
BARE = box(500, 40, track=11, label="person", score=0.3)
CELLS = {"first": (140, 100), "second": (420, 220), "against": (540, 300)}
"""Centres of the hot cells of the first and the second box, and of the evidence against the first."""
PIXELS = """(points) => {
  const canvas = document.querySelector('.view canvas'), pen = canvas.getContext('2d');
  return Object.fromEntries(Object.entries(points).map(([name, [x, y]]) =>
    [name, [...pen.getImageData(x, y, 1, 1).data].slice(0, 3)]));
}"""


class Camera:
    """Puts explanations of boxes into a sink, each as a new frame, half a second after the last one."""

    def __init__(self, sink, page):
        self.sink, self.page, self.index, self.started_at = sink, page, 0, time.monotonic()

    def show(self, *findings):
        """Put a frame with these boxes; wait until the page shows it."""
        captured_at = self.started_at + 0.5 * self.index
        made = explained_boxes(*findings, camera="north", index=self.index, captured_at=captured_at)
        self.sink.put(Overlay(made.frame.image, made))
        serve_until(self.sink, self.page, f'.card[data-index="{self.index}"]')
        self.index += 1


@contextmanager
def page_of(tab, *findings, **looks):
    """Yield a page that shows the boxes, and its camera."""
    with still_page("north") as sink:
        page = tab(sink.endpoint, **looks)
        camera = Camera(sink, page)
        camera.show(*findings)
        page.wait_for_selector(".boxes li")
        yield page, camera


def at_box(page, finding):
    """Return the position of a box's centre in the tab."""
    area = settled_box(page)
    scale = min(area["width"] / WIDTH, area["height"] / HEIGHT)  # the image is centred in the canvas element
    x, y = (finding.box.left + finding.box.right - WIDTH) / 2, (finding.box.top + finding.box.bottom - HEIGHT) / 2
    return area["x"] + area["width"] / 2 + scale * x, area["y"] + area["height"] / 2 + scale * y


def is_painted(pixel):
    return max(abs(level - GREY) for level in pixel) > 25


def expect_painted(page, *cells):
    """Wait until exactly these hot cells are painted."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (painted := {name for name, pixel in page.evaluate(PIXELS, CELLS).items() if is_painted(pixel)}) != {*cells}:
        assert time.monotonic() < deadline, f"{sorted(painted)} are painted"
        page.wait_for_timeout(10)


def expect_facts(page, *texts):
    """Wait until the panel of the selected box shows these texts."""
    for text in texts:
        sync_api.expect(page.locator(".box-panel")).to_contain_text(text)


def test_pointing_at_a_box_shows_its_facts_and_its_evidence_alone(tab):
    with page_of(tab, FIRST, SECOND, BARE) as (page, _):
        expect_painted(page, "first", "second", "against")
        assert page.locator(".label").first.inner_text() == "1 car · 1 truck · 1 person"
        assert page.locator(".prediction .score").inner_text() == "2 of 3 explained"
        page.mouse.move(*at_box(page, FIRST))
        expect_painted(page, "first", "against")
        against = page.evaluate(PIXELS, CELLS)["against"]
        assert against[2] > against[0] + 60, "evidence against the box is blue"
        expect_facts(page, "car", "80 %", "#4", "drop, complete cut", "0.0 s", "49 %", "evidence against the box")
        page.mouse.move(*at_box(page, SECOND))
        expect_painted(page, "second")
        expect_facts(page, "keep, complete cut", "1.2 s")
        sync_api.expect(page.locator(".box-against")).to_be_hidden()
        page.mouse.move(*at_box(page, BARE))
        expect_painted(page)
        expect_facts(page, "no map yet")
        page.mouse.move(5, 5)
        expect_painted(page, "first", "second", "against")
        expect_facts(page, "Point at a box")


def test_pinned_box_stays_selected_through_frames_until_escape(tab):
    with page_of(tab, FIRST, SECOND) as (page, camera):
        page.mouse.click(*at_box(page, SECOND))
        page.mouse.move(5, 5)
        sync_api.expect(page.locator(".card.large")).to_have_count(0)
        camera.show(FIRST, replace(SECOND, score=0.7))
        expect_painted(page, "second")
        expect_facts(page, "70 %")
        sync_api.expect(page.get_by_role("option", selected=True)).to_have_attribute("data-key", "#9")
        camera.show(FIRST)
        expect_facts(page, "no longer in the image")
        expect_painted(page, "first", "against")
        page.keyboard.press("Escape")
        expect_facts(page, "Point at a box")


def test_click_beside_boxes_releases_the_pinned_one_and_then_enlarges(tab):
    with page_of(tab, FIRST) as (page, _):
        page.mouse.click(*at_box(page, FIRST))
        page.mouse.click(*at_box(page, BARE))
        expect_facts(page, "Point at a box")
        sync_api.expect(page.locator(".card.large")).to_have_count(0)
        page.mouse.click(*at_box(page, BARE))
        sync_api.expect(page.locator(".card.large")).to_have_count(1)
        page.mouse.move(*at_box(page, FIRST))
        sync_api.expect(page.locator(".box-label")).to_have_text("car")
        page.keyboard.press("Escape")
        sync_api.expect(page.locator(".card.large")).to_have_count(1)
        page.keyboard.press("Escape")
        sync_api.expect(page.locator(".card.large")).to_have_count(0)


def test_keyboard_selects_boxes_in_the_list(tab):
    with page_of(tab, SECOND, FIRST, BARE) as (page, camera):
        options = page.get_by_role("option")
        assert [options.nth(k).get_attribute("aria-label") for k in range(3)] == [
            "car, 80 %, track 4, map drop",
            "truck, 60 %, track 9, map keep",
            "person, 30 %, track 11, no map",
        ]
        assert page.get_by_role("listbox", name="Boxes").locator("[tabindex='0']").count() == 1
        page.locator(".view").focus()
        page.keyboard.press("Tab")
        expect_painted(page, "first", "against")
        page.keyboard.press("ArrowDown")
        expect_painted(page, "second")
        page.evaluate(RECORD_ANNOUNCEMENTS)
        page.keyboard.press("Enter")
        wait_for_announcement(page, "truck")
        page.keyboard.press("End")
        expect_painted(page, "second")  # the pinned box stays selected
        page.keyboard.press("Escape")
        expect_painted(page, "first", "second", "against")
        page.keyboard.press("Home")
        camera.show(SECOND, BARE)
        page.wait_for_selector(".boxes li.gone")
        assert page.evaluate("document.activeElement.dataset.key") == "#4", "the focus stays on a box that has gone"
        page.keyboard.press("ArrowDown")
        expect_painted(page, "second")


def test_tap_selects_a_box_on_a_phone(tab):
    looks = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
    with page_of(tab, FIRST, SECOND, **looks) as (page, _):
        page.touchscreen.tap(*at_box(page, FIRST))
        page.wait_for_selector(".box-facts:not([hidden])")
        expect_painted(page, "first", "against")
        page.touchscreen.tap(*at_box(page, SECOND))
        sync_api.expect(page.locator(".box-label")).to_have_text("truck")
        page.get_by_role("button", name="All boxes").tap()
        expect_painted(page, "first", "second", "against")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_history_of_a_box_is_drawn_while_it_is_selected(tab):
    ink = "[...document.querySelector('.history').getContext('2d').getImageData(0, 4, 1e4, 1).data].some((v) => v > 0)"
    with page_of(tab, FIRST) as (page, camera):
        page.mouse.click(*at_box(page, FIRST))
        before = page.evaluate("document.querySelector('.history').toDataURL()")
        for score in (0.2, 0.9, 0.4):
            camera.show(replace(FIRST, score=score))
        assert page.evaluate("document.querySelector('.history').toDataURL()") != before
        assert page.evaluate(ink.replace("1e4", "document.querySelector('.history').width"))


def test_three_hundred_boxes_are_listed_and_can_be_selected(tab):
    findings = street(300, grid=(12, 20)).findings
    with page_of(tab, *findings) as (page, camera):
        camera.show(*findings)
        page.locator(".boxes li").nth(299).wait_for(state="attached")
        page.locator(".boxes li").nth(250).click()
        sync_api.expect(page.locator(".box-track")).to_have_text("#251")
        sync_api.expect(page.locator(".box-against")).to_be_visible()
        heights = page.locator(".box-panel").evaluate("panel => [panel.scrollHeight, panel.clientHeight]")
        assert heights[0] <= heights[1], "the facts are inside their panel"
        page.set_viewport_size({"width": 1200, "height": 480})
        rows = page.locator(".boxes").evaluate("list => list.clientHeight / list.firstElementChild.offsetHeight")
        assert rows >= 3.0, "a low window leaves three rows of the list"


def test_small_card_shows_the_counts_of_boxes_in_full_before_the_number_of_maps(tab):
    with still_page("north", "south") as sink:
        page = tab(sink.endpoint)
        Camera(sink, page).show(FIRST, SECOND)
        page.locator('.card[data-camera="south"] .view').click()
        label = page.locator('.card.small[data-camera="north"] .label')
        sync_api.expect(label).to_have_text("1 car · 1 truck")
        needed, given = label.evaluate("label => [label.scrollWidth, label.clientWidth]")
        assert needed <= given


def test_labels_are_text_whatever_they_contain(tab):
    name = "<img src=x onerror=alert(1)>"
    with page_of(tab, replace(FIRST, label=name)) as (page, _):
        page.mouse.move(*at_box(page, FIRST))
        sync_api.expect(page.locator(".box-label")).to_have_text(name)
        assert page.locator(".card .facts img").count() == 0


def test_grey_of_the_frame_is_that_of_the_tests():
    assert np.all(explained_boxes(FIRST).frame.image == GREY)


def test_colours_of_tracks_are_those_of_drawn_images(tab):
    with page_of(tab, FIRST) as (page, _):
        numbers = list(range(60))
        script = "async (numbers) => numbers.map((await import('./static/boxes.js')).colourOf)"
        shown = page.evaluate(script, numbers)
        drawn = [track_colour(replace(FIRST, track=number)) for number in numbers]
        assert np.abs(np.array(shown) - np.array(drawn)).max() <= 1

"""The page shows the part of the frame that the network gets, and draws a region and masks as YAML to copy."""

import time
from contextlib import contextmanager

import pytest
import yaml

from pipeline.frames import Explanation, Overlay
from pipeline.input_area import InputAreaOptions
from pipeline.settings import SourceSettings
from tests.support.boxes import HEIGHT, WIDTH, frame
from tests.support.browser import console_checked_tabs
from tests.support.page_feed import serve_until, settled_box, still_page

pytestmark = pytest.mark.browser

MASK = ((300.0, 100.0), (420.0, 100.0), (360.0, 220.0))


@contextmanager
def page_of(chromium, options=None, **looks):
    """Yield a page that shows a grey frame with an area."""
    with console_checked_tabs(chromium) as tab, still_page("north") as sink:
        page = tab(sink.endpoint, **looks)
        area = None if options is None else options.placed(WIDTH, HEIGHT)
        shown = Explanation(frame(camera="north", captured_at=time.monotonic(), area=area), (), "", "")
        sink.put(Overlay(shown.frame.image, shown))
        serve_until(sink, page, '.card[data-index="0"]')
        yield page


def pixel(page, x, y):
    script = "([x, y]) => [...document.querySelector('.view canvas').getContext('2d').getImageData(x, y, 1, 1).data]"
    return page.evaluate(script, [x, y])[:3]


def at(page, x, y):
    """Return where a point of the frame lies in the window."""
    box = page.locator(".view canvas").bounding_box()
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    left = box["x"] + (box["width"] - scale * WIDTH) / 2
    top = box["y"] + (box["height"] - scale * HEIGHT) / 2
    return left + scale * x, top + scale * y


def drag(page, start, end):
    page.mouse.move(*at(page, *start))
    page.mouse.down()
    page.mouse.move(*at(page, *((a + b) / 2 for a, b in zip(start, end, strict=True))))
    page.mouse.move(*at(page, *end))
    page.mouse.up()


def click(page, x, y):
    page.mouse.click(*at(page, x, y))


def placed(page):
    """Return the area of the shown YAML in pixels, as a source with these options has it."""
    values = yaml.safe_load(page.locator(".area-yaml").inner_text()) or {}
    options = SourceSettings(uri="line:", **values).input_area
    return None if options is None else options.placed(WIDTH, HEIGHT)


def opened(page):
    page.locator(".view").click()
    page.keyboard.press("r")
    page.wait_for_selector(".area:not([hidden])")
    settled_box(page)


def test_page_shows_the_region_and_the_masks_of_a_frame(chromium):
    with page_of(chromium, InputAreaOptions((100, 50, 400, 250), (MASK,))) as page:
        red, green, blue = pixel(page, 100, 150)
        assert min(red, green) > 140
        assert blue < 80
        script = """([left, top, width, height]) => {
            const context = document.querySelector('.view canvas').getContext('2d');
            const { data } = context.getImageData(left, top, width, height);
            return new Set(data.filter((_, index) => index % 4 === 0)).size;
        }"""
        assert page.evaluate(script, [340, 120, 40, 40]) > 3, "the mask is hatched"
        assert page.evaluate(script, [150, 240, 40, 40]) <= 3, "the rest is as the camera gave it"


def test_page_draws_a_region_and_masks_as_a_configuration(chromium):
    with page_of(chromium) as page:
        opened(page)
        assert page.locator(".area-yaml").inner_text() == ""
        drag(page, (120, 60), (520, 300))
        area = placed(page)
        assert area.cut == pytest.approx((120, 60, 520, 300), abs=1)
        page.locator("[data-kind=mask]").click()
        for x, y in (*MASK, MASK[0]):
            click(page, x, y)
        drag(page, (150, 200), (200, 280))
        area = placed(page)
        assert area.cut == pytest.approx((120, 60, 520, 300), abs=1)
        corners = [edge for corner in area.masks[0] for edge in corner]
        assert corners == pytest.approx([edge for corner in MASK for edge in corner], abs=1)
        assert len(area.masks) == 2
        page.locator(".area-fractions").check()
        assert max(yaml.safe_load(page.locator(".area-yaml").inner_text())["roi"]) < 1.0
        assert placed(page).cut == pytest.approx((120, 60, 520, 300), abs=2)
        assert page.locator(".card.large").count() == 1, "a click in the image draws, and leaves the card as it is"


def test_page_moves_and_removes_shapes_of_the_configuration(chromium):
    with page_of(chromium, InputAreaOptions((100, 50, 400, 250))) as page:
        opened(page)
        assert placed(page).cut == (100, 50, 500, 300)
        page.locator("[data-kind=roi]").click()
        drag(page, (500, 300), (560, 340))
        assert placed(page).cut == pytest.approx((100, 50, 560, 340), abs=1)
        drag(page, (300, 200), (900, 190))
        left, top, right, bottom = placed(page).cut
        assert (right, right - left) == (WIDTH, pytest.approx(460, abs=1)), "a shape stays within the frame"
        page.locator(".view").focus()
        page.keyboard.press("ArrowLeft")
        assert placed(page).cut[0] == left - 6
        page.keyboard.press("Shift+ArrowUp")
        assert placed(page).cut[1::2] == (top, bottom - 6)
        page.keyboard.press("Delete")
        assert placed(page) is None
        page.keyboard.press("Escape")
        assert page.locator(".area").is_hidden()
        assert page.locator(".card.large").count() == 1


def test_page_draws_a_region_by_touch(chromium):
    with page_of(chromium, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        page.locator(".view").tap()
        page.locator(".area-open").tap()
        page.wait_for_selector(".area:not([hidden])")
        settled_box(page)
        for x, y in ((100, 100), (400, 120), (250, 300), (100, 100)):
            page.touchscreen.tap(*at(page, x, y))
        assert placed(page).cut == pytest.approx((100, 100, 400, 300), abs=3)
        page.locator(".area-copy").tap()
        page.locator(".area-state:not(:empty)").wait_for()

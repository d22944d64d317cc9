"""The wall in a real Chromium: one box for every camera, a rail, kiosk mode, and what the page remembers."""

from __future__ import annotations

import pytest

from tests.support.browser import CHROMIUM
from tests.support.page_feed import numbered, serve_until, still_page

pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium"),
]
CAMERAS = tuple(f"camera {number}" for number in range(1, 13))
BOXES = """() => [...document.querySelectorAll('.view')].map((view) => {
  const box = view.getBoundingClientRect();
  return [Math.round(box.width), Math.round(box.height), box.bottom <= innerHeight];
})"""


def test_wall_gives_every_camera_one_box_and_remembers_the_enlarged_one(tab):
    with still_page(*CAMERAS) as sink:
        page = tab(sink.endpoint)
        page.locator(".card").nth(11).wait_for()
        for camera in CAMERAS[1:]:  # the first never gives a frame
            sink.put(numbered(1, camera, (160, 90) if camera == CAMERAS[1] else (90, 160)))
        for camera in CAMERAS[1:]:
            serve_until(sink, page, f'.card[data-index][data-camera="{camera}"]')
        boxes = page.evaluate(BOXES)
        assert len({(width, height) for width, height, _ in boxes}) == 1, "portrait and dead cameras, too"
        assert all(is_visible for *_, is_visible in boxes), "nothing to scroll for"
        page.locator(".card .view").nth(4).click()
        page.locator(".enlarged .card.small").nth(10).wait_for()
        large = page.locator(".card.large .view").bounding_box()
        assert large["width"] > 3 * page.locator(".card.small .view").first.bounding_box()["width"]
        page.keyboard.press("?")
        page.locator("#help[open]").wait_for()
        page.keyboard.press("Escape")
        page.goto(f"{sink.endpoint}/?kiosk")
        page.locator('.kiosk .card.large[data-camera="camera 5"]').wait_for()
        page.keyboard.press("Escape")
        page.locator("main[data-mode=kiosk]:not(.enlarged)").wait_for()
        assert page.url.endswith("?kiosk")
        assert page.locator("#heat").is_hidden()
        kiosk = page.evaluate(BOXES)
        assert all(is_visible for *_, is_visible in kiosk)
        assert kiosk[0][0] * kiosk[0][1] > boxes[0][0] * boxes[0][1]

"""The page and the review have no serious finding of axe-core, in any size and colour scheme."""

from __future__ import annotations

import time

import pytest

from overlays.sinks.events import EventsSink
from overlays.sinks.settings import EventSettings, WebSettings
from overlays.sinks.web import WebSink
from pipeline.camera_setup import CameraSetup
from pipeline.errors import SetupConflictError
from pipeline.frames import Overlay
from pipeline.queries import PlaceQueries
from pipeline.result import RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.support.browser import CHROMIUM
from tests.support.events import explanation, shown
from tests.support.limits import LIMIT_SECONDS
from tests.support.page_feed import ANY

sync_api = pytest.importorskip("playwright.sync_api")
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium"),
]
CAMERAS = tuple(f"camera {number}" for number in range(1, 37))
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 800}


class Drawn(CameraSetup):
    """A region and two rules, of which one is wrong; each change meets a file of another program."""

    def read(self, camera):
        region = {"index": 0, "name": "belt", "polygon": [[0, 0.1], [1, 0.1], [1, 0.9], [0, 0.9]]}
        rules = [{"index": 0, "name": "a", "rule": "score > 0.5"}, {"index": 1, "name": "b", "rule": "scor > 0.5"}]
        lists = {"roi": None, "mask": [], "zones": [], "lines": [], "regions": [region], "rules": rules}
        facts = {"camera": camera, "revision": "1", "file": "run.yaml", "written": True, "boxes": False, "cameras": 1}
        return lists | facts | {"editable": {"places": ""}, "can_undo": True, "yaml": ""}

    def change(self, camera, wanted):
        raise SetupConflictError("run.yaml: was changed", "-a\n+b", "2")

    def undo(self, camera, revision):
        raise NotImplementedError

    apply_file = undo

    def check(self, camera, rule, regions):
        if rule["rule"].startswith("scor "):
            return {"error": "'scor' is unknown. Did you mean 'score'?", "position": 0}
        past = {"count": 1, "firing_seconds": 2.0, "known_seconds": 60.0, "frames": 600, "since": 0.0, "now": 60.0}
        return past | {"error": None, "spans": [[1.0, 3.0, "score > 0.5, but is 0.40"]]}


def serious(page, colours, size=DESK):
    """Return what axe-core finds that is serious or critical."""
    page.emulate_media(color_scheme=colours)
    page.set_viewport_size(size)
    found = axe_playwright.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        (entry["id"], [node["target"] for node in entry["nodes"]])
        for entry in found
        if entry["impact"] in {"serious", "critical"}
    ]


def test_page_and_review_have_no_serious_accessibility_finding(tab, tmp_path):
    queries = PlaceQueries()
    queries.open(("scratch", "dent"), "classes")
    with (
        EventsSink(EventSettings(uri=str(tmp_path / "events.sqlite"))) as events,
        WebSink(WebSettings(uri=ANY, edit=True), SinkContext(CAMERAS, queries=queries, setup=Drawn())) as sink,
    ):
        sink.on_run_start(RunResult(RunStats([]), [], [], (events, sink)))
        page = tab(sink.endpoint, reduced_motion="reduce")  # no colours between two states
        page.locator(".card").nth(35).wait_for()
        events.put(shown(inside=0.1, camera=CAMERAS[3]))
        for count, colours, size in ((36, "light", DESK), (12, "dark", DESK), (4, "light", PHONE)):
            for camera in CAMERAS[count:]:
                sink.forget_camera(camera)
            sync_api.expect(page.locator(".card")).to_have_count(count, timeout=1000 * LIMIT_SECONDS)
            for number, camera in enumerate(CAMERAS[1:count]):  # the first never gives a frame
                made = explanation(time.monotonic(), camera=camera, inside=0.1 if number == 2 else None, size=(90, 160))
                sink.put(Overlay(made.frame.image, made))
            page.locator(".card[data-index]").nth(count - 2).wait_for()
            assert serious(page, colours, size) == [], count
        for camera in CAMERAS[1:4]:
            sink.forget_camera(camera)
        sync_api.expect(page.locator(".card")).to_have_count(1, timeout=1000 * LIMIT_SECONDS)
        last = explanation(time.monotonic(), camera=CAMERAS[0], inside=0.1, size=(90, 160))
        sink.put(Overlay(last.frame.image, last))
        page.locator(".class-heat input").wait_for()
        assert serious(page, "dark", PHONE) == []
        page.locator(".card .view").click()
        page.locator(".area-open", has_text="Set up").click()
        page.locator(".setup-rules li:nth-child(2)[data-state=wrong]").wait_for()
        page.locator(".setup-shapes .shape-what").click()
        page.locator(".setup-apply").click()
        page.locator(".setup-take:enabled").wait_for()
        for colours, size in (("light", DESK), ("dark", PHONE)):
            assert serious(page, colours, size) == []
        tab.errors[:] = [error for error in tab.errors if "409" not in error]
        page.locator(".setup-close").click()
        page.keyboard.press("?")
        page.locator("#help[open]").wait_for()
        assert serious(page, "light") == []
        page.goto(f"{sink.endpoint}/review")
        page.locator("#events > *").first.wait_for()
        assert serious(page, "light", PHONE) == []
        assert serious(page, "dark") == []

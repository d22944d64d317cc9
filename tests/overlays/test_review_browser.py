"""The review in a real Chromium: an event is found, shown with its reason, acknowledged and saved."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from overlays.events.query import EventFilter
from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.events import EventsSink
from overlays.sinks.settings import EventSettings, WebSettings
from overlays.sinks.web import WebSink
from pipeline.result import RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.support.browser import CHROMIUM, browsing, console_checked_tabs
from tests.support.events import shown, silent

pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")]
ANY = "http://127.0.0.1:0"


@pytest.fixture(scope="module")
def chromium():
    with browsing() as browser:
        yield browser


@pytest.fixture
def tab(chromium):
    with console_checked_tabs(chromium) as opened:
        yield opened


class Desk:
    """A page and its events; ``story`` puts frames with times before now."""

    def __init__(self, sink, events):
        self.sink, self.events, self.base = sink, events, time.monotonic()
        self.lock = threading.Lock()
        self.alarmed = ()
        """Cameras of which a frame with a firing guard comes again and again."""

    def story(self, *frames):
        """Put (seconds ago, value inside the region or None) of a camera."""
        with self.lock:
            for camera, ago, inside in frames:
                self.events.put(shown(self.base - ago, label="ok", inside=inside, camera=camera, size=(96, 128)))

    @property
    def review(self):
        return f"{self.sink.endpoint}/review"


@contextmanager
def desk(folder, cameras=("belt", "gate"), **options):
    with ExitStack() as stack:
        events = stack.enter_context(
            EventsSink(EventSettings(uri=str(folder / "events.sqlite"), **({"gap_seconds": 0.0} | options)))
        )
        (folder / "clips").mkdir()
        clips = ClipSink(f"{folder}/clips/", SinkContext(cameras))
        sink = stack.enter_context(WebSink(WebSettings(uri=ANY), SinkContext(cameras)))
        sink.on_run_start(RunResult(RunStats([]), [], [], (events, clips, sink)))
        made, stop = Desk(sink, events), threading.Event()
        made.clips = clips._store

        def work():
            while not stop.wait(0.02):
                with made.lock:
                    for camera in made.alarmed:
                        overlay = shown(time.monotonic(), label="ok", inside=0.3, camera=camera, size=(96, 128))
                        sink.put(overlay)
                        events.put(overlay)
                    events.idle()
                    sink.idle()

        thread = threading.Thread(target=work)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield made


def test_event_is_found_opened_and_saved_with_its_clip(tmp_path, tab):
    with desk(tmp_path) as made:
        made.story(("belt", 600, 0.41), ("belt", 580, 0.2), ("belt", 570, None), ("gate", 100, 0.4), ("gate", 90, None))
        clip = made.clips.new_path("belt", time.time() - 650)
        clip.write_bytes(b"video" * 100)
        page = tab(made.review)
        page.locator(".event").nth(1).wait_for()
        assert page.locator("#count").inner_text() == "2 events, 2 new"
        assert page.locator(".row-name").all_inner_texts() == ["belt", "gate"]
        page.locator(".event .open").nth(1).click()
        detail = page.locator("#detail")
        detail.locator("h2", has_text="grounded").wait_for()
        assert "heat inside part: 20\u00a0% at worst, bound 50\u00a0%" in detail.inner_text()
        assert "lasted\n30 s" in detail.inner_text()
        with page.expect_download() as download:
            detail.locator(".clip").click()
        assert Path(download.value.path()).read_bytes() == clip.read_bytes()
        assert download.value.suggested_filename.startswith("belt_")
        with page.expect_download() as download:
            detail.locator(".json").click()
        saved = json.loads(Path(download.value.path()).read_text())
        assert (saved["camera"], saved["figures"]["guards"][0]["name"]) == ("belt", "grounded")
        assert download.value.suggested_filename.endswith(".json")


def test_link_opens_exactly_this_event(tmp_path, tab):
    with desk(tmp_path) as made:
        made.story(("belt", 3 * 86400, 0.3), ("belt", 3 * 86400 - 5, None), ("gate", 9, 0.3), ("gate", 5, None))
        old = made.events.reader.page(EventFilter()).events[-1]
        page = tab(f"{made.review}#{old['id']}")
        page.locator("#detail[open] h2").wait_for()
        assert "belt" in page.locator("#detail .meta").inner_text()
        page.keyboard.press("Escape")
        page.locator("#detail[open]").wait_for(state="detached")
        page.locator(".event").wait_for()  # the list shows the time around it
        assert page.locator(".event").count() == 1
        assert page.locator(".event").get_attribute("data-id") == old["id"]


def test_second_browser_sees_an_acknowledgement(tmp_path, tab):
    with desk(tmp_path) as made:
        made.story(("belt", 60, 0.3), ("belt", 50, None))
        first, second = tab(made.review), tab(made.review)
        first.locator("#by").fill("Ada")
        first.locator("#by").blur()
        for page in (first, second):
            page.locator(".event[data-state=new]").wait_for()
        first.keyboard.press("j")
        first.keyboard.press("a")
        second.locator(".event[data-state=acknowledged]").wait_for()
        assert second.locator(".event .state").inner_text() == "acknowledged by Ada"
        second.locator(".event .acknowledge", has_text="Reopen").click()
        first.locator(".event[data-state=new]").wait_for()


def test_event_that_begins_appears_at_once_and_on_the_live_page(tmp_path, tab):
    with desk(tmp_path) as made:
        review, live = tab(made.review), tab(made.sink.endpoint)
        review.locator("#count", has_text="No events").wait_for()
        made.alarmed = ("belt",)
        review.locator(".event", has_text="goes on").wait_for()
        live.locator(".recent a", has_text="grounded").wait_for()
        live.locator("#link", has_text="1 of 2 live, 1 alarm").wait_for()
        alarm = live.locator(".card[data-camera=belt] .alarm")
        alarm.filter(has_text="Looks off the part").filter(has_text="30 % inside now, 50 % wanted, for").wait_for()
        live.locator("#review", has_text="1 new").wait_for()
        alarm.get_by_role("button", name="Acknowledge").click()
        review.locator(".event[data-state=acknowledged]").wait_for()
        live.locator(".card.alarmed:not(.loud)").wait_for()
        live.locator(".recent a").click()
        live.locator("#detail[open]").wait_for()


def test_filters_snooze_and_notes(tmp_path, tab):
    with desk(tmp_path) as made:
        made.story(("belt", 60, 0.3), ("belt", 50, None), ("gate", 30, 0.3), ("gate", 20, None))
        page = tab(made.review)
        page.locator(".event").nth(1).wait_for()
        page.locator("select[name=camera]").select_option("gate")
        page.locator("#count", has_text="1 event,").wait_for()
        page.locator(".event .open").click()
        page.locator("#detail .snooze").select_option("60")
        page.locator("#detail .state", has_text="snoozed until").wait_for()
        page.locator("#note").fill("sun in the lens")
        page.locator("#detail .note button").click()
        page.locator("#announcement", has_text="note saved").wait_for(state="attached")
        page.keyboard.press("Escape")
        page.locator("select[name=camera]").select_option("")
        page.locator("select[name=state]").select_option("snoozed")
        page.locator("#count", has_text="1 event,").wait_for()
        page.locator(".event .open").click()
        page.locator("#detail[open]").wait_for()
        assert page.locator("#note").input_value() == "sun in the lens"


def test_heat_and_plain_images_are_both_shown(tmp_path, tab):
    with desk(tmp_path) as made:
        made.story(("belt", 60, 0.3), ("belt", 50, None))
        with made.lock:
            made.events.put(silent(time.monotonic(), 40.0, camera="gate"))
        page = tab(made.review)
        image = page.locator(".event .thumb img").nth(1)
        image.wait_for()
        assert "/heat.jpg" in image.get_attribute("src")
        page.keyboard.press("p")
        page.locator(".event .thumb img[src*='/plain.jpg']").nth(1).wait_for()
        shown = "[...document.querySelectorAll('.thumb img')].every((i) => i.complete && i.naturalWidth)"
        while not page.evaluate(shown):
            page.wait_for_timeout(50)
        assert page.locator(".event strong").all_inner_texts() == ["Signal lost", "grounded"]


def test_review_without_events_sink_says_how_to_keep_them(tab):
    with WebSink(WebSettings(uri=ANY), SinkContext(("belt",))) as sink:
        page = tab(f"{sink.endpoint}/review")
        page.locator("#count", has_text="The run is starting.").wait_for()
        sink.on_run_start(RunResult(RunStats([]), [], [], (sink,)))
        page.locator("#count", has_text="--sink events.sqlite").wait_for()
        assert tab(sink.endpoint).locator("#pages").is_hidden()

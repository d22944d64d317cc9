"""The page in a real Chromium: a person sees one frame with its own reason, and sees when it is not fresh."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from overlays.sinks.web import WebSink
from overlays.web.broadcast import MAX_IN_FLIGHT
from pipeline.settings import SinkContext
from pipeline.trial import Trial
from tests.support.browser import CHROMIUM
from tests.support.limits import LIMIT_SECONDS
from tests.support.page_feed import ANY, Feed, fed, grey, numbered, shade, shown, shown_frames

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium"),
]


@contextmanager
def elsewhere_html():
    """Another web site on this machine: its address, and the folder it serves."""
    with tempfile.TemporaryDirectory() as name:
        handler = functools.partial(QuietHandler, directory=name)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}", Path(name)
            server.shutdown()
            thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *_):
        pass


def test_page_shows_image_label_and_number_of_one_frame_and_heat_can_be_hidden(tab):
    with fed() as (sink, _):
        page = tab(sink.endpoint)
        for shown_frame in shown_frames(page):
            assert shown_frame["label"] == f"part {shown_frame['index'] % 16}"
            assert abs(grey(shown_frame["cold"]) - shade(shown_frame["index"])) < 4, "the picture is the label's own"
            assert shown_frame["hot"][0] > shown_frame["cold"][0] + 40, "hot cells are painted where they lie"
        page.get_by_role("switch", name="Heat").uncheck()
        shown_frame = shown(page)
        assert abs(grey(shown_frame["hot"]) - shade(shown_frame["index"])) < 6
        page.keyboard.press("h")
        assert shown(page)["hot"][0] > 60
        page.get_by_role("slider", name="Opacity").fill("20")
        faint = shown(page)
        assert 15 < faint["hot"][0] - grey(faint["cold"]) < 70
        assert "part" in page.locator(".card .prediction").inner_text()
        assert page.locator(".card .bars li").count() == 2


@pytest.mark.slow
def test_blocked_tab_misses_frames_and_other_tabs_do_not_wait_for_it(tab):
    with fed() as (sink, _):
        other, blocked = tab(sink.endpoint), tab(sink.endpoint)
        for page in (other, blocked):
            shown(page)
        dialogs = []
        blocked.on("dialog", lambda dialog: dialogs.append(dialog))  # noqa: PLW0108 - Playwright marks its handlers
        blocked.evaluate("() => { setTimeout(() => alert('no script runs until this is closed')); }")
        deadline = time.monotonic() + LIMIT_SECONDS
        while not dialogs:
            assert time.monotonic() < deadline, "the tab is not blocked"
            other.wait_for_timeout(20)
        sent = [client.sent for client in sink._broadcaster.clients]
        newest = shown_frames(other, 15)[-1]["index"]
        more = sorted(client.sent - before for client, before in zip(sink._broadcaster.clients, sent, strict=True))
        assert more[0] <= MAX_IN_FLIGHT < more[1], "the blocked tab takes no frames, and the other one does"
        assert max(client.skipped for client in sink._broadcaster.clients) > 5
        dialogs[0].accept()
        blocked.wait_for_function(f"() => +document.querySelector('.card').dataset.index >= {newest}")


def test_page_cameras_are_reachable_by_keyboard_and_enlarge(tab):
    with fed("door", "gate", "yard") as (sink, _):
        page = tab(sink.endpoint)
        sync_api.expect(page.locator(".card[data-index]")).to_have_count(3)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.locator(".card.large").get_attribute("data-camera") == "gate"
        assert page.url.endswith("#gate")
        page.keyboard.press("ArrowRight")
        assert page.locator(".card.large").get_attribute("data-camera") == "yard"
        with page.expect_download() as fetched:
            page.keyboard.press("s")
        assert fetched.value.suggested_filename.startswith("yard_")
        with page.expect_download() as fetched:
            page.get_by_role("button", name="Last 30 s").click()
        assert fetched.value.suggested_filename.endswith(".mp4")
        page.keyboard.press("Escape")
        assert page.locator(".card.large").count() == 0
        page.locator('.card[data-camera="door"] .view').click()
        assert page.locator(".card.large").get_attribute("data-camera") == "door"


def test_page_grid_loads_small_images_and_enlarged_ones_large(tab):
    # A canvas of a new size is empty until its picture is painted.
    painted = """(wanted) => { const c = document.querySelector('.card[data-camera=door] .view canvas');
      const red = (x, y) => c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data[0];
      return c !== null && c.width === wanted && red(1 / 12, 1 / 8) > red(0.9, 0.9) + 40; }"""
    with (
        WebSink(ANY, SinkContext(cameras=("door", "gate"))) as sink,
        Feed(sink, "door", "gate", rate=10, size=(720, 1280)),
    ):
        page = tab(sink.endpoint)
        page.wait_for_function(painted, arg=640)
        page.locator('.card[data-camera="door"] .view').click()
        page.wait_for_function(painted, arg=1280)
        page.keyboard.press("Escape")
        page.wait_for_function(painted, arg=640)


def test_page_opens_with_the_token(tab):
    token = "correct-horse-battery"  # noqa: S105 - of no page
    with fed(token=token) as (sink, _):
        page = tab(sink.endpoint)
        assert page.url.endswith("/login")
        page.get_by_label("Token").fill("something else entirely")
        page.get_by_role("button", name="Sign in").click()
        assert page.get_by_role("alert").inner_text() == "The token is wrong."
        page.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        assert shown(page)["label"].startswith("part")
        assert page.evaluate("document.cookie") == "", "scripts do not see it"
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")
    tab.errors[:] = [message for message in tab.errors if "401" not in message]


def test_page_draws_no_second_heat_map_on_rendered_frames(tab):
    with fed(painted=True) as (sink, _):
        page = tab(sink.endpoint)
        shown_frame = shown(page)
        assert abs(grey(shown_frame["hot"]) - shade(shown_frame["index"])) < 6
        assert not page.get_by_role("switch", name="Heat").is_checked()


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("light", {"color_scheme": "light"}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}, "is_mobile": True}),
    ],
)
def test_page_has_no_overflow_in_any_layout(tab, tmp_path, name, looks):
    """The pictures go to a folder, for people: PAGE_SHOTS names one that stays."""
    folder = os.environ.get("PAGE_SHOTS", str(tmp_path))
    long = "a camera with quite a long name, near the loading ramp"
    with fed("door", long) as (sink, feed):
        page = tab(sink.endpoint, **looks)
        sync_api.expect(page.locator(".card[data-index]")).to_have_count(2)
        feed.pause("door")
        page.wait_for_selector(".card.stale")
        Path(folder, f"{name}.png").write_bytes(page.screenshot(full_page=True))
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(15, 17, 21)") is (looks["color_scheme"] == "dark")


def test_allowed_dashboard_embeds_stream_and_page_and_another_site_does_not(tab, wait_until):
    """The token of one stream in its address, as the page's own link has it."""
    token = "correct-horse-battery"  # noqa: S105 - of no page
    with elsewhere_html() as (dashboard, folder):
        site = dashboard.replace("127.0.0.1", "localhost")
        with fed(token=token, origins=(site,)) as (sink, _):
            stream = f"{sink.endpoint}/stream/line.mjpg?token={sink._page.access.stream_token('line')}"
            (folder / "index.html").write_text(
                f'<!doctype html><title>d</title><link rel="icon" href="data:,"><img src="{stream}">'
                f'<iframe src="{sink.endpoint}/"></iframe>'
            )
            shown = tab(site)
            shown.wait_for_function("document.querySelector('img').naturalWidth === 160")
            other = tab(dashboard)
            other.wait_for_function("document.querySelector('img').complete")
            assert other.evaluate("document.querySelector('img').naturalWidth") == 0
            shown.frame_locator("iframe").locator("input[name=token]").wait_for()
            wait_until(lambda: any("frame-ancestors" in message for message in tab.errors))
            assert other.frame_locator("iframe").locator("input[name=token]").count() == 0
        expected = ("403", "frame-ancestors", "autofocusing")
        tab.errors[:] = [message for message in tab.errors if not any(part in message for part in expected)]


@pytest.mark.slow
def test_page_removes_the_card_of_a_camera_that_left(tab):
    with fed("leaves") as (sink, feed):
        feed.put(numbered(1, "stays"))
        page = tab(sink.endpoint)
        sync_api.expect(page.locator(".card")).to_have_count(2)
        page.locator('.card[data-camera="stays"] .view').click()
        with feed.turn:
            sink.forget_camera("stays")
        sync_api.expect(page.locator(".card")).to_have_count(1)
        assert not page.url.endswith("#stays")
        page.locator('.card[data-camera="leaves"] .view').click()
        assert page.locator(".card.large").get_attribute("data-camera") == "leaves"


def taken_earlier(overlay, seconds):
    frame = overlay.explanation.frame
    earlier = replace(frame, captured_at=frame.captured_at - seconds)
    return replace(overlay, explanation=replace(overlay.explanation, frame=earlier))


@pytest.mark.slow
def test_page_shows_the_verdict_of_a_network_on_trial_beside_the_first(tab):
    with fed("line") as (sink, feed):
        page = tab(sink.endpoint)
        line = page.locator('.card[data-camera="tried"] .trial')
        frame = taken_earlier(numbered(1, "tried"), seconds=10.0)
        second = Trial(
            "new", (replace(frame.explanation.first, label="dent", score=0.6),), "dent 60% instead of part 1"
        )
        feed.put(frame)
        sync_api.expect(page.locator('.card[data-camera="tried"]')).to_be_visible()
        feed.put(replace(frame, explanation=replace(frame.explanation, trial=second)))
        sync_api.expect(line).to_have_text("✗ new on trial: dent 60 %")
        feed.put(taken_earlier(numbered(2, "tried"), seconds=9.0))  # left out: the line of the frame before stays
        sync_api.expect(page.locator('.card[data-camera="tried"]')).to_have_attribute("data-index", "2")
        sync_api.expect(line).to_have_text("✗ new on trial: dent 60 %")
        sync_api.expect(line).to_be_visible()
        feed.put(numbered(3, "tried"))
        sync_api.expect(line).to_be_hidden()

"""The page in a real Chromium: a person sees one frame with its own reason, and sees when it is not fresh."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from pipeline.frames import Finding, GuardState, Overlay, Region, SignalLoss
from pipeline.ports import Part
from pipeline.result import RunResult
from pipeline.settings import Secret, SinkContext
from pipeline.stats import RunStats
from tests.overlays.conftest import explain
from tests.support.broker import free_port
from tests.support.browser import CHROMIUM, browsing, console_checked_tabs
from tests.support.cameras import elsewhere
from tests.support.limits import LIMIT_SECONDS

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")]
ROOT = Path(__file__).resolve().parents[2]
ANY = "http://127.0.0.1:0"
ROWS, COLUMNS = 4, 6


@pytest.fixture(scope="module")
def chromium():
    with browsing() as browser:
        yield browser


@pytest.fixture
def tab(chromium):
    """Open tabs; fail when one writes an error to its console."""
    with console_checked_tabs(chromium) as opened:
        yield opened


def shade(index):
    """A grey that tells a frame's number, modulo 16, even after JPEG."""
    return 20 + 8 * (index % 16)


def numbered(index, camera="line", size=(120, 160)):
    """A frame whose grey, label and number agree; hot in its upper left cell."""
    heat = np.zeros((ROWS, COLUMNS), np.float32)
    heat[0, 0] = 1.0
    image = np.full((*size, 3), shade(index), np.uint8)
    others = (Finding("other", 0.2, heat, class_index=4),)
    label = f"part {index % 16}"
    explanation = explain(image, heat=heat, label=label, score=0.75, camera=camera, index=index, others=others)
    return Overlay(explanation.frame.image, explanation)


class Feed:
    """Puts numbered frames of some cameras into a sink, in a thread of the test's own."""

    def __init__(self, sink, *cameras, rate=30.0, size=(120, 160)):
        self.sink, self.cameras, self.rate, self.size = sink, cameras, rate, size
        self.paused, self.stop = set(), threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def _run(self):
        index = 0
        while not self.stop.wait(1 / self.rate):
            for camera in self.cameras:
                if camera not in self.paused:
                    self.sink.put(numbered(index, camera, self.size))
            self.sink.idle()
            index += 1


@contextmanager
def fed(*cameras, token=None, painted=False, origins=(), rate=30.0):
    cameras = cameras or ("line",)
    secrets = {} if token is None else {"token_file": Secret(token)}
    settings = WebSettings(uri=ANY, embed_origins=list(origins))
    with (
        WebSink(settings, SinkContext(cameras, secrets, painted=painted)) as sink,
        Feed(sink, *cameras, rate=rate) as feed,
    ):
        yield sink, feed


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


class Recording(Part):
    """A recorder as far as the page is concerned."""

    uri, problem = "clips/", ""


SHOWN = """() => {
  const card = document.querySelector('.card[data-index]');
  if (!card) return null;
  const canvas = card.querySelector('.view canvas');
  const pen = canvas.getContext('2d');
  const at = (x, y) => [...pen.getImageData(x * canvas.width, y * canvas.height, 1, 1).data].slice(0, 3);
  return { index: +card.dataset.index, label: card.querySelector('.label').textContent,
           cold: at(0.9, 0.9), hot: at(1 / 12, 1 / 8), age: +card.dataset.age };
}"""


PIXEL = "[...document.querySelector('.view canvas').getContext('2d').getImageData(80, 30, 1, 1).data]"


def shown(page):
    page.wait_for_selector(".card[data-index]")
    return page.evaluate(SHOWN)


def ages(page, seconds=1.5):
    """Ages of the frames that come to be shown, in seconds."""
    return page.evaluate(
        """async (seconds) => {
          const seen = new Map(), end = performance.now() + 1000 * seconds;
          while (performance.now() < end) {
            const card = document.querySelector('.card[data-index]');
            if (card) seen.set(card.dataset.index, +card.dataset.age);
            await new Promise((done) => setTimeout(done, 10));
          }
          return [...seen.values()].sort((a, b) => a - b);
        }""",
        seconds,
    )


def grey(colour):
    return sum(colour) / 3


def test_page_shows_image_label_and_number_of_one_frame_and_heat_can_be_hidden(tab):
    with fed() as (sink, _):
        page = tab(sink.endpoint)
        seen = [shown(page) for _ in range(12) if page.wait_for_timeout(40) is None]
        for shown_frame in seen:
            assert shown_frame["label"] == f"part {shown_frame['index'] % 16}"
            assert abs(grey(shown_frame["cold"]) - shade(shown_frame["index"])) < 4, "the picture is the label's own"
            assert shown_frame["hot"][0] > shown_frame["cold"][0] + 40, "hot cells are painted where they lie"
        assert seen[-1]["index"] > seen[0]["index"] + 5
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


def test_page_shows_a_signal_loss_and_its_end(tab):
    with fed("door", "gate") as (sink, feed):
        page = tab(sink.endpoint)
        sync_api.expect(page.locator(".card[data-index]")).to_have_count(2)
        feed.paused.add("door")
        page.wait_for_selector('.card.stale[data-camera="door"]')
        stamp = page.locator('.card[data-camera="door"] .notice')
        assert "no signal for" in stamp.inner_text()
        assert page.locator('.card.stale[data-camera="gate"]').count() == 0
        page.wait_for_timeout(1200)
        assert page.locator('.card[data-camera="door"] .state').inner_text() == "silent"
        assert "s" in page.locator('.card[data-camera="door"] dd.age.old').inner_text()
        feed.paused.clear()
        page.wait_for_selector('.card[data-camera="door"]:not(.stale)')


def test_page_shows_a_lost_server_and_reconnects(tab):
    with fed() as (sink, _):
        endpoint = sink.endpoint
        page = tab(endpoint)
        shown(page)
    page.wait_for_selector(".card.stale")
    assert page.locator("#link").inner_text() == "no connection"
    assert page.locator(".card .state").inner_text() == "unknown"
    with WebSink(endpoint, SinkContext(cameras=("line",))) as again, Feed(again, "line"):
        page.wait_for_selector(".card:not(.stale)", timeout=1000 * LIMIT_SECONDS)
        assert shown(page)["index"] >= 0


def test_throttled_tab_does_not_raise_the_age_in_other_tabs(tab):
    with fed(rate=25.0) as (sink, _):
        pages = [tab(sink.endpoint) for _ in range(3)]
        for page in pages:
            shown(page)
        before = ages(pages[0])
        slow = pages[2].context.new_cdp_session(pages[2])
        slow.send("Emulation.setCPUThrottlingRate", {"rate": 20})
        pages[2].evaluate("setInterval(() => { const end = Date.now() + 180; while (Date.now() < end); }, 200)")
        pages[1].wait_for_timeout(300)
        beside = ages(pages[0])
        middle = [ages[len(ages) // 2] for ages in (before, beside)]
        assert len(beside) > 0.5 * len(before), "it sees as many frames as before"
        assert middle[1] < middle[0] + 0.08, f"median age {middle[0]:.3f} s alone, {middle[1]:.3f} s beside a slow one"
        most = max(client.skipped for client in sink._broadcaster.clients)
        assert most > 5, "the slow one misses frames"


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
        assert fetched.value.suggested_filename.startswith("yard-")
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
        sink.put(numbered(5, "door"))
        feed.paused.add("door")
        page.wait_for_selector(".card.stale")
        Path(folder, f"{name}.png").write_bytes(page.screenshot(full_page=True))
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(15, 17, 21)") is (looks["color_scheme"] == "dark")


def test_page_shows_problems_while_they_last(tab):
    disk = Recording()
    with fed() as (sink, _):
        sink.on_run_start(RunResult(RunStats(["line"]), [], [], parts=(disk, sink)))
        page = tab(sink.endpoint)
        shown(page)
        assert not page.get_by_role("alert").is_visible()
        assert page.locator("#viewers").inner_text() == "1 viewer"
        disk.problem = "the disk is full (No space left on device)"
        page.get_by_role("alert").wait_for()
        assert page.get_by_role("alert").inner_text().split("\n") == ["clips/", disk.problem]
        disk.problem = ""
        page.get_by_role("alert").wait_for(state="hidden")


def test_page_shows_the_reason_of_a_signal_loss(tab):
    with fed() as (sink, feed):
        page = tab(sink.endpoint)
        last = shown(page)["index"]
        feed.paused.add("line")
        page.wait_for_timeout(100)
        silence = SignalLoss(2.0, "waiting", "camera: connection refused")
        feed.stop.set()
        feed.thread.join()
        sink.put(replace(numbered(last), signal_loss=silence))
        page.wait_for_selector(".card.stale")
        assert "connection refused" in page.locator(".notice").inner_text()
        assert page.locator(".state").inner_text() == "waiting"


def test_page_shows_a_firing_guard_in_the_grid_and_announces_it_once(tab, wait_until):
    belt = Region("belt", ((16.0, 30.0), (144.0, 30.0), (144.0, 110.0), (16.0, 110.0)))
    fires = GuardState("on-the-belt", True, 1.5, "heat_inside(belt) >= 0.6, but is 0.04", 1)

    def guarded(index, *states):
        plain = numbered(index)
        explanation = replace(plain.explanation, guards=states, regions=(belt,))
        return Overlay(explanation.frame.image, explanation)

    with WebSink(ANY, SinkContext(cameras=("line",))) as sink:
        page = tab(sink.endpoint)
        wait_until(lambda: bool(sink._broadcaster.clients))
        sink.put(guarded(1, replace(fires, firing=False, message="", seconds=0.0)))
        page.wait_for_selector(".card[data-index='1']")
        assert page.locator(".alarm").is_hidden()
        calm = page.evaluate(PIXEL)
        for index in range(2, 5):
            sink.put(guarded(index, fires))
            page.wait_for_selector(f".card[data-index='{index}']")
        assert page.locator(".card.alarmed").count() == 1
        assert page.locator(".alarm strong[role=alert]").inner_text() == "on-the-belt"
        assert "but is 0.04 · 1.5 s" in page.locator(".alarm").inner_text()
        alarmed = page.evaluate(PIXEL)
        assert calm[2] > calm[0]
        assert alarmed[0] > alarmed[2]
        sink.put(guarded(5, replace(fires, firing=False, message="", seconds=0.0)))
        page.wait_for_selector(".card[data-index='5']")
        assert page.locator(".alarm").is_hidden()
        assert page.locator(".card.alarmed").count() == 0
        assert "no alarm" in page.locator("#announcement").inner_text()


@pytest.mark.rtsp
@pytest.mark.slow
def test_page_shows_the_loss_and_return_of_a_real_camera(tab):
    """The whole way: a camera over RTSP, the run in a process of its own, the page in a browser."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    with elsewhere(1) as camera:
        run = subprocess.Popen(
            [sys.executable, "run.py", "stream", "--source", camera.urls[0], "--model", "line_net", "--sink", endpoint],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + LIMIT_SECONDS
            while not answers(endpoint):
                assert run.poll() is None, run.stderr.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            page = tab(endpoint)
            page.wait_for_selector(".card[data-index]:not(.stale)", timeout=1000 * LIMIT_SECONDS)
            seen = int(page.locator(".card").get_attribute("data-index"))
            page.wait_for_function(f"() => +document.querySelector('.card').dataset.index > {seen}")
            assert page.locator(".state").inner_text() == "live"
            camera.tell("die", 0)
            page.wait_for_selector(".card.stale")
            assert "no signal for" in page.locator(".notice").inner_text()
            page.wait_for_function("() => document.querySelector('.state').textContent === 'waiting'")
            assert "refused" in page.locator(".notice").inner_text()
            camera.tell("come_back", 0)
            page.wait_for_selector(".card:not(.stale)", timeout=1000 * LIMIT_SECONDS)
            assert page.locator(".reconnects").text_content() == "1"
        finally:
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=LIMIT_SECONDS)


def answers(endpoint):
    try:
        with urllib.request.urlopen(f"{endpoint}/readyz", timeout=2) as answer:  # noqa: S310 - our own
            return answer.status == 200
    except OSError:
        return False


def test_allowed_dashboard_embeds_a_stream_and_another_site_does_not(tab):
    """The token of one stream in its address, as the page's own link has it."""
    token = "correct-horse-battery"  # noqa: S105 - of no page
    with elsewhere_html() as (dashboard, folder):
        site = dashboard.replace("127.0.0.1", "localhost")
        with fed(token=token, origins=(site,)) as (sink, _):
            stream = f"{sink.endpoint}/stream/line.mjpg?token={sink._page.access.stream_token('line')}"
            (folder / "index.html").write_text(
                f'<!doctype html><title>d</title><link rel="icon" href="data:,"><img src="{stream}">'
            )
            shown = tab(site)
            shown.wait_for_function("document.querySelector('img').naturalWidth === 160")
            other = tab(dashboard)
            other.wait_for_function("document.querySelector('img').complete")
            assert other.evaluate("document.querySelector('img').naturalWidth") == 0
        tab.errors[:] = [message for message in tab.errors if "403" not in message]


def test_page_removes_the_card_of_a_camera_that_left(tab):
    with fed("leaves") as (sink, _):
        sink.put(numbered(1, "stays"))
        page = tab(sink.endpoint)
        sync_api.expect(page.locator(".card")).to_have_count(2)
        page.locator('.card[data-camera="stays"] .view').click()
        sink.forget_camera("stays")
        sync_api.expect(page.locator(".card")).to_have_count(1)
        assert not page.url.endswith("#stays")
        page.locator('.card[data-camera="leaves"] .view').click()
        assert page.locator(".card.large").get_attribute("data-camera") == "leaves"

"""The page in a real Chromium: signal losses, problems, guards and a real camera."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from overlays.sinks.web import WebSink
from pipeline.frames import Overlay, Region, SignalLoss
from pipeline.guards.state import GuardState
from pipeline.ports import Part
from pipeline.result import RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.support.broker import free_port
from tests.support.browser import CHROMIUM
from tests.support.cameras import elsewhere
from tests.support.limits import LIMIT_SECONDS, PROGRAM_SECONDS
from tests.support.page_feed import (
    PIXEL,
    RECORD_ANNOUNCEMENTS,
    Feed,
    fed,
    numbered,
    serve_until,
    shown,
    still_page,
    wait_for_announcement,
)

sync_api = pytest.importorskip("playwright.sync_api")


pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium"),
]


ROOT = Path(__file__).resolve().parents[2]


class Recording(Part):
    """A recorder as far as the page is concerned."""

    uri, problem = "clips/", ""


@pytest.mark.slow
def test_page_shows_a_signal_loss_and_its_end(tab):
    with fed("door", "gate") as (sink, feed):
        page = tab(sink.endpoint)
        sync_api.expect(page.locator(".card[data-index]")).to_have_count(2)
        feed.pause("door")
        door = page.locator('.card.stale[data-camera="door"]')
        sync_api.expect(door.locator(".notice")).to_contain_text("no signal for")
        sync_api.expect(page.locator('.card:not(.stale)[data-camera="gate"]')).to_be_visible()
        sync_api.expect(door.locator(".state")).to_have_text("silent")
        sync_api.expect(door.locator("dd.age.old")).to_contain_text("s")
        feed.paused.clear()
        page.wait_for_selector('.card[data-camera="door"]:not(.stale)')


def test_page_shows_a_lost_server_and_reconnects(tab):
    with fed() as (sink, _):
        endpoint = sink.endpoint
        page = tab(endpoint)
        shown(page)
    page.wait_for_selector(".card.stale")
    sync_api.expect(page.locator("#link")).to_have_text("no connection")
    sync_api.expect(page.locator(".card .state")).to_have_text("unknown")
    with WebSink(endpoint, SinkContext(cameras=("line",))) as again, Feed(again, "line"):
        page.wait_for_selector(".card:not(.stale)")
        assert shown(page)["index"] >= 0


def test_page_shows_problems_while_they_last(tab):
    disk = Recording()
    with fed() as (sink, _):
        sink.on_run_start(RunResult(RunStats(["line"]), [], [], parts=(disk, sink)))
        page = tab(sink.endpoint)
        shown(page)
        assert not page.get_by_role("alert").is_visible()
        assert page.locator("#viewers").is_hidden(), "the only viewer"
        disk.problem = "the disk is full (No space left on device)"
        page.get_by_role("alert").wait_for()
        assert page.get_by_role("alert").inner_text().split("\n") == ["clips/", disk.problem]
        disk.problem = ""
        page.get_by_role("alert").wait_for(state="hidden")


def test_page_shows_the_reason_of_a_signal_loss(tab):
    with fed() as (sink, feed):
        page = tab(sink.endpoint)
        last = shown(page)["index"]
        feed.pause("line")
        silence = SignalLoss(2.0, "waiting", "camera: connection refused")
        feed.put(replace(numbered(last), signal_loss=silence))
        stale = page.locator(".card.stale")
        sync_api.expect(stale.locator(".notice")).to_contain_text("connection refused")
        sync_api.expect(stale.locator(".state")).to_have_text("waiting")


@pytest.mark.slow
def test_page_shows_a_firing_guard_in_the_grid_and_announces_it_once(tab):
    belt = Region("belt", ((16.0, 30.0), (144.0, 30.0), (144.0, 110.0), (16.0, 110.0)))
    fires = GuardState("on-the-belt", True, 1.5, "heat_inside(belt) >= 0.6, but is 0.04", 1)

    def guarded(index, *states):
        plain = numbered(index)
        explanation = replace(plain.explanation, guards=states, regions=(belt,))
        return Overlay(explanation.frame.image, explanation)

    with still_page("line") as sink:
        page = tab(sink.endpoint)
        sink.put(guarded(1, replace(fires, firing=False, message="", seconds=0.0)))
        serve_until(sink, page, ".card[data-index='1']")
        page.evaluate(RECORD_ANNOUNCEMENTS)
        assert page.locator(".alarm").count() == 0
        calm = page.evaluate(PIXEL)
        for index in range(2, 5):
            sink.put(guarded(index, fires))
            serve_until(sink, page, f".card[data-index='{index}']")
        assert page.locator(".card.alarmed").count() == 1
        assert page.locator(".alarm strong[role=alert]").inner_text() == "on-the-belt"
        assert "but is 0.04, for 1.5 s" in page.locator(".alarm").inner_text()
        alarmed = page.evaluate(PIXEL)
        assert calm[2] > calm[0]
        assert alarmed[0] > alarmed[2]
        sink.put(guarded(5, replace(fires, firing=False, message="", seconds=0.0)))
        serve_until(sink, page, ".card[data-index='5']")
        assert page.locator(".alarm").count() == 0
        assert page.locator(".card.alarmed").count() == 0
        wait_for_announcement(page, "no alarm")


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
            deadline = time.monotonic() + PROGRAM_SECONDS
            while not answers(endpoint):
                assert run.poll() is None, run.stderr.read().decode()
                assert time.monotonic() < deadline, "the page is not served"
                time.sleep(0.1)
            page = tab(endpoint)
            page.wait_for_selector(".card[data-index]:not(.stale)")
            seen = int(page.locator(".card").get_attribute("data-index"))
            page.wait_for_function(f"() => +document.querySelector('.card').dataset.index > {seen}")
            sync_api.expect(page.locator(".state")).to_have_text("live")
            camera.tell("die", 0)
            stale = page.locator(".card.stale")
            sync_api.expect(stale.locator(".notice")).to_contain_text("no signal for")
            sync_api.expect(stale.locator(".state")).to_have_text("waiting")
            sync_api.expect(stale.locator(".notice")).to_contain_text("refused")
            camera.tell("come_back", 0)
            page.wait_for_selector(".card:not(.stale)")
            sync_api.expect(page.locator(".reconnects")).to_have_text(re.compile("[1-9]"))
        finally:
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=PROGRAM_SECONDS)


def answers(endpoint):
    try:
        with urllib.request.urlopen(f"{endpoint}/healthz", timeout=LIMIT_SECONDS) as answer:  # noqa: S310 - our own
            return answer.status == 200
    except OSError:
        return False

"""Measures how soon the page shows the loss and the return of a camera or of the server, in a real Chromium.

``python -m tests.bench.page_loss [--times N]``. Two cameras at 30 frames a second; one falls silent for three seconds
and comes back, again and again, and last of all the server goes. The browser notes by itself when each card turns grey
and when it does not any more: seconds from the last frame, and from the first one after it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import numpy as np

from overlays.sinks.web import WebSink
from pipeline.frames import Explanation, Finding, Frame, Overlay
from pipeline.settings import SinkContext
from tests.bench.figures import environment, print_line
from tests.support.browser import CHROMIUM, browsing

RATE = 30.0
SILENT_SECONDS = 3.0
HEAT = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
IMAGE = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
WATCH = """() => {
  window.turns = [];
  for (const card of document.querySelectorAll('.card')) {
    let grey = card.classList.contains('stale');
    new MutationObserver(() => {
      if (card.classList.contains('stale') === grey) return;
      grey = !grey;
      window.turns.push([card.dataset.camera, grey, Date.now() / 1000]);
    }).observe(card, { attributes: true, attributeFilter: ['class'] });
  }
}"""


def overlay_of(camera: str, index: int) -> Overlay:
    """Return a frame, taken now, with its reason."""
    finding = Finding("water bottle", 0.9, HEAT, 1)
    explanation = Explanation(Frame(IMAGE, camera, index, time.monotonic()), (finding,), "recipro-cam/point", "layer4")
    return Overlay(explanation.frame.image, explanation)


class Feeder:
    """Puts frames of two cameras into a page at a rate; records the times of each camera's first and last frame."""

    def __init__(self, sink: WebSink) -> None:
        """Create a reader of the page."""
        self.sink = sink
        self.index = 0
        self.last_unix: dict[str, float] = {}

    def feed(self, seconds: float, *cameras: str) -> float:
        """Put frames of some cameras for so long; return when the first was put (Unix seconds)."""
        started_at, first = time.monotonic(), time.time()
        for k in range(round(seconds * RATE)):
            for camera in cameras:
                self.last_unix[camera] = time.time()
                self.sink.put(overlay_of(camera, self.index))
            self.index += 1
            while (left := started_at + (k + 1) / RATE - time.monotonic()) > 0:
                time.sleep(min(left, 0.01))
                self.sink.idle()
        return first


def turned(page: Any, camera: str, since_unix: float, *, grey: bool) -> float:
    """Return the seconds from a time until a card changed to a state."""
    script = "([name, grey, since]) => turns.find((t) => t[0] === name && t[1] === grey && t[2] > since)"
    return float(page.wait_for_function(script, arg=[camera, grey, since_unix]).json_value()[2]) - since_unix


def measure(times: int, browser: Any) -> dict[str, Any]:
    """Return the seconds until each loss and each return is shown, and until the end of the server is shown."""
    dice = random.Random(0)
    lost, back = [], []
    with WebSink("http://127.0.0.1:0", SinkContext(cameras=("door", "gate"))) as sink:
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(sink.endpoint)
        feeder = Feeder(sink)
        feeder.feed(3.0, "door", "gate")
        page.wait_for_selector('.card:not(.stale)[data-camera="door"]')
        page.evaluate(WATCH)
        for _ in range(times):
            feeder.feed(2.0 + dice.random(), "door", "gate")
            gone = feeder.last_unix["door"]
            feeder.feed(SILENT_SECONDS, "gate")
            lost.append(turned(page, "door", gone, grey=True))
            again = feeder.feed(0.5, "door", "gate")
            back.append(turned(page, "door", again, grey=False))
        assert "gate" not in {name for name, *_ in page.evaluate("() => window.turns")}, "the other one was fresh"
        feeder.feed(1.0, "door", "gate")
        gone = feeder.last_unix["gate"]
    ended = turned(page, "gate", gone, grey=True)
    page.close()
    return {
        "times": times,
        "lost_seen_s_p50": round(statistics.median(lost), 3), "lost_seen_s_most": round(max(lost), 3),
        "back_seen_s_p50": round(statistics.median(back), 3), "back_seen_s_most": round(max(back), 3),
        "server_gone_seen_s": round(ended, 3),
    }  # fmt: skip


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    times = parser.parse_args().times
    if CHROMIUM is None:
        raise SystemExit("no Chromium: apt install chromium")
    with browsing() as browser:
        print_line(bench="page loss", **measure(times, browser), **environment())


if __name__ == "__main__":
    main()

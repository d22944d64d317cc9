"""Numbered frames for the page of a WebSink, and what a tab shows of them."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import numpy as np

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from pipeline.frames import Finding, Overlay
from pipeline.settings import Secret, SinkContext
from tests.overlays.conftest import explain
from tests.support.limits import LIMIT_SECONDS

ANY = "http://127.0.0.1:0"
ROWS, COLUMNS = 4, 6


def shade(index):
    """Return a grey level that identifies a frame's number modulo 16, even after JPEG."""
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
        self.turn = threading.Lock()
        """Held by who uses the sink: it belongs to one thread at a time."""
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def put(self, overlay):
        """Put a frame of another camera, or another frame."""
        with self.turn:
            self.sink.put(overlay)

    def pause(self, camera):
        """Stop the frames of a camera."""
        with self.turn:
            self.paused.add(camera)

    def _run(self):
        index = 0
        while not self.stop.wait(1 / self.rate):
            with self.turn:
                for camera in self.cameras:
                    if camera not in self.paused:
                        self.sink.put(numbered(index, camera, self.size))
                self.sink.idle()
            index += 1


@contextmanager
def fed(*cameras, token=None, painted=False, origins=(), rate=30.0, video="auto", size=(120, 160)):
    cameras = cameras or ("line",)
    secrets = {} if token is None else {"token_file": Secret(token)}
    settings = WebSettings(uri=ANY, embed_origins=list(origins), video=video)
    with (
        WebSink(settings, SinkContext(cameras, secrets, painted=painted)) as sink,
        Feed(sink, *cameras, rate=rate, size=size) as feed,
    ):
        yield sink, feed


@contextmanager
def still_page(*cameras, **context):
    """Serve a page whose cameras give frames when a test puts them, and never become silent without them.

    The sink's clock stands still. So time alone changes no label, no state and no announcement.
    """
    opened_at = time.monotonic()
    with WebSink(WebSettings(uri=ANY), SinkContext(cameras, **context), clock=lambda: opened_at) as sink:
        yield sink


def serve_until(sink, page, selector):
    """Serve the viewers of a sink, as a run does between frames, until the page shows an element.

    A page that has not acknowledged two frames yet, or asks for another size, gets the newest frame in a later turn.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while not page.locator(selector).first.is_visible():
        assert time.monotonic() < deadline, f"the page does not show {selector}"
        sink.idle()
        page.wait_for_timeout(10)


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


def shown_frames(page, count=5):
    """Return what the page shows, again and again, until more than ``count`` frames have passed."""
    deadline = time.monotonic() + LIMIT_SECONDS
    seen = [shown(page)]
    while seen[-1]["index"] <= seen[0]["index"] + count:
        assert time.monotonic() < deadline, f"the page shows no further frame than {seen[-1]['index']}"
        page.wait_for_timeout(20)
        seen.append(shown(page))
    return seen


RECORD_ANNOUNCEMENTS = """() => {
  const line = document.getElementById("announcement");
  new MutationObserver(() => (line.dataset.all = (line.dataset.all ?? "") + line.textContent))
    .observe(line, {childList: true});
}"""
"""Keeps all announcements: the next one replaces the text of the last."""


def wait_for_announcement(page, text):
    """Wait until ``text`` has been announced since ``RECORD_ANNOUNCEMENTS``."""
    page.locator(f"#announcement[data-all*='{text}']").wait_for(state="attached")


def grey(colour):
    return sum(colour) / 3


SETTLED = """() => new Promise((resolve) => {
  const where = () => JSON.stringify(document.querySelector(".view canvas").getBoundingClientRect());
  let [last, frames] = [where(), 0];
  const look = () => {
    const now = where();
    [last, frames] = [now, now === last ? frames + 1 : 0];
    if (frames < 8) requestAnimationFrame(look); else resolve();
  };
  requestAnimationFrame(look);
})"""


def settled_box(page):
    """Return where the image lies in the tab, once it has stayed there."""
    page.evaluate(SETTLED)
    return page.locator(".view canvas").bounding_box()

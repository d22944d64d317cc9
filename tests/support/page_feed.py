"""Numbered frames for the page of a WebSink, and what a tab shows of them."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from pipeline.frames import Finding, Overlay
from pipeline.settings import Secret, SinkContext
from tests.overlays.conftest import explain

ANY = "http://127.0.0.1:0"
ROWS, COLUMNS = 4, 6


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
def fed(*cameras, token=None, painted=False, origins=(), rate=30.0, video="auto", size=(120, 160)):
    cameras = cameras or ("line",)
    secrets = {} if token is None else {"token_file": Secret(token)}
    settings = WebSettings(uri=ANY, embed_origins=list(origins), video=video)
    with (
        WebSink(settings, SinkContext(cameras, secrets, painted=painted)) as sink,
        Feed(sink, *cameras, rate=rate, size=size) as feed,
    ):
        yield sink, feed


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

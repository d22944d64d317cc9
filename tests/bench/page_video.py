"""Measures the page in JPEG and in H.264, in a real Chromium: bytes, age of the shown frames, processor time.

``python -m tests.bench.page_video [--seconds S] [--table] [CLIP ...]``. Each clip is shown as one camera in its own
size at 25 frames a second, and the first clip as twelve cameras of 640x360 at 10 frames a second; JPEG and H.264 in
turn. The server and the browser share the machine. Ages are those at which the page drew a frame.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import av
import cv2
import numpy as np

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from overlays.web.broadcast import WebFrame
from pipeline.frames import Explanation, Finding, Frame, Image, Overlay
from pipeline.settings import SinkContext
from tests.bench.figures import ROOT, environment, print_line, quantiles
from tests.support.browser import CHROMIUM, browsing

VIDEOS: Final = ROOT.parent / "shared/data/videos"
CLIPS: Final = tuple(
    VIDEOS / name for name in ("line_bottle-detection.mp4", "dashcam_solidWhiteRight.mp4", "dog_playing.mp4")
)
HEAT: Final = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
MAX_FRAMES: Final = 100
WARM_UP_SECONDS: Final = 1.0
MAX_EXTENSIONS: Final = 60
"""A measurement in which the page shows nothing goes on for so many times its length: on a busy machine."""
RECORD = """() => {
  window.ages = [];
  const seen = new MutationObserver((changes) => {
    for (const { target } of changes) window.ages.push(+target.dataset.age);
  });
  for (const card of document.querySelectorAll('.card')) {
    seen.observe(card, { attributes: true, attributeFilter: ['data-age'] });
  }
}"""


def images_of(clip: Path, size: tuple[int, int] | None = None) -> list[Image]:
    """Return the first images of a clip, scaled to ``size`` (width, height) if it is given."""
    images = []
    with av.open(str(clip)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            images.append(np.asarray(image if size is None else cv2.resize(image, size), np.uint8))
            if len(images) == MAX_FRAMES:
                break
    return images


class Feeder:
    """Puts the images of a clip into a page as several cameras, as a pipeline does: prepares them in parallel."""

    def __init__(self, sink: WebSink, images: Sequence[Image], cameras: Sequence[str], rate: float) -> None:
        """Set what is put, and its rate in frames per second of each camera."""
        self._sink, self._images, self._cameras, self._rate = sink, images, cameras, rate
        self.index = 0

    def feed(self, seconds: float, pool: ThreadPoolExecutor) -> None:
        """Put images for so long."""
        begun_at = time.monotonic()
        for step in range(round(seconds * self._rate)):
            image = self._images[self.index % len(self._images)]
            overlays = [self._overlay(image, camera) for camera in self._cameras]
            list(pool.map(self._sink.prepare, overlays))
            for overlay in overlays:
                self._sink.put(overlay)
            self.index += 1
            while (left := begun_at + (step + 1) / self._rate - time.monotonic()) > 0:
                time.sleep(min(left, 0.01))
                self._sink.idle()

    def _overlay(self, image: Image, camera: str) -> Overlay:
        frame = Frame(image, camera, self.index, time.monotonic())
        return Overlay(frame.image, Explanation(frame, (Finding("part", 0.9, HEAT, 1),), "recipro-cam/point", "layer4"))


def measure(
    browser: Any, images: Sequence[Image], mode: Literal["jpeg", "h264"], *, cameras: int, rate: float, seconds: float
) -> dict[str, Any]:
    """Return the figures of one case."""
    names = tuple(f"camera {number}" for number in range(cameras))
    sizes: list[int] = []
    with (
        WebSink(WebSettings(uri="http://127.0.0.1:0", video=mode), SinkContext(names)) as sink,
        ThreadPoolExecutor(min(cameras, 4)) as pool,
    ):
        counted = partial(_publish, sink._broadcaster.publish, sizes, {})
        sink._broadcaster.publish = counted  # type: ignore[method-assign]
        feeder = Feeder(sink, images, names, rate)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(sink.endpoint)
        feeder.feed(WARM_UP_SECONDS, pool)
        page.evaluate(RECORD)
        sizes.clear()
        before, encoded = feeder.index, (sink.encoded, sink.video_encoded)
        cpu_seconds, begun_at = time.process_time(), time.monotonic()
        feeder.feed(seconds, pool)
        for _ in range(MAX_EXTENSIONS):
            if sizes and page.evaluate("window.ages.length") and (mode == "jpeg" or sink.video_encoded > encoded[1]):
                break
            feeder.feed(seconds, pool)
        cpu_seconds, passed = time.process_time() - cpu_seconds, time.monotonic() - begun_at
        ages = page.evaluate("window.ages")
        page.close()
        frames = (feeder.index - before) * cameras
        assert ages, "the page shows nothing"
        assert mode == "jpeg" or sink.video_encoded > encoded[1], "the page takes no H.264"
        return {
            "mode": mode, "cameras": cameras, "size": f"{images[0].shape[1]}x{images[0].shape[0]}", "rate": rate,
            "frames": frames, "published": len(sizes), "shown": len(ages),
            "kib_per_frame": round(sum(sizes) / max(len(sizes), 1) / 1024, 2),
            "megabits_per_second": round(8e-6 * sum(sizes) / passed, 2),
            "server_cpu_ms_per_sent": round(1e3 * cpu_seconds / max(len(sizes), 1), 2),
            "server_share_of_a_core": round(cpu_seconds / passed, 3),
            "jpegs": sink.encoded - encoded[0], "h264": sink.video_encoded - encoded[1],
            **{f"age_{name}": value for name, value in quantiles(ages).items()},
        }  # fmt: skip


def _publish(publish: Any, sizes: list[int], last: dict[str, WebFrame], frame: WebFrame) -> None:
    """Publish a frame; record its size unless it is published again."""
    if last.get(frame.camera) is not frame:
        sizes.append(len(frame.packed))
    last[frame.camera] = frame
    publish(frame)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| clip | images | sent as | KiB per frame | age p50, p99 | server, ms per sent frame |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        images = f"{row['cameras']} x {row['size']}, {row['rate']:g}/s" if row["cameras"] > 1 else row["size"]
        ages = f"{row['age_p50_ms']:.0f}, {row['age_p99_ms']:.0f} ms"
        figures = (row["kib_per_frame"], ages, row["server_cpu_ms_per_sent"])
        lines.append(f"| {row['clip']} | {images} | {row['mode']} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def run(clips: Sequence[Path], seconds: float) -> list[dict[str, Any]]:
    """Measure all cases; print each as a line of JSON."""
    cases = [(clip, None, 1, 25.0) for clip in clips] + [(clips[0], (640, 360), 12, 10.0)]
    rows = []
    with browsing() as browser:
        for clip, size, cameras, rate in cases:
            images = images_of(clip, size)
            for mode in ("jpeg", "h264"):
                figures = measure(browser, images, mode, cameras=cameras, rate=rate, seconds=seconds)
                rows.append({"clip": clip.stem} | figures)
                print_line(bench="page_video", **rows[-1], **environment())
    return rows


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, default=CLIPS, metavar="CLIP")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--table", action="store_true", help="print a table, too")
    arguments = parser.parse_args()
    if CHROMIUM is None:
        parser.error("no Chromium: apt install chromium")
    rows = run(arguments.clips, arguments.seconds)
    if arguments.table:
        print(table(rows))


if __name__ == "__main__":
    main()

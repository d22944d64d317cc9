"""Measures rate and age of delivered frames: ``python -m tests.bench.delivery [--viewers 1 10 50] [--seconds N]
[--slow] [--page] [--crowd]``.

One publisher process draws and compresses 720p frames at 30 a second and sends them over the loopback; viewers are
processes of their own, ten ``Viewer`` each at the most. Every frame carries its number and the time it was made in its
header *and* its number as black and white squares in the picture; a viewer counts a frame only if both agree. Age is
arrival at the viewer less the time the frame was made, one clock for all since it is one machine. Prints one JSON line
per case. ``--slow`` puts a viewer that takes 5 frames a second beside one that takes all, ``--page`` does the same with
browsers' WebSockets (``page_delivery``), and ``--crowd`` kills, stops and resumes some of fifty (``crowd``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from overlays.render.jpeg import encode_image
from overlays.render.renderer import HeatRenderer
from overlays.sinks.settings import CurveSettings, ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.curve.keys import create_keyring
from overlays.wire.viewer import ReceivedFrame, Viewer
from pipeline.frames import Explanation, Finding, Frame, Image, Overlay
from tests.bench.crowd import crowd
from tests.bench.figures import environment, print_line, quantiles, resident_mib
from tests.bench.page_delivery import measure_page

RATE = 30.0
BITS, SIDE = 16, 16
"""The number in the picture: so many squares, so many pixels each, in the lowest rows."""
VIEWERS_EACH = 10
CONNECT_SECONDS = 120.0
NOISE = {"30 kB": 1.5, "150 kB": 10.0}
"""Amount of noise that gives a JPEG of about this size; the output has the true size."""


def noise_image(height: int, width: int, noise: float) -> Image:
    """Return an image; more noise gives a larger JPEG."""
    rows = np.linspace(40, 200, height)[:, None, None] + np.zeros((1, width, 3))
    grain = np.random.default_rng(0).normal(0, noise, (height, width, 3))
    return np.clip(rows + grain, 0, 255).astype(np.uint8)


def numbered(image: Image, number: int) -> Image:
    """Return the image with its number drawn into the lowest rows."""
    marked = image.copy()
    for bit in range(BITS):
        marked[-SIDE:, bit * SIDE : (bit + 1) * SIDE] = 255 * (number >> bit & 1)
    return marked


def number_of(image: Image) -> int:
    """Read the number."""
    half = SIDE // 2
    return sum(int(image[-half, bit * SIDE + half].mean() > 127) << bit for bit in range(BITS))


def publish(pipe: Any, settings: ZeroMqSettings, image: Image, seconds: float, viewers: int) -> None:
    """Draw and send at the rate after all viewers have subscribed; report the processor time."""
    import cv2

    cv2.setNumThreads(1)
    heat = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    finding = Finding("water bottle", 0.9, heat, 1)
    renderer = HeatRenderer()
    drawing = sending = 0.0
    with ZeroMqSink(settings) as sink:
        pipe.send(sink.endpoint)
        deadline = time.monotonic() + CONNECT_SECONDS
        while sink.viewers < viewers and time.monotonic() < deadline:
            sink.idle()
            time.sleep(0.02)
        settled = most = 0.0
        started_at, cpu = time.monotonic(), time.process_time()
        frames = 0
        while (now := time.monotonic()) < started_at + seconds:
            frame = Frame(image, "bench", frames, now)
            overlay = renderer.render(Explanation(frame, (finding,), "recipro-cam/point", "layer4"))
            drawing += time.monotonic() - now
            marked = Overlay(numbered(overlay.image, frames), overlay.explanation)
            at = time.monotonic()
            sink.put(marked)
            sending += time.monotonic() - at
            frames += 1
            most = max(most, resident_mib())
            settled = most if frames == RATE else settled
            time.sleep(max(0.0, started_at + frames / RATE - time.monotonic()))
        spent = time.monotonic() - started_at
        pipe.send({
            "frames": frames, "encoded": sink.encoded, "viewers": sink.viewers,
            "render_share_of_a_core": round(drawing / spent, 3), "put_share_of_a_core": round(sending / spent, 3),
            "process_share_of_a_core": round((time.process_time() - cpu) / spent, 3),
            "rss_mib_after_a_second": settled, "rss_mib_at_most": most, "rss_mib_at_last": resident_mib(),
        })  # fmt: skip
        pipe.recv()


def look(pipe: Any, endpoint: str, keys: dict[str, str], count: int, pace: float) -> None:
    """Receive with ``count`` viewers until the end is requested; report the number of frames and their ages."""
    ages: list[list[float]] = [[] for _ in range(count)]
    wrong = [0] * count
    stop = threading.Event()

    def watch(k: int, viewer: Viewer) -> None:
        for received in viewer.messages(stop):
            ages[k].append(age_of(received, pace))
            # Decoding every picture of ten viewers would measure this process instead.
            if len(ages[k]) % 30 == 1 and number_of(received.image) != received.header.index & (1 << BITS) - 1:
                wrong[k] += 1
            if pace:
                time.sleep(pace)

    with ExitStack() as stack:
        viewers = [stack.enter_context(Viewer(endpoint, **keys)) for _ in range(count)]
        threads = [threading.Thread(target=watch, args=(k, viewer)) for k, viewer in enumerate(viewers)]
        for thread in threads:
            thread.start()
        pipe.recv()
        stop.set()
        for thread in threads:
            thread.join()
    pipe.send((ages, sum(wrong)))


def age_of(received: ReceivedFrame, pace: float) -> float:
    """Return the age of a frame: on arrival, or for a slow viewer when it is read."""
    return (time.time() if pace else received.received_at_unix) - received.header.taken_at_unix


def measure(
    viewers: int, *, curve: bool, seconds: float, paces: tuple[float, ...] = (0.0,), noise: float = 8.0
) -> dict[str, Any]:
    """Run one case and return its figures; one group of viewers per pace."""
    spawn = multiprocessing.get_context("spawn")
    image = noise_image(720, 1280, noise)
    with tempfile.TemporaryDirectory() as folder:
        settings, keys = ZeroMqSettings(uri="tcp://127.0.0.1:0"), {}
        if curve:
            ring = Path(folder) / "keys"
            create_keyring(ring)
            curve = CurveSettings(
                secret_key_file=str(ring / "server.key_secret"), authorized_keys=str(ring / "allowed")
            )
            settings = settings.model_copy(update={"curve": curve})
            keys = {"key": str(ring / "viewer.key_secret"), "server_key": str(ring / "server.key")}
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=publish, args=(theirs, settings, image, seconds, viewers * len(paces)))
        server.start()
        endpoint = ours.recv()
        lookers = []
        for pace in paces:
            for first in range(0, viewers, VIEWERS_EACH):
                mine, other = spawn.Pipe()
                count = min(VIEWERS_EACH, viewers - first)
                process = spawn.Process(target=look, args=(other, endpoint, keys, count, pace))
                process.start()
                lookers.append((pace, mine, process))
        measured = ours.recv()
        figures = {}
        wrong = 0
        answers = []
        for pace, mine, _ in lookers:
            mine.send("stop")
            ages, bad = mine.recv()
            wrong += bad
            answers.extend((pace, each) for each in ages)
        ours.send("end")
        for process in (server, *(each for _, _, each in lookers)):
            process.join(10)
    for pace in paces:
        groups = [each for its, each in answers if its == pace]
        rates = sorted(len(each) / seconds for each in groups)
        figures["slow" if pace else "fast"] = {
            "viewers": len(groups), "frames_per_second_least": round(rates[0], 1),
            "frames_per_second_most": round(rates[-1], 1), **quantiles([age for each in groups for age in each]),
        }  # fmt: skip
    assert wrong == 0, "a picture showed another number than its header"
    return {"jpeg_kb": round(len(encode_image(image)) / 1000), "publisher": measured, **figures}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print one JSON line a case, and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, nargs="*", default=[1, 10, 50])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--crowd", action="store_true")
    options = parser.parse_args(arguments)
    cases: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (
            f"{count} viewers, CURVE {'on' if curve else 'off'}",
            partial(measure, count, curve=curve, seconds=options.seconds),
        )
        for count in options.viewers
        for curve in (False, True)
    ]
    if options.slow:
        slow = partial(measure, 1, curve=False, seconds=options.seconds, paces=(0.0, 0.2))
        cases += [(f"slow beside fast, {name}", partial(slow, noise=noise)) for name, noise in NOISE.items()]
    if options.page:
        looked = partial(measure_page, seconds=options.seconds, image=noise_image(720, 1280, 8.0))
        cases += [(f"page, {count} viewers", partial(looked, count)) for count in options.viewers]
        cases.append(("page, slow beside fast", partial(looked, 2, slow=1)))
    if options.crowd:
        cases.append(("crowd of 50, killed, stopped, resumed", partial(crowd, options.seconds)))
    lines = []
    for name, run in cases:
        line = {
            "benchmark": "delivery",
            "scope": "720p, 30 frames/s, loopback",
            "case": name,
            "seconds": options.seconds,
        }
        line |= run() | environment()
        print_line(**line)
        lines.append(line)
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])

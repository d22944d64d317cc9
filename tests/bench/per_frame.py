"""Measures what a frame costs besides network and drawing: many cameras, an engine that computes nothing, no decoding.

    uv run python -m tests.bench.per_frame --cameras 96 --rate 30 --seconds 8

Cameras give the same image from memory, at a rate, each in a thread of its own, as in a run. Prints one JSON line: the
processor time per frame and as a share of a core, and the age of frames when they reach the sink. Processor time does
not count the time that other programs use the machine.
"""

from __future__ import annotations

import argparse
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from overlays.render.renderer import HeatRenderer
from pipeline.frames import Explanation, Finding, Frame, Overlay
from pipeline.loop import Pipeline
from pipeline.ports import Explainer, Sink, Source
from pipeline.result import RunLimits
from tests.bench.figures import environment, print_line, quantiles
from tests.support.fakes import FakeSource

IMAGE = np.zeros((72, 128, 3), np.uint8)
HEAT = np.linspace(0.0, 1.0, 49, dtype=np.float32).reshape(7, 7)


class Camera(FakeSource):
    """Gives the same image at a rate; counts the frames for which it comes too late."""

    live = True

    def __init__(self, name: str, rate: float, offset_seconds: float) -> None:
        """Create a camera whose first frame comes after an offset."""
        super().__init__(camera=name)
        self.rate, self.offset_seconds = rate, offset_seconds

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give frames until it is stopped."""
        started_at, index = time.monotonic() + self.offset_seconds, 0
        while not stop.wait(max(0.0, started_at + index / self.rate - time.monotonic())):
            yield Frame(IMAGE, self.camera, index, time.monotonic())
            index += 1


class NullEngine(Explainer):
    """Explains every frame by the same map."""

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Return one explanation per frame."""
        return [Explanation(frame, (Finding("nothing", 1.0, HEAT),), "null", "none") for frame in frames]


class Ages(Sink):
    """Takes frames without images, and notes how old they are."""

    uri = "ages"

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds: list[float] = []

    def needs_image(self, camera: str) -> bool:
        """Return False: nothing is drawn."""
        return False

    def put(self, overlay: Overlay) -> None:
        """Note the age of a frame."""
        self.seconds.append(overlay.explanation.frame.age_seconds())


class IdleCamera(Camera):
    """Waits as a camera does, and gives no frames: the cost of the camera's own thread."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Wait for the times of all frames until it is stopped."""
        for _ in super().frames(stop):
            pass
        yield from ()


def measure(cameras: int, rate: float, limits: RunLimits) -> dict[str, Any]:
    """Return the cost of a frame; that of the cameras' own clocks is measured apart and taken off."""
    sink, seconds = Ages(), limits.seconds or 0.0
    own, _ = run([IdleCamera(f"camera {k}", rate, k / cameras / rate) for k in range(cameras)], sink, limits)
    used, outcome = run([Camera(f"camera {k}", rate, k / cameras / rate) for k in range(cameras)], sink, limits)
    settled = sink.seconds[len(sink.seconds) // 5 :] or [float("nan")]
    cost = used - own
    return {
        "frames": outcome.received, "delivered": len(sink.seconds),
        "frame_ms": round(1e3 * cost / max(len(sink.seconds), 1), 4), "share_of_a_core": round(cost / seconds, 3),
        "age": quantiles(settled),
    }  # fmt: skip


def run(cameras: Sequence[Source], sink: Ages, limits: RunLimits) -> tuple[float, Any]:
    """Return the processor time of a run in seconds, and its result."""
    sources = [(camera, "drop-oldest") for camera in cameras]
    pipeline = Pipeline(sources, NullEngine(), HeatRenderer(), [sink], limits=limits, stop=threading.Event())
    started_at = time.process_time()
    outcome = pipeline.run()
    return time.process_time() - started_at, outcome


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=96)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window-ms", type=float, default=5.0, help="engine.batch_window_ms (default: that of a run)")
    arguments = parser.parse_args()
    limits = RunLimits(
        batch_size=arguments.batch,
        batch_window_seconds=arguments.window_ms / 1e3,
        seconds=arguments.seconds,
        sink_queue_frames=256,
    )
    options = {"cameras": arguments.cameras, "rate": arguments.rate, "batch": arguments.batch}
    figures = measure(arguments.cameras, arguments.rate, limits)
    print_line(bench="per_frame", **options, window_ms=arguments.window_ms, **figures, **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

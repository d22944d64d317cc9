"""Measures the cost and gain of batches over cameras: frames per second, age, and fair shares.

    uv run python -m tests.bench.batches --model resnet18 --cameras 12 --rate 10 --batches 12 4 1
    uv run python -m tests.bench.batches --line --cameras 12 --rate 10 --seconds 60

Cameras give pictures from memory, at a rate, so nothing is decoded; frames are explained, drawn, and timed as they
leave. Batch sizes take turns. Random weights: what is measured does not depend on them. ``--line`` runs what
``run.py stream`` runs with as many simulated lines: the shipped network and the default settings, every frame drawn.
The lines start at random times within a frame's time, as cameras do; drops in the first two seconds, while the first
belts are drawn, are counted apart.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from commands.wiring.cameras import with_all_cameras
from commands.wiring.kinds import load_config
from commands.wiring.run import open_run
from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig, OverlayConfig
from pipeline.frames import Frame, Overlay
from pipeline.loop import Pipeline
from pipeline.ports import Sink, Source, SourceWrapper
from pipeline.result import RunLimits, RunResult
from tests.bench.figures import environment, print_line, quantiles
from tests.support.fakes import FakeSource

START_SECONDS = 2.0
PICTURE = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)


class Camera(FakeSource):
    """Gives an image at a rate; skips images for which it is too late."""

    live = True

    def __init__(self, name: str, rate: float) -> None:
        """Create a camera with a name and a frame rate."""
        super().__init__(camera=name)
        self.rate = rate

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give frames until it is stopped."""
        index, started_at = 0, time.monotonic() + random.random() / self.rate
        while not stop.wait(max(0.0, started_at + index / self.rate - time.monotonic())):
            index = max(index, int((time.monotonic() - started_at) * self.rate))
            yield Frame(PICTURE.copy(), self.camera, index, time.monotonic())
            index += 1


class Delayed(SourceWrapper):
    """A source whose first frame comes later."""

    def __init__(self, inner: Source, delay_seconds: float) -> None:
        """Wrap a source that is entered."""
        self.inner, self.camera, self.uri, self._delay_seconds = inner, inner.camera, inner.uri, delay_seconds

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of the inner source."""
        stop.wait(self._delay_seconds)
        yield from self.inner.frames(stop)


class Stopwatch(Sink):
    """A sink that records the age and the camera of each delivered frame."""

    uri = "stopwatch"

    def __init__(self) -> None:
        """Begin with nothing."""
        self.ages: list[float] = []
        self.counts: dict[str, int] = {}

    def needs_image(self, camera: str) -> bool:
        """Return True: every frame is rendered."""
        return True

    def put(self, overlay: Overlay) -> None:
        """Record a frame."""
        frame = overlay.explanation.frame
        if overlay.signal_loss is None:
            self.ages.append(frame.age_seconds())
            self.counts[frame.camera] = self.counts.get(frame.camera, 0) + 1


def measure(explainer: NetworkExplainer, cameras: int, rate: float, batch: int, seconds: float) -> dict[str, Any]:
    """Return the figures of some seconds of many cameras."""
    sink = Stopwatch()
    limits = RunLimits(batch_size=batch, batch_window_seconds=0.005, seconds=seconds)
    sources = [(Camera(f"camera{k}", rate), "drop-oldest") for k in range(cameras)]
    drawing = HeatRenderer(**OverlayConfig().model_dump())
    outcome = Pipeline(sources, explainer, drawing, [sink], limits=limits, stop=threading.Event()).run()
    p50, p99 = np.percentile(sink.ages, [50, 99])
    shares = [sink.counts.get(source.camera, 0) for source, _ in sources]
    return {
        "frames_per_second": round(outcome.explained / outcome.seconds, 1),
        "age_p50_ms": round(1e3 * float(p50)), "age_p99_ms": round(1e3 * float(p99)),
        "least_to_most_share": round(min(shares) / max(shares), 3),
    }  # fmt: skip


def measure_line(cameras: int, rate: float, seconds: float, frames: int | None = None) -> dict[str, Any]:
    """Return the drops, ages and shares of simulated lines in a run with the default settings, or of some frames."""
    sources = [{"uri": f"line:?fps={rate:g}&seed={k}", "name": f"line{k}"} for k in range(cameras)]
    config = with_all_cameras(load_config({"sources": sources, "seconds": seconds, "frames": frames}, "benchmark"))
    sink = Stopwatch()
    with ExitStack() as stack:
        run = open_run(config, stack)
        delayed = [(Delayed(source, random.random() / rate), overflow) for source, overflow in run.sources]
        early: Counter[str] = Counter()

        def count_early(result: RunResult) -> None:
            if result.seconds < START_SECONDS:
                early.update({str(reason): count - early[str(reason)] for reason, count in result.drops.items()})

        used_seconds = time.process_time()
        outcome = Pipeline(
            delayed, run.explainer, run.renderer, [sink], limits=run.limits, stop=threading.Event(), watch=count_early
        ).run()
        used_seconds = time.process_time() - used_seconds
    counts = [sink.counts.get(source["name"], 0) for source in sources]
    return {
        "batch": run.limits.batch_size, "seconds": round(outcome.seconds, 1), "received": outcome.received,
        "delivered": outcome.delivered, "drops_in_first_2_s": dict(early),
        "later_drops": {str(reason): count - early[str(reason)] for reason, count in outcome.drops.items()},
        "fairness": round(max(counts) / max(min(counts), 1), 3), "age": quantiles(sink.ages),
        "core_ms_per_frame": round(1e3 * used_seconds / max(outcome.delivered, 1), 2),
        "share_of_cores": round(used_seconds / outcome.seconds / (os.cpu_count() or 1), 3),
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names; one JSON line a turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[12, 4, 1])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--line", action="store_true", help="run the shipped network on simulated lines, once")
    arguments = parser.parse_args()
    if arguments.line:
        fixed = {"cameras": arguments.cameras, "rate": arguments.rate}
        print_line(bench="line", **fixed, **measure_line(*fixed.values(), arguments.seconds), **environment())
        return
    explainers = {}
    for batch in arguments.batches:
        config = EngineConfig(model=arguments.model, backend=arguments.backend, batch=batch)
        explainers[batch] = NetworkExplainer(load_network(arguments.model, weights="random"), config)
    for _ in range(arguments.rounds):
        for batch, explainer in explainers.items():
            figures = measure(explainer, arguments.cameras, arguments.rate, batch, arguments.seconds)
            fixed = {
                "model": arguments.model,
                "backend": arguments.backend,
                "cameras": arguments.cameras,
                "rate": arguments.rate,
            }
            print_line(bench="batches", **fixed, batch=batch, **figures, **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

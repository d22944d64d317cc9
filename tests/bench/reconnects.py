"""Measures the growth of memory, threads and handles over hundreds of reconnects of one camera in the whole pipeline.

    uv run python -m tests.bench.reconnects --times 300

Two simulated cameras in a process of their own, decoded, explained by the shipped network, drawn and seen off. One of
them is closed, reset, or killed and brought back, in turn, each time as soon as some of its pictures have left; the
other is healthy. A JSON line every so many reconnects, and one for the whole: growth is from the end of the warm-up to
the end, by straight line through all intervals behind it, and by the last less the first. Memory is settled as
``run.py`` settles it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

from overlays.render.renderer import HeatRenderer
from pipeline.loop import Pipeline
from pipeline.ports import Explainer, Source
from pipeline.result import RunLimits
from run import set_up_process
from stream.sources import build_source
from tests.bench.figures import environment, print_line
from tests.bench.soak import shipped, standing
from tests.support.cameras import Elsewhere, elsewhere
from tests.support.probes import NullExplainer, ProbeSink

FAULTY, HEALTHY = 0, 1
_WAYS: Final = ("close", "reset", "die")
_LIMIT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of the run."""

    times: int = 300
    every: int = 10
    """Reconnects from one line to the next."""
    warm_up: int = 60
    """Reconnects before growth is counted."""
    size: str = "640x480"
    rate: int = 10
    pictures: int = 3
    """Number of images of each connection before it is broken."""


class Endurance:
    """A run whose camera is disconnected repeatedly."""

    def __init__(self, plan: Plan, cameras: Elsewhere, sources: list[Source], witness: ProbeSink) -> None:
        """Create a run."""
        self._plan = plan
        self._cameras = cameras
        self._sources = sources
        self._witness = witness
        self._ways = cycle(_WAYS)
        self._begun = time.monotonic()
        self.shown = {source.camera: 0 for source in sources}

    def reconnect(self) -> None:
        """Break the camera's connection once it has shown some pictures."""
        source = self._sources[FAULTY]
        before, reconnects = self._count(source.camera), source.health.reconnects
        self._until(lambda: self._count(source.camera) >= before + self._plan.pictures, "pictures")
        way = next(self._ways)
        self._cameras.tell(way, FAULTY)
        if way == "die":
            self._until(lambda: source.health.state != "live", "noticed")
            self._cameras.tell("come_back", FAULTY)
        self._until(lambda: source.health.reconnects > reconnects, "live again")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Reconnect as often as planned; give a row at each interval."""
        for count in range(1, self._plan.times + 1):
            self.reconnect()
            if count % self._plan.every == 0:
                yield {
                    "bench": "reconnects", "at_s": round(time.monotonic() - self._begun, 1), "reconnects": count,
                    **standing(), "shown": dict(self.shown),
                }  # fmt: skip

    def _count(self, camera: str) -> int:
        for seen in self._witness.taken():
            self.shown[seen.camera] += 1
        return self.shown[camera]

    def _until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {_LIMIT_SECONDS} s: {what}; {self._sources[FAULTY].health}")
            time.sleep(0.005)


def endure(plan: Plan, explainer: Explainer) -> list[dict[str, Any]]:
    """Run the plan; print a line for each interval and one for the whole, and return them."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        there = stack.enter_context(elsewhere(2, size=plan.size, rate=plan.rate))
        sources = [
            stack.enter_context(build_source(url, camera=name))
            for url, name in zip(there.urls, ("faulty", "healthy"), strict=True)
        ]
        witness = stack.enter_context(ProbeSink(looks=True))
        stop = threading.Event()

        def run() -> None:
            lanes = [(source, "drop-oldest") for source in sources]
            Pipeline(
                lanes,
                explainer,
                HeatRenderer(),
                [witness],
                limits=RunLimits(batch_size=2, batch_window_seconds=0.005),
                stop=stop,
            ).run()

        thread = threading.Thread(target=run, name="run")
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        for row in Endurance(plan, there, sources, witness).rows():
            rows.append(row)
            print_line(**row)
    rows.append(whole(plan, rows))
    print_line(**rows[-1], **environment())
    return rows


def whole(plan: Plan, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the whole run: the growth after the first use of everything."""
    settled = [row for row in rows if row["reconnects"] >= plan.warm_up] or rows
    first, last = settled[0], settled[-1]
    at, rss = [row["reconnects"] for row in settled], [row["rss_mb"] for row in settled]
    slope = statistics.linear_regression(at, rss).slope if len(settled) > 1 else 0.0
    return {
        "bench": "reconnects, whole", "times": plan.times, "counted_from": first["reconnects"], "size": plan.size,
        "seconds": last["at_s"], "rss_mb": [first["rss_mb"], last["rss_mb"]],
        "rss_growth_mb": round(last["rss_mb"] - first["rss_mb"], 1),
        "rss_growth_mb_per_100_by_line": round(100 * slope, 2), "rss_most_mb": max(rss),
        "threads": [min(row["threads"] for row in settled), max(row["threads"] for row in settled)],
        "handles": [min(row["handles"] for row in settled), max(row["handles"] for row in settled)],
    }  # fmt: skip


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=300)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=60)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--rate", type=int, default=10)
    parser.add_argument("--explainer", choices=["shipped", "none"], default="shipped")
    parser.add_argument("--unsettled", action="store_true", help="leave the C library's heap as it is by default")
    arguments = parser.parse_args()
    if not arguments.unsettled:
        set_up_process()
    plan = Plan(arguments.times, arguments.every, arguments.warm_up, arguments.size, arguments.rate)
    endure(plan, shipped() if arguments.explainer == "shipped" else NullExplainer())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

"""Measures a camera four times as fast as the engine: ages of frames, and whether every drop is counted.

    uv run python -m tests.bench.overload --seconds 120

One camera of our own paints number and time into its pictures; the engine takes a fixed time for each. Ages are read
from the pictures as they leave. Dropped: what the pump counted, beside the numbers that are missing in what left.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence

from overlays.render.renderer import HeatRenderer
from pipeline.frames import Explanation, Frame
from pipeline.loop import Pipeline
from pipeline.ports import Source
from pipeline.result import RunLimits
from stream.sources import build_source
from tests.bench.figures import environment, print_line, quantiles
from tests.support.feed import Feed
from tests.support.probes import NullExplainer, ProbeSink
from tests.support.rtsp_server import RtspServer


class Slow(NullExplainer):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Return the same finding for each frame, after the simulated time of an engine."""
        time.sleep(self._seconds)
        return super().explain(frames)


def measure(seconds: float, engine_rate: float, times: float) -> dict[str, object]:
    """Run one camera into one slow engine."""
    camera_rate = round(times * engine_rate)
    witness, stop = ProbeSink(), threading.Event()
    with Feed(rate=camera_rate, key_every=camera_rate) as feed, RtspServer(feed) as server:
        source: Source = build_source(server.url(), camera="fast")
        with source:
            outcome = Pipeline(
                [(source, "drop-oldest")], Slow(1.0 / engine_rate), HeatRenderer(), [witness],
                limits=RunLimits(seconds=seconds, batch_size=1), stop=stop,
            ).run()  # fmt: skip
    seen = witness.taken()
    numbers = [sighting.mark.number for sighting in seen if sighting.mark]
    missing = numbers[-1] - numbers[0] + 1 - len(numbers)
    indices = [sighting.index for sighting in seen]
    by_index = indices[-1] - indices[0] + 1 - len(indices)
    bound = 2.0 / engine_rate + 1.0 / camera_rate
    ages = [sighting.age_seconds for sighting in seen if sighting.mark]
    return {
        "bench": "overload", "seconds": seconds, "camera_rate": camera_rate, "engine_rate": engine_rate,
        "taken": outcome.received, "explained": outcome.explained, "dropped": outcome.dropped,
        "drops": {str(reason): count for reason, count in outcome.drops.items()},
        "every_frame_is_accounted_for": outcome.received == outcome.delivered + outcome.dropped,
        "numbers_missing_in_the_pictures": missing, "indices_missing": by_index, "shown": len(seen),
        "unreadable": len(seen) - len(numbers), "age": quantiles(ages), "bound_ms": round(1e3 * bound, 1),
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--engine-rate", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=4.0)
    arguments = parser.parse_args()
    print_line(**measure(arguments.seconds, arguments.engine_rate, arguments.times), **environment())


if __name__ == "__main__":
    main()

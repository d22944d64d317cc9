"""Cost of a second network on trial: ``python -m tests.bench.trial_cost [--model NAME] [--rounds N]``.

Explains the same decoded frames of the simulated line by one network and by two copies of it, frame by frame in turn,
and prints one line of JSON: the median milliseconds of both, and the median of the ratios of each pair, with its
quartiles. Decoding is not part of either: both networks get one frame.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

from commands.wiring.run import make_explainer
from pipeline.config_loader import validate_config
from pipeline.frames import Frame
from pipeline.ports import Explainer
from pipeline.trial import TrialExplainer
from stream.simulated.scene import Scene, draw_frame
from tests.bench.guards import commit

WARM_UP = 5
"""Rounds that are not counted."""


def measure(one: Explainer, two: Explainer, frames: Sequence[Frame]) -> dict[str, Any]:
    """Return the times of one and of two networks; the first ``WARM_UP`` frames are not counted."""
    pairs = []
    for number, frame in enumerate(frames):
        explainers = (one, two) if number % 2 else (two, one)
        seconds = {}
        for explainer in explainers:
            started_at = time.perf_counter()
            [explained] = explainer.explain([frame])
            seconds[explainer] = time.perf_counter() - started_at
            if (explained.trial is not None) != (explainer is two):
                raise RuntimeError("the second network explained the wrong frames")
        pairs.append((seconds[one], seconds[two]))
    pairs = pairs[WARM_UP:]
    low, middle, high = statistics.quantiles([both / alone for alone, both in pairs], n=4)
    return {
        "frames": len(pairs),
        "one_ms": round(1e3 * statistics.median(alone for alone, _ in pairs), 3),
        "two_ms": round(1e3 * statistics.median(both for _, both in pairs), 3),
        "ratio": round(middle, 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="line_net")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args(arguments)
    config = validate_config({"engine": {"model": options.model, "backend": options.backend}}, "bench")
    first, second = make_explainer(config), make_explainer(config)
    scene = Scene(size=(640, 480), seed=7, fps=30.0)
    images = [draw_frame(scene, 3 * index)[0] for index in range(options.rounds + WARM_UP)]
    frames = [Frame(image, "line", index, 0.0, index / 10.0) for index, image in enumerate(images)]
    measured = measure(first, TrialExplainer(first, second, "copy"), frames)
    result = {"model": options.model, "backend": first.info.backend, **measured, "machine": platform.machine(),
              "commit": commit()}  # fmt: skip
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()

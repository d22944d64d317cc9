"""Measures the throughput of the pipeline against its single stages, and the age of delivered frames.

    uv run python -m tests.bench.pipeline --video VIDEO.mp4 --model resnet18 --frames 200

First part: a video through decode, engine, renderer, ZeroMQ (with a viewer in another process) and a recorder, and each
of these stages alone on the same frames, in turn. Second part: the age of frames at 30 frames/s from the simulated
line, read at the viewer from each message's own clock. Prints one JSON line per part.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from overlays.render.renderer import HeatRenderer
from overlays.sinks.registry import build_sink
from overlays.wire.message import encode
from pipeline.config import EngineConfig
from pipeline.frames import Explanation, Frame, Overlay
from pipeline.loop import Pipeline
from pipeline.ports import Source
from pipeline.result import RunLimits, RunResult
from stream.sources import build_source
from tests.bench.figures import ROOT, environment, print_line, quantiles


def free_address() -> str:
    """Return a free loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def look(address: str, ages: Any, stop: Any) -> None:
    """Receive in another process; report the age in seconds of every message after its image was decoded."""
    from overlays.wire.viewer import Viewer

    with Viewer(address) as viewer:
        ages.put(None)  # ready: starting a process takes seconds
        for received in viewer.messages_or_none(threading.Event()):
            if stop.is_set():
                return
            if received is not None:
                _ = received.image
                ages.put(received.age_seconds())


@contextmanager
def watched() -> Iterator[tuple[str, list[float]]]:
    """Yield an address that another process receives from, and the list that has the ages after the block."""
    context = multiprocessing.get_context("spawn")
    ages, stop = context.Queue(), context.Event()
    address = free_address()
    seen: list[float] = []
    viewing = context.Process(target=look, args=(address, ages, stop))
    viewing.start()
    try:
        ages.get(timeout=60)
        yield address, seen
    finally:
        stop.set()
        while viewing.is_alive() or not ages.empty():
            with suppress(queue.Empty):
                seen.append(ages.get(timeout=0.2))
        viewing.join()


def read(video: Path, count: int) -> list[Frame]:
    """Decode the first frames of a video."""
    frames = []
    with build_source(str(video)) as source:
        for frame in source.frames(threading.Event()):
            frames.append(frame)
            if len(frames) == count:
                break
    return frames


def journey(
    source: Source, explainer: NetworkExplainer, uris: list[str], limits: RunLimits, *, live: bool
) -> RunResult:
    """Carry frames from one source to sinks."""
    with ExitStack() as stack:
        stack.enter_context(source)
        sinks = [stack.enter_context(build_sink(uri, cameras=[source.camera])) for uri in uris]
        overflow = "drop-oldest" if live else "wait"
        stop = threading.Event()
        return Pipeline([(source, overflow)], explainer, HeatRenderer(), sinks, limits=limits, stop=stop).run()


def timed(call: Callable[[], object]) -> float:
    """Return the seconds a call took."""
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


def throughput(video: Path, explainer: NetworkExplainer, count: int, rounds: int, folder: Path) -> dict[str, object]:
    """Time the whole and each stage alone, in turn; frames per second."""
    frames = read(video, count)
    explained: list[Explanation] = [explainer.explain([frame])[0] for frame in frames]
    renderer = HeatRenderer()
    overlays: list[Overlay] = [renderer.render(explanation) for explanation in explained]
    limits = RunLimits(frames=len(frames), batch_size=1)

    def whole() -> None:
        outcome = journey(build_source(str(video)), explainer, [address, str(folder / "whole.mp4")], limits, live=False)
        if outcome.explained != len(frames):
            message = f"{outcome.explained} of {len(frames)} frames explained"
            raise RuntimeError(message)

    def recorded() -> None:
        with build_sink(str(folder / "alone.mp4"), cameras=[frames[0].camera]) as sink:
            for overlay in overlays:
                sink.put(overlay)

    stages: dict[str, Callable[[], object]] = {
        "whole": whole,
        "decode": lambda: read(video, count),
        "explain": lambda: [explainer.explain([frame]) for frame in frames],
        "render": lambda: [renderer.render(explanation) for explanation in explained],
        "record": recorded,
        "jpeg and wire": lambda: [
            encode(explanation, sent_at_unix=time.time(), now_monotonic=time.monotonic()) for explanation in overlays
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    busy: dict[str, list[float]] = {name: [] for name in stages}
    with watched() as (address, seen):
        for _ in range(rounds):
            for name, call in stages.items():
                worked = time.process_time()
                seconds[name].append(timed(call))
                busy[name].append(time.process_time() - worked)
    rates = {name: round(len(frames) / median(durations), 1) for name, durations in seconds.items()}
    core_ms = {name: round(1e3 * median(worked) / len(frames), 2) for name, worked in busy.items()}
    # No arrangement of the stages is faster than all cores busy with nothing but them.
    most = 1e3 * (os.cpu_count() or 1) / sum(spent for name, spent in core_ms.items() if name != "whole")
    narrowest = min((name for name in stages if name != "whole"), key=lambda name: rates[name])
    return {
        "bench": "pipeline throughput", "video": video.name, "size": [frames[0].width, frames[0].height],
        "frames": len(frames), "rounds": rounds, "engine": str(explainer.info), "frames_per_second": rates,
        "narrowest": narrowest, "whole_over_narrowest": round(rates["whole"] / rates[narrowest], 3),
        "whole_over_narrowest_by_round": [
            round(a / b, 3) for a, b in zip(seconds[narrowest], seconds["whole"], strict=True)
        ],
        "core_ms_per_frame": core_ms, "frames_per_second_if_all_cores_did_nothing_else": round(most, 1),
        "whole_over_that": round(rates["whole"] / most, 3), "seen_by_viewer": len(seen),
    }  # fmt: skip


def freshness(explainer: NetworkExplainer, seconds: float, folder: Path) -> dict[str, object]:
    """Run the line at 30 frames/s into ZeroMQ and a recorder; return the ages at a viewer."""
    source = build_source("line:?fps=30&size=1280x720&seed=7")
    limits = RunLimits(seconds=seconds, batch_size=1)
    with watched() as (address, seen):
        outcome = journey(source, explainer, [address, str(folder / "line.mp4")], limits, live=True)
    return {
        "bench": "pipeline freshness", "source": source.uri, "engine": str(explainer.info),
        "taken": outcome.received, "explained": outcome.explained, "dropped": outcome.dropped,
        "seen_by_viewer": len(seen), "age_at_viewer": quantiles(seen),
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    engine = EngineConfig(model=arguments.model, backend=arguments.backend, precision=arguments.precision)
    explainer = NetworkExplainer(load_network(arguments.model, weights="random"), engine)
    line = NetworkExplainer(
        load_network("line_net", weights=ROOT / "configs" / "models" / "line.safetensors"), EngineConfig()
    )
    with tempfile.TemporaryDirectory() as folder:
        print_line(
            **throughput(arguments.video, explainer, arguments.frames, arguments.rounds, Path(folder)), **environment()
        )
        print_line(**freshness(line, arguments.seconds, Path(folder)), **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

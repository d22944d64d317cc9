"""Runs many cameras for a long time: memory, threads, file handles and ages must not grow.

    uv run python -m tests.bench.soak --minutes 5 --cameras 12 --plot soak.png

Simulated cameras in a process of their own, two of them flapping, run through the whole pipeline: RTSP, decoding, the
shipped network, drawing, a sink. Every ten seconds one JSON line, and one for the whole behind them: ages are those of
the pictures when they left, by the time painted into them; ``healthy_share`` is the least share of a camera's pictures
that left, of those that were taken meanwhile, among the cameras that do not flap.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import statistics
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig
from pipeline.loop import Pipeline
from pipeline.ports import Explainer
from pipeline.result import RunLimits, RunResult
from run import set_up_process
from stream.sources import build_source
from tests.bench.figures import ROOT, environment, print_line
from tests.support.cameras import elsewhere
from tests.support.probes import NullExplainer, Observation, ProbeSink


class _Mallinfo2(ctypes.Structure):
    """malloc.h's ``mallinfo2``."""

    _words = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(word, ctypes.c_size_t) for word in _words.split()]


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of the run."""

    seconds: float
    cameras: int = 12
    flapping: int = 2
    rate: int = 10
    every_seconds: float = 10.0
    looks: bool = True
    """True if frames are drawn, as for a viewer."""


def shipped() -> NetworkExplainer:
    """Return the shipped network, explained."""
    network = load_network("line_net", weights=ROOT / "configs" / "models" / "line.safetensors")
    return NetworkExplainer(network, EngineConfig())


def heap() -> dict[str, float]:
    """Return what the C library's heap holds, in MB: used, and free but kept; empty where it is not glibc's."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return {}
    mallinfo.restype = _Mallinfo2
    info = mallinfo()
    used, free = info.uordblks + info.hblkhd, info.fordblks
    return {"heap_used_mb": round(used / 1e6, 1), "heap_kept_mb": round(free / 1e6, 1)}


def standing() -> dict[str, float]:
    """Return what this process holds: resident memory in MB, threads, file handles."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "rss_mb": round(pages * 4096 / 1e6, 1),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "handles": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        **heap(),
    }


def ages(seen: list[Observation]) -> dict[str, float] | None:
    """Return percentiles of the ages in seconds, None where nothing could be read."""
    seconds = sorted(observation.age_seconds for observation in seen if observation.mark is not None)
    if not seconds:
        return None
    return {
        f"p{round(100 * fraction)}": round(seconds[min(len(seconds) - 1, int(fraction * len(seconds)))], 3)
        for fraction in (0.5, 0.95, 0.99)
    } | {"max": round(seconds[-1], 3)}


def shares(seen: list[Observation], names: list[str]) -> dict[str, float]:
    """Return for each camera the fraction of received frames that was delivered, between its first and last delivered
    image.
    """
    numbers = {
        name: {observation.mark.number for observation in seen if observation.camera == name and observation.mark}
        for name in names
    }
    all_numbers = set().union(*numbers.values())
    if not all_numbers:
        return dict.fromkeys(names, 0.0)
    span = max(all_numbers) - min(all_numbers) + 1
    return {name: round(len(mine) / span, 4) for name, mine in numbers.items()}


def row(started_at: float, seen: list[Observation], outcome: RunResult, steady: list[str]) -> dict[str, Any]:
    """Return the figures of one interval."""
    fractions = shares(seen, steady)
    return {
        "bench": "soak", "at_s": round(time.monotonic() - started_at, 1), **standing(), "shown": len(seen),
        "wrong": sum(observation.mark is None for observation in seen), "age_s": ages(seen),
        "healthy_share": min(fractions.values()),
        "fairness": round(max(fractions.values()) / max(min(fractions.values()), 1e-9), 3),
        "taken": outcome.received, "dropped": outcome.dropped,
        "reconnects": sum(pump.health.reconnects for pump in outcome.source_workers),
        "not_live": {p.camera: p.health.reason for p in outcome.source_workers if p.health.state != "live"},
    }  # fmt: skip


def soak(plan: Plan, explainer: Explainer) -> list[dict[str, Any]]:
    """Run the plan; print a line for each interval and one for the whole, and return them."""
    rows: list[dict[str, Any]] = []
    stop = threading.Event()
    latest: list[RunResult] = []
    with ExitStack() as stack:
        there = stack.enter_context(elsewhere(plan.cameras, flapping=plan.flapping, rate=plan.rate))
        names = [f"camera{k}" for k in range(plan.cameras)]
        sources = [
            stack.enter_context(build_source(url, camera=name)) for url, name in zip(there.urls, names, strict=True)
        ]
        witness = stack.enter_context(ProbeSink(looks=plan.looks))
        limits = RunLimits(seconds=plan.seconds, batch_size=1)

        def watch(outcome: RunResult) -> None:
            latest[:] = [outcome]

        def run() -> None:
            lanes = [(source, "drop-oldest") for source in sources]
            Pipeline(lanes, explainer, HeatRenderer(), [witness], limits=limits, stop=stop, watch=watch).run()

        started_at = time.monotonic()
        thread = threading.Thread(target=run, name="run")
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        steady = names[: plan.cameras - plan.flapping]
        while thread.is_alive():
            thread.join(plan.every_seconds)
            if latest and thread.is_alive():
                rows.append(row(started_at, witness.taken(), latest[0], steady))
                print_line(**rows[-1])
    rows.append(whole(plan, rows, there.did))
    print_line(**rows[-1], **environment())
    return rows


def whole(plan: Plan, rows: list[dict[str, Any]], did: list[Any]) -> dict[str, Any]:
    """Return the figures of the whole run; growth counts from the second interval on, after the first use of
    everything.
    """
    settled = rows[1:] or rows
    first, last = settled[0], settled[-1]
    age_rows = [row["age_s"] for row in settled if row["age_s"]]
    return {
        "bench": "soak, whole", "seconds": plan.seconds, "cameras": plan.cameras, "flapping": plan.flapping,
        "rate": plan.rate, "rss_growth_mb": round(last["rss_mb"] - first["rss_mb"], 1),
        "threads": [first["threads"], last["threads"]], "handles": [first["handles"], last["handles"]],
        "age_p50_s": statistics.median(row["p50"] for row in age_rows) if age_rows else None,
        "age_p99_worst_s": max(row["p99"] for row in age_rows) if age_rows else None,
        "healthy_share_worst": min(row["healthy_share"] for row in settled),
        "fairness_worst": max(row["fairness"] for row in settled), "wrong": sum(row["wrong"] for row in rows),
        "reconnects": last["reconnects"], "dropped": last["dropped"], "taken": last["taken"],
        "faults": [dict(row) for row in did],
    }  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw memory, ages and reconnects over time, where matplotlib is installed."""
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        print_line(bench="soak", plot=None, why="matplotlib is not installed: uv pip install matplotlib")
        return
    lines = [row for row in rows if "at_s" in row and row["age_s"]]
    at = [row["at_s"] for row in lines]
    figure, panes = plt.subplots(4, sharex=True, figsize=(9, 9), layout="constrained")
    panes[0].plot(at, [row["rss_mb"] for row in lines])
    panes[0].set_ylabel("resident memory (MB)")
    for name in ("p50", "p99"):
        panes[1].plot(at, [row["age_s"][name] for row in lines], label=name)
    panes[1].set_ylabel("age on leaving (s)")
    panes[1].legend()
    for name in ("threads", "handles"):
        panes[2].plot(at, [row[name] for row in lines], label=name)
    panes[2].legend()
    panes[3].plot(at, [row["reconnects"] for row in lines])
    panes[3].set_ylabel("reconnects")
    panes[3].set_xlabel("seconds")
    figure.savefig(path)


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--flapping", type=int, default=2)
    parser.add_argument("--rate", type=int, default=10)
    parser.add_argument("--explainer", choices=["shipped", "none"], default="shipped")
    parser.add_argument("--undrawn", action="store_true", help="draw no pictures")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    set_up_process()
    plan = Plan(
        60 * arguments.minutes, arguments.cameras, arguments.flapping, arguments.rate, looks=not arguments.undrawn
    )
    rows = soak(plan, shipped() if arguments.explainer == "shipped" else NullExplainer())
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

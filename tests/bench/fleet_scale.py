"""Measures a director with many cameras: processor time, latency of beats, time to deal all cameras.

``python -m tests.bench.fleet_scale`` runs 200 simulated cameras on a null engine in one cluster on this machine.
``python -m tests.bench.fleet_scale --pure`` measures the director's state machine apart from Ray, up to 10,000 cameras.
Each prints JSON lines for ``docs/fleet.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.fleet.directors import Directors
from pipeline.fleet.director import Director
from pipeline.fleet.leases import WorkerLeases
from pipeline.fleet.messages import Beat, FleetTiming, Grant, WorkerInfo
from tests.bench.figures import environment
from tests.support.fleet import FLEET, LocalFleet, NullWorker, a_fleet

BEATS_PER_SECOND = 1.0 / FleetTiming().beat_seconds
SIZES = (200, 1000, 10000)
CAMERAS_PER_WORKER = 50


class TimedDirectors(Directors):
    """Notes the time that each answer to a beat takes."""

    def __init__(self, fleet: str, handles: Sequence[Any]) -> None:
        super().__init__(fleet, handles)
        self.seconds: list[float] = []

    def beat(self, beat: Beat) -> Grant | None:
        began_at = time.perf_counter()
        grant = super().beat(beat)
        self.seconds = [*self.seconds[-9999:], time.perf_counter() - began_at]
        return grant


class TimedWorker(NullWorker):
    def beat_seconds(self) -> list[float]:
        """Return the times since the last call."""
        seconds, self._directors.seconds = self._directors.seconds, []
        return seconds


class ScaleFleet(LocalFleet):
    worker = TimedWorker

    def start_worker(self, node: str) -> None:
        self.directors = TimedDirectors(FLEET, self.directors.handles)
        super().start_worker(node)


def cpu_seconds(process: int) -> float:
    """Return the processor time of a process so far."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    values = np.percentile(np.asarray(seconds) * 1000.0, [50, 95, 99])
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}


def measure_cluster(cameras: int, nodes: int, rate: float, seconds: float) -> dict[str, Any]:
    """Return the figures of a fleet on this machine."""
    from commands.fleet.client import call

    with (
        tempfile.TemporaryDirectory() as folder,
        a_fleet(Path(folder), ScaleFleet, cameras=cameras, nodes=nodes, rate=rate) as fleet,
    ):
        fleet.wait_until_held()
        fleet.directors.call("apply", {})
        while any(worker["cameras"] for worker in fleet.status()["workers"]):
            time.sleep(0.1)
        began_at = time.monotonic()
        fleet.directors.call("apply", dict.fromkeys(fleet.names, rate))
        fleet.wait_until_held()
        dealt_seconds = time.monotonic() - began_at
        fleet.wait_until_fresh(time.time())
        fresh_seconds = time.monotonic() - began_at
        director = fleet.status()["process"]
        for worker in fleet.workers.values():
            call(worker.beat_seconds, seconds=60.0)
        before, began_at = cpu_seconds(director), time.monotonic()
        time.sleep(seconds)
        used, lasted = cpu_seconds(director) - before, time.monotonic() - began_at
        latencies = [each for worker in fleet.workers.values() for each in call(worker.beat_seconds, seconds=60.0)]
        return {
            "scope": "cluster",
            "cameras": cameras,
            "workers": nodes,
            "frames_per_second_each": rate,
            "dealt_s": round(dealt_seconds, 2),
            "published_s": round(fresh_seconds, 2),
            "beats": len(latencies),
            "beat_ms": milliseconds(latencies),
            "director_cpu_share": round(used / lasted, 4),
            "load": os.getloadavg()[0],
        }


def measure_state_machine(cameras: int, rounds: int = 20) -> dict[str, Any]:
    """Return the processor time of the director's state machine, with ``CAMERAS_PER_WORKER`` for each worker."""
    timing = FleetTiming()
    names = [f"n{number:03}/cuda:0-0" for number in range(cameras // CAMERAS_PER_WORKER)]
    workers = [WorkerLeases(f"{name}#1", name, timing) for name in names]
    infos = [WorkerInfo(name.partition("/")[0], "cuda:0", ("tcp://10.0.0.5:5555",)) for name in names]
    rates = {f"camera {number}": 10.0 for number in range(cameras)}
    made = Director(rates, term=1, members=(), now=0.0, timing=timing)
    made.expect(names)
    capacity = 10.0 * CAMERAS_PER_WORKER / timing.fill
    times: list[float] = []
    longest = 0.0
    size = 0
    for number in range(rounds):
        now = number * timing.beat_seconds
        times = []
        for worker, info in zip(workers, infos, strict=True):
            made.confirm(1, now)
            beat = worker.ask(now, capacity, info=info)
            began_at = time.process_time()
            grant = made.beat(beat, now)
            times.append(time.process_time() - began_at)
            worker.accept(grant)
            size = len(pickle.dumps((beat, grant)))
        longest = max(longest, *times)
        made.admit(made.newcomers)
    assert sum(len(worker.valid(now)) for worker in workers) == cameras
    began_at = time.process_time()
    made.status(now)
    status_seconds = time.process_time() - began_at
    made.apply(rates | {f"further {number}": 10.0 for number in range(cameras)})
    full_seconds = []
    for number in range(rounds, 2 * rounds):
        now = number * timing.beat_seconds
        made.confirm(1, now)
        beat = workers[0].ask(now, capacity, info=infos[0])
        began_at = time.process_time()
        workers[0].accept(made.beat(beat, now))
        full_seconds.append(time.process_time() - began_at)
    began_at = time.process_time()
    made.status(now)
    full_status_seconds = time.process_time() - began_at
    return {
        "scope": "state machine",
        "cameras": cameras,
        "workers": len(workers),
        "beat_ms": milliseconds(times),
        "deal_all_ms": round(longest * 1000.0, 1),
        "status_ms": round(status_seconds * 1000.0, 1),
        "beat_beyond_capacity_ms": milliseconds(full_seconds),
        "status_beyond_capacity_ms": round(full_status_seconds * 1000.0, 1),
        "beat_and_grant_bytes": size,
        "cpu_share": round(float(np.mean(times)) * BEATS_PER_SECOND * len(workers), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pure", action="store_true", help="the state machine alone, without Ray")
    parser.add_argument("--cameras", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    if arguments.pure:
        for cameras in SIZES:
            print(json.dumps(measure_state_machine(cameras)), flush=True)
    else:
        print(json.dumps(measure_cluster(arguments.cameras, arguments.nodes, arguments.rate, arguments.seconds)))
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()

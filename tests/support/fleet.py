"""Fleets on one machine: nodes of ``ray.cluster_utils``, workers whose network explains nothing, and their logs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from commands.fleet.environment import HEAD, NODE, ROLE, create_token, enter
from commands.fleet.ray_node import _descendants
from commands.fleet.worker import FleetWorker, WorkerSpec
from commands.wiring.cameras import RunningCameras
from commands.wiring.run import OpenRun, make_sinks
from overlays.render.renderer import HeatRenderer
from pipeline.frames import Explanation, Finding
from pipeline.ports import Explainer
from pipeline.result import RunLimits

FLEET = f"test-{os.getpid()}"
"""Fleets of several test processes on this machine lock slots of their own."""
RTSP_CAMERA = "door"
"""A camera whose address has ``CANARY`` as its password, and that no server answers."""
CANARY = "canary-5c1f0e"
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
STORE_BYTES = 80 << 20


class NullExplainer(Explainer):
    """Gives every frame the same class."""

    def explain(self, frames):
        heat = np.ones((1, 1), np.float32)
        return [Explanation(frame, (Finding("none", 0.5, heat, 0),), "null", "layer", {}) for frame in frames]


class NullWorker(FleetWorker):
    """A worker without a network; the name of its device gives its capacity."""

    def open_parts(self, stack: ExitStack) -> OpenRun:
        config = self.read_config()
        sinks = make_sinks(config, [source.name for source in config.sources])
        running = stack.enter_context(RunningCameras([], lambda _: None))
        for sink in sinks:
            stack.enter_context(sink)
        return OpenRun(
            config=config, running=running, sources=[], monitor=NullExplainer(), explainer=NullExplainer(), trial=None,
            places=None, renderer=HeatRenderer(), sinks=sinks, limits=RunLimits(batch_size=4),
        )  # fmt: skip

    def measure(self, run: OpenRun) -> float:
        return 100.0


@dataclass
class Row:
    """A frame that left a worker."""

    at_unix: float
    camera: str
    epoch: int
    index: int
    node: str


class LocalFleet:
    """Nodes beside a head, each with one worker; the frames of all land in logs."""

    worker = NullWorker

    def __init__(self, folder: Path, cameras: int = 12, nodes: int = 3, rate: float = 4.0) -> None:
        self.folder, self.rate = folder, rate
        self.names = [f"cam{number:02}" for number in range(cameras)]
        self.node_names = [f"n{number}" for number in range(nodes)]
        self.nodes, self.workers, self.killed = {}, {}, set()
        self.cluster = None
        self.head_is_gone = False
        self.head_seconds = 5.0
        """Time from the head's end to that of a node, where both are lost."""
        self.directors = None

    def file(self, node: str) -> Path:
        folder = self.folder / node
        folder.mkdir(exist_ok=True)
        sources = [
            {"uri": f"line:?fps={self.rate:g}&size=160x120&seed={number}", "name": name}
            for number, name in enumerate(self.names)
        ]
        sources.append({"uri": f"rtsp://user:{CANARY}@127.0.0.1:9/x", "name": RTSP_CAMERA})
        path = folder / "stream.yaml"
        path.write_text(yaml.safe_dump({"sources": sources, "sinks": self.sinks(folder)}))
        return path

    @staticmethod
    def sinks(folder: Path) -> list[str]:
        return [str(folder / "log.jsonl"), "tcp://127.0.0.1:0", "http://127.0.0.1:0"]

    def start_worker(self, node: str) -> None:
        from commands.fleet.client import start_worker

        spec = WorkerSpec(FLEET, node, "cpu", 0, str(self.file(node)))
        self.workers[node] = start_worker(spec, self.directors, self.nodes[node].node_id, self.worker)

    def status(self) -> dict:
        return self.directors.call("status", seconds=60.0)

    def wait_until_held(self, seconds: float = 120.0, *, without: str = "") -> dict[str, str]:
        """Wait until every camera has a worker that answers, and return the node of each."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(Exception):  # a director that restarts
                state = self.status()
                held = {each["camera"]: each["node"] for each in state["cameras"] if each["worker"]}
                if len(held) == len(state["cameras"]) and without not in held.values():
                    return held
            assert time.monotonic() < deadline, "not every camera came back"
            time.sleep(0.1)

    def wait_until_guarded(self, seconds: float = 120.0) -> None:
        """Wait until the active director is off the head, if it can be, and the standby on another node."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(Exception):
                state = self.status()
                if state["standby"] not in {None, state["node"]} and not state["is_on_head"]:
                    return
            assert time.monotonic() < deadline, "the fleet has no standby director"
            time.sleep(0.2)

    def wait_until_fresh(self, since_unix: float, seconds: float = 120.0) -> None:
        """Wait until a frame of every camera was published after ``since_unix``."""
        deadline = time.monotonic() + seconds
        while {row.camera for row in self.rows() if row.at_unix > since_unix} != set(self.names):
            assert time.monotonic() < deadline, "not every camera is published again"
            time.sleep(0.2)

    def rows(self) -> list[Row]:
        """Return what was published, in time."""
        return read_rows(self.folder, self.node_names)

    def cameras_of(self, node: str) -> set[str]:
        return {camera for camera, holder in self.wait_until_held().items() if holder == node}

    def node_of_director(self) -> str:
        process = self.status()["process"]
        return next((name for name in self.alive() if process in self.processes(name)), "head")

    def alive(self) -> list[str]:
        return [name for name in self.node_names if name not in self.killed]

    def fullest(self, *, without_director: bool = False) -> str:
        """Return the node with the most cameras, of those without the director if they have any."""
        held = list(self.wait_until_held().values())
        names = [name for name in self.alive() if name in held]
        if without_director:
            director = self.node_of_director()
            names = [name for name in names if name != director] or names
        return max(names, key=held.count)

    def forget_killed(self) -> None:
        """Remove killed nodes from those that count for the majority."""
        if self.killed and not self.head_is_gone:
            self.directors.call("dismiss", [f"{node}/cpu-0" for node in self.killed])

    def processes(self, node: str) -> list[int]:
        """Return all processes of a node."""
        raylet = next(process for name, process in self.nodes[node].live_processes() if name == "raylet")
        return [raylet.pid, *_descendants(raylet.pid)]

    def kill_head(self) -> None:
        self.cluster.head_node.kill_gcs_server()
        self.head_is_gone = True

    def kill_node(self, node: str) -> None:
        raylet = next(process for name, process in self.nodes[node].live_processes() if name == "raylet")
        send(self.processes(node), signal.SIGKILL)
        self.killed.add(node)
        raylet.wait()  # as a zombie it would count as alive


def read_rows(folder: Path, nodes: list[str]) -> list[Row]:
    """Return what the logs of the nodes have, in time."""
    found = []
    for node in nodes:
        for path in (folder / node).glob("log*.jsonl"):
            for line in path.read_text().splitlines():
                with suppress(ValueError, KeyError):
                    row = json.loads(line)
                    found.append(Row(row["sent_at_unix"], row["camera"], row["epoch"], row["index"], node))
    return sorted(found, key=lambda row: row.at_unix)


def send(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def overlaps(rows: list[Row]) -> list[str]:
    """Return violations of the law: a frame under an epoch after one under a higher epoch."""
    highest: dict[str, Row] = {}
    violations = []
    for row in rows:
        last = highest.get(row.camera)
        if last is not None and row.epoch < last.epoch:
            violations.append(f"{row} after {last}")
        elif last is None or row.epoch > last.epoch:
            highest[row.camera] = row
    holders: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        holders.setdefault((row.camera, row.epoch), set()).add(row.node)
    return violations + [f"{key} on {nodes}" for key, nodes in holders.items() if len(nodes) > 1]


def longest_gaps(rows: list[Row], since_unix: float) -> dict[str, float]:
    """Return the longest time without a frame of each camera after ``since_unix``."""
    gaps: dict[str, float] = {}
    last: dict[str, float] = {}
    for row in rows:
        if row.camera in last and row.at_unix > since_unix:
            gaps[row.camera] = max(gaps.get(row.camera, 0.0), row.at_unix - last[row.camera])
        last[row.camera] = row.at_unix
    return gaps


def started(start, attempts: int = 6):
    """Start a part of a cluster; on a busy machine Ray gives up after 30 s."""
    for attempt in range(attempts):
        try:
            return start()
        except Exception as error:
            if attempt + 1 == attempts or "timed out during startup" not in str(error):
                raise
    return None


@contextmanager
def a_fleet(folder: Path, fleet_type: type[LocalFleet] = LocalFleet, **kind):
    """Run a cluster with its director and workers, all on the loopback."""
    token = folder / "token"
    create_token(token)
    before = dict(os.environ)
    enter(os.environ, token)
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    import ray
    from ray.cluster_utils import Cluster

    from commands.fleet.client import connected, start_directors

    fleet = fleet_type(folder, **kind)
    common = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    head = {**common, "_system_config": HEALTH, "env_vars": {NODE: "head", ROLE: HEAD}}
    cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for name in fleet.node_names:
            variables = {NODE: name, ROLE: "node"}
            options = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
            fleet.nodes[name] = started(lambda: cluster.add_node(**options, env_vars=variables, wait=True))  # noqa: B023
        fleet.cluster = cluster
        with connected(cluster.address, FLEET):
            fleet.directors = start_directors(FLEET, dict.fromkeys(fleet.names, fleet.rate))
            for name in fleet.node_names:
                fleet.start_worker(name)
            yield fleet
            if fleet.head_is_gone:
                cluster.head_node.start_gcs_server()  # Ray does not end without it
            else:
                for director in fleet.directors.handles:
                    ray.kill(director)
    finally:
        raylets = [process for node in [*fleet.nodes.values(), cluster.head_node]
                   for name, process in node.live_processes() if name == "raylet"]  # fmt: skip
        families = [number for raylet in raylets for number in [raylet.pid, *_descendants(raylet.pid)]]
        threading.Event().wait(0.1)
        send(families, signal.SIGCONT)
        cluster.shutdown()
        send(families, signal.SIGKILL)
        os.environ.clear()
        os.environ.update(before)

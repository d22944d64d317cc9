"""Faults in a fleet on this machine: how long cameras are dark.

``python -m tests.bench.fleet`` prints a JSON line for each fault, and a table for ``docs/fleet.md`` at the end.
``dark_s``: minimum, median and maximum of the longest time without a frame, of the cameras that lost their worker.
``others_s``: the same maximum of all other cameras. ``overlaps``: frames under a lower epoch than was seen before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from tests.bench.figures import environment
from tests.support.fleet import CANARY, RTSP_CAMERA, LocalFleet, a_fleet, longest_gaps, overlaps, send
from tests.support.gateway import GatewayViewer, a_gateway

SETTLE_SECONDS = 1.0


def kill_worker(fleet: LocalFleet) -> set[str]:
    from commands.fleet.client import call

    node = fleet.fullest()
    lost = fleet.cameras_of(node)
    send([call(fleet.workers[node].process)], signal.SIGKILL)
    return lost


def kill_director(fleet: LocalFleet) -> set[str]:
    os.kill(fleet.status()["process"], signal.SIGKILL)
    return set(fleet.names)


def freeze_director(fleet: LocalFleet) -> set[str]:
    """Stop the active director until the other one is active, and let it go on."""
    state = fleet.status()
    send([state["process"]], signal.SIGSTOP)
    while fleet.status()["term"] == state["term"]:
        time.sleep(0.1)
    send([state["process"]], signal.SIGCONT)
    return set(fleet.names)


def kill_both_directors(fleet: LocalFleet) -> set[str]:
    """Kill the active director and the standby together; Ray starts both again."""
    import ray

    processes = [ray.get(handle.process.remote(), timeout=60.0) for handle in fleet.directors.handles]
    send(processes, signal.SIGKILL)
    return set(fleet.names)


def drain(fleet: LocalFleet) -> set[str]:
    node = fleet.fullest()
    lost = fleet.cameras_of(node)
    assert node in fleet.directors.call("drain", node)
    fleet.wait_until_held(without=node)
    fleet.directors.call("drain", node, is_drained=False)
    return lost


def apply(fleet: LocalFleet) -> set[str]:
    """Remove a camera, wait until it is closed, and add it again."""

    gone = fleet.names[0]
    rest = dict.fromkeys(fleet.names[1:], fleet.rate)
    assert fleet.directors.call("apply", rest)["removed"] == [gone]
    time.sleep(1.0)
    assert fleet.directors.call("apply", {**rest, gone: fleet.rate})["added"] == [gone]
    return {gone}


def freeze_node(fleet: LocalFleet) -> set[str]:
    node = fleet.fullest(without_director=True)
    lost, frozen = fleet.cameras_of(node), fleet.processes(node)
    send(frozen, signal.SIGSTOP)
    fleet.wait_until_held(without=node)
    send(frozen, signal.SIGCONT)
    return lost


def kill_node(fleet: LocalFleet) -> set[str]:
    node = fleet.fullest(without_director=True)
    lost = fleet.cameras_of(node)
    fleet.kill_node(node)
    fleet.wait_until_held(without=node)
    return lost


def kill_node_of_director(fleet: LocalFleet) -> set[str]:
    node = fleet.node_of_director()
    lost = fleet.cameras_of(node)
    fleet.kill_node(node)
    fleet.wait_until_held(without=node)
    return lost


def kill_head_then_node(fleet: LocalFleet) -> set[str]:
    """Kill the head's store and, later, a node. This is the last fault: without the head nothing can be restarted."""
    fleet.kill_head()
    time.sleep(fleet.head_seconds)
    return kill_node(fleet)


FAULTS: dict[str, Callable[[LocalFleet], set[str]]] = {
    "worker": kill_worker,
    "director": kill_director,
    "frozen-director": freeze_director,
    "both-directors": kill_both_directors,
    "drain": drain,
    "apply": apply,
    "frozen-node": freeze_node,
    "node": kill_node,
    "node-of-director": kill_node_of_director,
    "head-then-node": kill_head_then_node,
}


def measure(fleet: LocalFleet, name: str) -> dict:
    """Cause a fault and return what the cameras' logs show."""
    if not fleet.head_is_gone:
        fleet.wait_until_guarded()
    began_at = time.time()
    term = fleet.status()["term"]
    lost = FAULTS[name](fleet)
    fleet.wait_until_held()
    fleet.wait_until_fresh(time.time())
    time.sleep(SETTLE_SECONDS)
    fleet.forget_killed()
    rows = fleet.rows()
    gaps = longest_gaps(rows, began_at)
    dark = sorted(gaps[camera] for camera in lost) or [0.0]
    others = max((gap for camera, gap in gaps.items() if camera not in lost), default=0.0)
    state = fleet.status()
    return {
        "fault": name,
        "moved": len(lost),
        "dark_s": [round(each, 2) for each in (dark[0], statistics.median(dark), dark[-1])],
        "others_s": round(others, 2),
        "overlaps": overlaps(rows),
        "published": len({row.camera for row in rows if row.at_unix > began_at}),
        "new_terms": state["term"] > term,
        "is_on_head": state["is_on_head"],
        "load": os.getloadavg()[0],
    }


def leaked(fleet: LocalFleet) -> dict:
    """Lease the camera with a password in its address, and return the files of Ray that have the password."""

    fleet.directors.call("apply", dict.fromkeys([*fleet.names, RTSP_CAMERA], fleet.rate))
    session = Path(fleet.cluster.head_node.get_session_dir_path())
    leased = f"camera {RTSP_CAMERA}: leased".encode()
    while leased not in b"".join(path.read_bytes() for path in session.glob("logs/worker-*")):
        time.sleep(0.1)
    files = [path for path in session.rglob("*") if path.is_file()] + list(Path("/proc").glob("[0-9]*/cmdline"))
    found = []
    for path in files:
        with suppress(OSError):
            if CANARY.encode() in path.read_bytes():
                found.append(str(path))
    fleet.directors.call("apply", dict.fromkeys(fleet.names, fleet.rate))
    return {"fault": "password", "files": len(files), "with_password": found}


def watch_by_gateway(fleet: LocalFleet, gateway: GatewayViewer) -> dict:
    """Return what the gateway's page shows once all faults are over, and the reasons that it names."""
    began_at = time.time()
    for name in fleet.names:
        gateway.wait_for(name, lambda state: state["state"] == "live" and not state["silent"])
    while {row.camera for row in gateway.rows if row.at_unix > began_at} != set(fleet.names):
        time.sleep(0.1)
    fleet.directors.call("apply", {**dict.fromkeys(fleet.names, fleet.rate), RTSP_CAMERA: 1.0, "hall": 900.0})
    reasons = [gateway.wait_for(name, lambda state: text in state["reason"])["reason"]  # noqa: B023
               for name, text in ((RTSP_CAMERA, "has sent no frame yet"), ("hall", "beyond capacity"))]  # fmt: skip
    places = [place["camera"] for place in gateway.get("/api/where")["cameras"]]
    fleet.directors.call("apply", dict.fromkeys(fleet.names, fleet.rate))
    gateway.wait_until_gone(RTSP_CAMERA)
    targets = gateway.get("/api/targets")
    while {target["labels"]["node"] for target in targets} != set(fleet.alive()):
        time.sleep(0.1)  # a worker whose beats are late is not listed
        targets = gateway.get("/api/targets")
    with urllib.request.urlopen(f"http://{targets[0]['targets'][0]}/metrics", timeout=60.0) as answer:
        metrics = answer.read().decode()
    return {
        "fault": "gateway",
        "frames": len(gateway.rows),
        "overlaps": overlaps(gateway.rows),
        "reasons": reasons,
        "places": places,
        "nodes": sorted({target["labels"]["node"] for target in targets}),
        "metrics": "recipro_frames_total" in metrics,
    }


def main() -> None:
    """Run the faults that are named, in the order of ``FAULTS``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", default=["password", *FAULTS])
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=5, help="three faults kill a node for good")
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--gateway", action="store_true", help="watch the faults by the gateway's page, too")
    parser.add_argument("--head-seconds", type=float, default=5.0, help="from the head's end to the node's")
    arguments = parser.parse_args()
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        a_fleet(Path(folder), cameras=arguments.cameras, nodes=arguments.nodes, rate=arguments.rate) as fleet,
    ):
        fleet.head_seconds = arguments.head_seconds
        fleet.wait_until_held()
        fleet.wait_until_fresh(0.0)
        time.sleep(SETTLE_SECONDS)
        with a_gateway(fleet.cluster.address, Path(folder) / "token") if arguments.gateway else nullcontext() as page:
            for name in arguments.faults:
                results.append(leaked(fleet) if name == "password" else measure(fleet, name))
                print(json.dumps(results[-1]), flush=True)
            if page is not None:
                results.append(watch_by_gateway(fleet, page))
                print(json.dumps(results[-1]), flush=True)
    print("| fault | cameras | dark, s (min / median / max) | others, s | two holders |\n|---|---|---|---|---|")
    for each in results:
        if "dark_s" in each:
            dark = " / ".join(f"{seconds:.1f}" for seconds in each["dark_s"])
            print(f"| {each['fault']} | {each['moved']} | {dark} | {each['others_s']:.1f} | {len(each['overlaps'])} |")
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()

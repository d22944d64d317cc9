"""Faults in a fleet of real nodes: how long cameras are dark, and whether two nodes publish one.

``python -m tests.bench.fleet_cable`` needs root and ``ip`` (iproute2): each node is a network namespace on a bridge and
runs ``run.py fleet`` as a user starts it. The cable of a node is pulled; with ``--fault head``, all processes of the
head are killed, and it is started again, without its data. Prints a JSON line with the figures of
``tests.bench.fleet``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import yaml

from tests.bench.figures import environment
from tests.support.fleet import Row, longest_gaps, overlaps, read_rows

ROOT = Path(__file__).resolve().parents[2]
BRIDGE, PREFIX, NETWORK = "rsfleet", "rsf", "10.77.31"
START_SECONDS = 240.0


def ip(*arguments: str, check: bool = True) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


@contextmanager
def namespaces(names: list[str]) -> Iterator[None]:
    """Connect network namespaces by a bridge inside the block."""
    remove(names)
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names, start=1):
            ip("netns", "add", name)
            ip("link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"v{name}", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        remove(names)


def remove(names: list[str]) -> None:
    """Remove the namespaces, with what runs in them."""
    for name in names:
        kill(name)
        ip("link", "del", f"v{name}", check=False)
        ip("netns", "del", name, check=False)
    ip("link", "del", BRIDGE, check=False)


def kill(name: str) -> None:
    """Kill all processes of a namespace."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    for number in found.split():
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)


def start_node(
    stack: ExitStack, folder: Path, names: list[str], name: str, cameras: list[str], known: list[str], rate: float
) -> None:
    """Start ``run.py fleet`` in a namespace, with the cameras that it knows; the first node is the head."""
    number = 1 + names.index(name)
    place = folder / name
    place.mkdir(exist_ok=True)
    sources = [{"uri": f"line:?fps={rate:g}&size=160x120&seed={seed}", "name": camera}
               for seed, camera in enumerate(known)]  # fmt: skip
    stream = {"engine": {"model": "line_net", "threads": 1}, "sources": sources, "sinks": [str(place / "log.jsonl")]}
    (place / "stream.yaml").write_text(yaml.safe_dump(stream))
    (place / "FLEET.yaml").write_text(yaml.safe_dump({"stream": "stream.yaml", "cameras": cameras_of(cameras, rate)}))
    # Processes of their own: Ray's head does not start beside a Ray of the same address that it finds among processes.
    command = ["ip", "netns", "exec", name, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
               sys.executable, str(ROOT / "run.py"), "fleet", str(place / "FLEET.yaml"),
               "--listen", f"{NETWORK}.{number}", "--node", name, "--token-file", str(folder / "token")]  # fmt: skip
    if number > 1:
        command += ["--join", f"{NETWORK}.1:6379"]
    output = stack.enter_context((place / "output").open("a"))
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    variables["XDG_STATE_HOME"] = str(place / "state")
    process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, cwd=place)
    stack.callback(process.kill)


def cameras_of(cameras: list[str], rate: float) -> dict[str, dict[str, float]]:
    """Return the cameras as a fleet's file has them, with rates that a busy machine reaches: none is left out."""
    return {camera: {"rate": rate / 4.0} for camera in cameras}


def wait_for(folder: Path, names: list[str], condition: str, is_met: object) -> list[Row]:
    """Wait until ``is_met(rows)``, and return the rows."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        rows = read_rows(folder, names)
        if is_met(rows):  # type: ignore[operator]
            return rows
        if time.monotonic() > deadline:
            outputs = "\n".join(f"{name}: {(folder / name / 'output').read_text()[-1500:]}" for name in names)
            raise SystemExit(f"not within {START_SECONDS:g} s: {condition}\n{outputs}")
        time.sleep(0.5)


def wait_until_published(folder: Path, names: list[str], cameras: list[str]) -> None:
    """Wait until every camera is published, and some by the last node."""
    wait_for(folder, names, "every camera is published",
             lambda rows: {row.camera for row in rows if row.at_unix > time.time() - 2.0} == set(cameras))  # fmt: skip
    wait_for(folder, names, "the last node has cameras",
             lambda rows: any(row.node == names[-1] and row.at_unix > time.time() - 2.0 for row in rows))  # fmt: skip


def wait_until_guarded(folder: Path, names: list[str]) -> None:
    """Wait until the active director is not on the head, and the standby on another node."""
    command = ["ip", "netns", "exec", names[-1], sys.executable, str(ROOT / "run.py"), "fleet", "status", "--json",
               "--address", f"{NETWORK}.1:6379", "--token-file", str(folder / "token")]  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            state = json.loads(answer.stdout)
            if not state["is_on_head"] and state["standby"] not in {None, state["node"]}:
                return
    raise SystemExit(f"the director stays on the head: {answer.stdout[-1000:]}{answer.stderr[-1000:]}")


def figures(fault: str, rows: list[Row], lost: set[str], since_unix: float) -> dict:
    """Return what the logs show of the cameras that lost their worker, and of the others."""
    gaps = longest_gaps(rows, since_unix)
    dark = sorted(gaps[camera] for camera in lost)
    return {
        "fault": fault,
        "moved": len(lost),
        "dark_s": [round(each, 2) for each in (dark[0], statistics.median(dark), dark[-1])],
        "others_s": round(max((gap for camera, gap in gaps.items() if camera not in lost), default=0.0), 2),
        "overlaps": overlaps(rows),
        "load": os.getloadavg()[0],
    }


def cameras_before(rows: list[Row], at_unix: float, node: str) -> set[str]:
    """Return the cameras that a node published shortly before a time."""
    return {row.camera for row in rows if at_unix - 2.0 < row.at_unix < at_unix and row.node == node}


def pull(folder: Path, names: list[str], cameras: list[str], seconds: float) -> dict:
    """Pull the cable of the last node, put it back, and return what the logs show."""
    wait_until_published(folder, names, cameras)
    pulled_at = time.time()
    ip("-n", names[-1], "link", "set", "eth0", "down")
    time.sleep(seconds)
    ip("-n", names[-1], "link", "set", "eth0", "up")
    back_at = time.time()
    output = folder / names[-1] / "output"
    wait_for(folder, names, "the node has joined again", lambda _: output.read_text().count("of fleet") == 2)
    joined_seconds = time.time() - back_at
    time.sleep(3.0)
    rows = read_rows(folder, names)
    return figures("cable", rows, cameras_before(rows, pulled_at, names[-1]), pulled_at) | {
        "last_of_cut_off_s": round(max(row.at_unix for row in rows if row.node == names[-1] and row.at_unix < back_at)
                                     - pulled_at, 2),
        "joined_again_s": round(joined_seconds, 1),
    }  # fmt: skip


def replace_head(
    folder: Path, names: list[str], cameras: list[str], seconds: float, start_head: Callable[[], None]
) -> dict:
    """Kill the head, start it again without its data, and return what the logs show.

    The cameras of the head lose their worker once, the others when their nodes join the new head.
    """
    wait_until_published(folder, names, cameras)
    wait_until_guarded(folder, names)
    killed_at = time.time()
    kill(names[0])
    time.sleep(seconds)
    back_at = time.time()
    start_head()
    joined: dict[str, float] = {}
    for name in names[1:]:
        output = folder / name / "output"
        wait_for(folder, names, f"{name} has joined the new head",
                 lambda _, output=output: output.read_text().count("of fleet") == 2)  # fmt: skip
        joined[name] = round(time.time() - back_at, 1)
    wait_until_published(folder, names, cameras)
    time.sleep(3.0)
    rows = read_rows(folder, names)
    of_head = cameras_before(rows, killed_at, names[0])
    before_back = longest_gaps([row for row in rows if row.at_unix < back_at], killed_at)
    return figures("head", rows, set(cameras), killed_at) | {
        "of_head": len(of_head),
        "without_head": {
            "of_head_s": round(max((before_back.get(each, seconds) for each in of_head), default=0.0), 2),
            "others_s": round(max((gap for each, gap in before_back.items() if each not in of_head), default=0.0), 2),
        },
        "joined_again_s": joined,
    }


def main() -> None:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--fault", choices=["cable", "head"], default="cable")
    parser.add_argument("--seconds", type=float, default=15.0, help="time without the cable, or without the head")
    arguments = parser.parse_args()
    names = [f"{PREFIX}{number}" for number in range(arguments.nodes)]
    cameras = [f"cam{number:02}" for number in range(arguments.cameras)]
    with tempfile.TemporaryDirectory() as text, namespaces(names), ExitStack() as stack:
        folder = Path(text)
        # The last third is unknown to the head, and dealt to the last node, which starts before the others.
        known = {names[0]: cameras[: -len(cameras) // 3]}
        for name in [names[0], *reversed(names[1:])]:
            start_node(stack, folder, names, name, cameras, known.get(name, cameras), arguments.rate)
            wait_for(folder, names[:1], f"{name} runs",
                     lambda _, name=name: "of fleet" in (folder / name / "output").read_text())  # fmt: skip
        if arguments.fault == "cable":
            found = pull(folder, names, cameras, arguments.seconds)
        else:
            found = replace_head(folder, names, cameras, arguments.seconds, lambda: start_node(
                stack, folder, names, names[0], cameras, known[names[0]], arguments.rate))  # fmt: skip
        print(json.dumps(found), flush=True)
        print(json.dumps(environment()))


if __name__ == "__main__":
    main()

"""A cable is pulled in a fleet of real nodes: how long cameras are dark, and whether two nodes publish one.

``python -m tests.bench.fleet_cable`` needs root and ``ip`` (iproute2): each node is a network namespace on a bridge and
runs ``run.py fleet`` as a user starts it. Prints a JSON line with the figures of ``tests.bench.fleet``.
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
from collections.abc import Iterator
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
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        for number in found.split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        ip("link", "del", f"v{name}", check=False)
        ip("netns", "del", name, check=False)
    ip("link", "del", BRIDGE, check=False)


def start_node(
    stack: ExitStack, folder: Path, names: list[str], name: str, cameras: list[str], known: list[str], rate: float
) -> None:
    """Start ``run.py fleet`` in a namespace, with the cameras that it knows; the first node is the head."""
    number = 1 + names.index(name)
    place = folder / name
    place.mkdir()
    sources = [{"uri": f"line:?fps={rate:g}&size=160x120&seed={seed}", "name": camera}
               for seed, camera in enumerate(known)]  # fmt: skip
    stream = {"engine": {"model": "line_net", "threads": 1}, "sources": sources, "sinks": [str(place / "log.jsonl")]}
    (place / "stream.yaml").write_text(yaml.safe_dump(stream))
    (place / "FLEET.yaml").write_text(yaml.safe_dump({"stream": "stream.yaml", "cameras": cameras_of(cameras, rate)}))
    command = ["ip", "netns", "exec", name, sys.executable, str(ROOT / "run.py"), "fleet", str(place / "FLEET.yaml"),
               "--listen", f"{NETWORK}.{number}", "--node", name, "--token-file", str(folder / "token")]  # fmt: skip
    if number > 1:
        command += ["--join", f"{NETWORK}.1:6379"]
    output = stack.enter_context((place / "output").open("w"))
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
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


def pull(folder: Path, names: list[str], cameras: list[str], seconds: float) -> dict:
    """Pull the cable of the last node, put it back, and return what the logs show."""
    wait_for(folder, names, "every camera is published",
             lambda rows: {row.camera for row in rows if row.at_unix > time.time() - 2.0} == set(cameras))  # fmt: skip
    wait_for(folder, names, "the last node has cameras",
             lambda rows: any(row.node == names[-1] and row.at_unix > time.time() - 2.0 for row in rows))  # fmt: skip
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
    before = [row for row in rows if pulled_at - 2.0 < row.at_unix < pulled_at]
    lost = {row.camera for row in before if row.node == names[-1]}
    gaps = longest_gaps(rows, pulled_at)
    dark = sorted(gaps[camera] for camera in lost)
    return {
        "fault": "cable",
        "moved": len(lost),
        "dark_s": [round(each, 2) for each in (dark[0], statistics.median(dark), dark[-1])],
        "others_s": round(max((gap for camera, gap in gaps.items() if camera not in lost), default=0.0), 2),
        "overlaps": overlaps(rows),
        "last_of_cut_off_s": round(max(row.at_unix for row in rows if row.node == names[-1] and row.at_unix < back_at)
                                     - pulled_at, 2),
        "joined_again_s": round(joined_seconds, 1),
        "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=15.0, help="time without the cable")
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
        print(json.dumps(pull(folder, names, cameras, arguments.seconds)), flush=True)
        print(json.dumps(environment()))


if __name__ == "__main__":
    main()

"""Simulated cameras in a separate process; some stop and restart.

    uv run python -m tests.support.cameras --cameras 12 --flapping 2

Prints one JSON line: the addresses. A line of standard input, ``close 3``, has a camera do it (``close``, ``reset``,
``die``, ``come_back``); when that closes, all end, and what each flapping camera did is printed.
All share one encoder, so they show the same pictures at the same time. Numbers and times painted into the pictures hold
across processes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.support.feed import Feed
from tests.support.limits import LIMIT_SECONDS
from tests.support.rtsp_server import Faults, RtspServer


def flap(server: RtspServer, chance: random.Random, stop: threading.Event) -> Counter[str]:
    """Cause a fault of the camera every few seconds until ``stop``; return the count of each fault."""
    done: Counter[str] = Counter()
    while not stop.wait(chance.uniform(3.0, 8.0)):
        way = chance.choice(["die", "close", "reset", "stall"])
        done[way] += 1
        if way == "die":
            server.die()
            stop.wait(chance.uniform(0.5, 4.0))
            server.come_back()
        elif way == "stall":
            server.faults.stalled = True
            stop.wait(chance.uniform(0.5, 5.0))
            server.faults = Faults()
        else:
            getattr(server, way)()
    return done


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Cameras in another process."""

    urls: list[str]
    tell: Callable[[str, int], None]
    """Applies an action to a camera, by its index: ``close``, ``reset``, ``die``, ``come_back``."""
    did: list[Counter[str]] = field(default_factory=list)
    """The faults of each flapping camera; known when the block is left."""


@contextmanager
def elsewhere(cameras: int, *, flapping: int = 0, size: str = "320x240", rate: int = 10) -> Iterator[Elsewhere]:
    """Run cameras in another process; the last ``flapping`` of them stop and restart."""
    arguments = ["--cameras", str(cameras), "--flapping", str(flapping), "--size", size, "--rate", str(rate)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.cameras", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    orders = process.stdin

    def send(order: str, camera: int) -> None:
        orders.write(f"{order} {camera}\n")
        orders.flush()

    cameras_elsewhere = Elsewhere(json.loads(process.stdout.readline()), send)
    try:
        yield cameras_elsewhere
    finally:
        try:
            output, _ = process.communicate(timeout=LIMIT_SECONDS)
            cameras_elsewhere.did.extend(Counter(counts) for counts in json.loads(output))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def main() -> None:
    """Serve the cameras of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--flapping", type=int, default=0)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--rate", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    stop, did = threading.Event(), [Counter[str]() for _ in range(arguments.flapping)]
    with ExitStack() as stack:
        feed = stack.enter_context(Feed((width, height), rate=arguments.rate))
        servers = [stack.enter_context(RtspServer(feed, path=f"/camera{k}")) for k in range(arguments.cameras)]

        def flaps(number: int) -> None:
            server = servers[arguments.cameras - arguments.flapping + number]
            did[number] = flap(server, random.Random(arguments.seed + number), stop)

        threads = [threading.Thread(target=flaps, args=(number,)) for number in range(arguments.flapping)]
        for thread in threads:
            thread.start()
        print(json.dumps([server.url() for server in servers]), flush=True)  # noqa: T201 - for its starter
        for line in sys.stdin:
            order, number = line.split()
            getattr(servers[int(number)], order)()
        stop.set()
        for thread in threads:
            thread.join()
    print(json.dumps(did), flush=True)  # noqa: T201 - for its starter


if __name__ == "__main__":
    main()

"""Stops runs at random moments by Ctrl-C and SIGTERM: while connecting, stalled, decoding, compiling, recording.

    uv run python -m tests.bench.stops --times 20
    uv run python -m tests.bench.stops --times 20 --from-ready --latest-seconds 5

Each time a run is started in a process of its own, with two cameras (one of ours, live; one that nobody answers for)
and a recorder, and stopped at a random moment by a random one of the two signals. One JSON line each: how long it took
to end, its exit code, and whether what it recorded plays. The bound is the read timeout (2 s) plus 1 s. Moments are
counted from the start, or from when the run says that it is ready.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import av
import av.error

from tests.bench.figures import ROOT, environment, print_line
from tests.support.feed import Feed
from tests.support.rtsp_server import RtspServer

BOUND_SECONDS = 3.0
LONGEST_SECONDS = 30.0
LONGEST_START_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Stop:
    """One way to be stopped."""

    after_seconds: float
    signal: signal.Signals
    from_ready: bool = False
    """True if the time counts from when the run is ready (network built), not from its start."""


def plays(path: Path) -> int | None:
    """Return the number of frames in a recording; None if it cannot be played, 0 if there is none."""
    if not path.exists():
        return 0
    try:
        with av.open(str(path)) as held:
            return sum(1 for _ in held.decode(video=0))
    except av.error.FFmpegError:
        return None


def _heard_at(ready: socket.socket, folder: Path) -> str:
    """Listen as systemd does; return where."""
    address = str(folder / "notify")
    ready.bind(address)
    return address


def stopped(arguments: list[str], stop: Stop, folder: Path) -> dict[str, object]:
    """Start a run, stop it, and return its result."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
        subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "stream", *arguments],
            cwd=folder, env={**os.environ, "NOTIFY_SOCKET": _heard_at(ready, folder)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as run,
    ):  # fmt: skip
        if stop.from_ready:
            ready.settimeout(LONGEST_START_SECONDS)
            assert ready.recv(100) == b"READY=1"
        time.sleep(stop.after_seconds)
        started_at = time.monotonic()
        run.send_signal(stop.signal)
        try:
            _, errors = run.communicate(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            run.kill()
            _, errors = run.communicate()
        seconds = time.monotonic() - started_at
    recordings = {path.name: plays(path) for path in sorted(folder.glob("*.mp4"))}
    return {
        "bench": "stops", "after_s": round(stop.after_seconds, 2), "signal": stop.signal.name,
        "from_ready": stop.from_ready, "ended_s": round(seconds, 2), "exit_code": run.returncode,
        "recorded_frames": recordings, "all_play": None not in recordings.values(),
        "traceback": "Traceback" in errors,
    }  # fmt: skip


def measure(times: int, seed: int, latest_seconds: float, *, from_ready: bool = False) -> list[dict[str, object]]:
    """Stop runs at random moments; print each result."""
    chance = random.Random(seed)
    rows = []
    with Feed(size=(320, 240), rate=10) as feed, RtspServer(feed) as server, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)  # accepts, and never answers
        nobody = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        for _ in range(times):
            with tempfile.TemporaryDirectory() as name:
                kind = chance.choice([signal.SIGINT, signal.SIGTERM])
                stop = Stop(chance.uniform(0.1, latest_seconds), kind, from_ready)
                arguments = ["--source", server.url(), "--source", nobody, "--sink", "out.mp4", "--cache", "off"]
                rows.append(stopped(arguments, stop, Path(name)))
                print_line(**rows[-1])
    return rows


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latest-seconds", type=float, default=14.0)
    parser.add_argument("--from-ready", action="store_true", help="count moments from when the run is ready")
    arguments = parser.parse_args()
    rows = measure(arguments.times, arguments.seed, arguments.latest_seconds, from_ready=arguments.from_ready)
    slow = [row for row in rows if float(str(row["ended_s"])) > BOUND_SECONDS]
    bad = [row for row in rows if row["exit_code"] != 0 or row["traceback"] or not row["all_play"]]
    worst = max(float(str(row["ended_s"])) for row in rows)
    print_line(
        bench="stops, whole", times=len(rows), worst_s=worst, over_bound=len(slow), bad=len(bad), **environment()
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()

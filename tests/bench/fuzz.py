"""Tests thousands of damaged descriptions, answers and files: each gives images or a typed error.

    uv run python -m tests.bench.fuzz --cases 2000 --videos FOLDER

A third of the cases changes the server's SDP (a good one, with video in it), a third its answers, a third the bytes of
small videos. Whatever is raised outside the error tree, and whatever takes longer than the timeouts allow, is told with
the seed that makes it again. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from pipeline.errors import ReciproStreamError
from stream.sources import build_source
from tests.bench.figures import environment, print_line
from tests.support.feed import Feed
from tests.support.footage import paint
from tests.support.rtsp_server import RtspServer

ONCE = {"read_timeout_seconds": 0.5, "open_timeout_seconds": 1.0, "attempts": 1}
LONGEST_SECONDS = 20.0
ANSWER = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Base: rtsp://127.0.0.1/live/\r\nContent-Length: 40\r\n\r\nv=0"

Attempt = Callable[[random.Random], str]


def damaged(content: bytes, chance: random.Random, most: int = 12) -> bytes:
    """Return the bytes with random changes; sometimes parts are cut off, doubled or moved."""
    broken = bytearray(content)
    for _ in range(chance.randrange(1, most)):
        broken[chance.randrange(len(broken))] = chance.randrange(256)
    kind = chance.random()
    if kind < 0.2:
        return bytes(broken[: chance.randrange(1, len(broken) + 1)])
    if kind < 0.3:
        start = chance.randrange(len(broken))
        return bytes(broken[:start] + broken[start : start + 200] + broken[start:])
    return bytes(broken)


def read(uri: str, most: int = 3) -> str:
    """Read a few images; return the result: ``pictures``, ``nothing``, or the name of the typed error."""
    stop, count = threading.Event(), 0
    try:
        with build_source(uri, **(ONCE if "://" in uri else {})) as source:
            for _ in source.frames(stop):
                count += 1
                if count == most:
                    break
    except ReciproStreamError as reason:
        return type(reason).__name__
    return "pictures" if count else "nothing"


def small_video(path: Path) -> bytes:
    """Write a second of footage and return its bytes."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for k in range(10):
            image = paint(np.zeros((120, 160, 3), np.uint8), k, 100 * k)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path.read_bytes()


@contextmanager
def attempts(videos: Path | None) -> Iterator[dict[str, Attempt]]:
    """Return the functions for the three kinds of damage."""
    with Feed(size=(160, 120), rate=20) as feed, RtspServer(feed) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = server.description()
        files = {".mp4": small_video(folder / "good.mp4"), ".mkv": small_video(folder / "good.mkv")}
        for path in sorted(videos.iterdir()) if videos else ():
            if path.suffix in {".mp4", ".mov", ".webm", ".ivf", ".mpg", ".mkv"} and path.stat().st_size < 1 << 20:
                files[f"{path.stem}{path.suffix}"] = path.read_bytes()

        def description(chance: random.Random) -> str:
            server.faults.answer, server.faults.description = None, damaged(good, chance)
            return read(server.url())

        def answer(chance: random.Random) -> str:
            server.faults.answer = damaged(ANSWER, chance)
            return read(server.url())

        def file(chance: random.Random) -> str:
            which = chance.choice(sorted(files))
            path = folder / f"bad{Path(which).suffix or which}"
            path.write_bytes(damaged(files[which], chance, most=40))
            return read(str(path), most=1000)

        yield {"description": description, "answer": answer, "file": file}


def measure(cases: int, seed: int, videos: Path | None) -> dict[str, object]:
    """Run all cases in turn; return the results."""
    endings: Counter[str] = Counter()
    escaped: list[str] = []
    slow: list[str] = []
    longest = 0.0
    with attempts(videos) as ways:
        for k in range(cases):
            kind = list(ways)[k % len(ways)]
            started_at = time.monotonic()
            try:
                endings[f"{kind}: {ways[kind](random.Random(seed * 1_000_003 + k))}"] += 1
            except Exception:  # noqa: BLE001 - what must not escape is what is looked for
                escaped.append(f"{kind} {k}: {traceback.format_exc(limit=-2)}")
            seconds = time.monotonic() - started_at
            longest = max(longest, seconds)
            if seconds > LONGEST_SECONDS:
                slow.append(f"{kind} {k}: {seconds:.1f} s")
    return {
        "bench": "fuzz", "cases": cases, "seed": seed, "endings": dict(sorted(endings.items())), "escaped": escaped,
        "slow": slow, "longest_s": round(longest, 2),
    }  # fmt: skip


def main() -> None:
    """Run the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--videos", type=Path)
    arguments = parser.parse_args()
    counts = measure(arguments.cases, arguments.seed, arguments.videos)
    print_line(**counts, **environment())
    if counts["escaped"] or counts["slow"]:
        sys.exit(1)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main()

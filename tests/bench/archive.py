"""Measures archives: the cost of scheduling, the cost of partitions against a plain loop, and the rows after kills.

    uv run python -m tests.bench.archive sleeping --shards 24 --seconds 5
    uv run python -m tests.bench.archive loop --model resnet18 --photos 64
    uv run python -m tests.bench.archive kills --photos 384 --videos 10

``sleeping`` runs shards that sleep in two worker processes of Ray. Efficiency is the time spent in shards over the time
of the workers, from the start of the first shard to the end of the last; processor time per shard
is of the driver and of the workers. ``loop`` compares shards with a loop that reads and explains the same photos and
keeps nothing. ``kills`` runs the command, kills all its processes twice, and counts the rows of each input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

from tests.bench.figures import ROOT, environment, interleaved, paired_ratio, print_line

_LIMIT_SECONDS: Final = 1800.0


class SleepingWorker:
    """Writes partitions without rows, and sleeps meanwhile."""

    def __init__(self, output: str, seconds: float) -> None:
        """Set the folder and the time that a shard takes."""
        self._output, self._seconds = output, seconds

    def explain(self, shard: Any) -> tuple[int, float, float, float]:
        """Return process id, start and end on the clock of the machine, and processor time."""
        from commands.archive.folders import open_folder
        from commands.archive.partitions import PartitionWriter

        began, cpu = time.monotonic(), time.process_time()
        with PartitionWriter(open_folder(self._output), shard):
            time.sleep(self._seconds)
        return os.getpid(), began, time.monotonic(), time.process_time() - cpu


def sleeping(shards: int, seconds: float, workers: int) -> dict[str, Any]:
    """Return the efficiency of the pool, and the processor time of a shard."""
    from commands.actor_pool import actor_pool
    from commands.archive.inputs import ArchiveFile, shards_of

    files = [ArchiveFile(f"/photo-{number}.jpg", 1, 1, is_video=False) for number in range(shards)]
    with tempfile.TemporaryDirectory() as folder, actor_pool(SleepingWorker, (folder, seconds), workers) as pool:
        waiting, results, cpu = deque(shards_of(files, "", 1)), [], 0.0
        for result in pool.run(
            lambda worker, shard: worker.explain.remote(shard), waiting, threading.Event(), lambda _, reason: reason
        ):
            cpu = cpu or time.process_time()  # importing and starting Ray is no cost of a shard
            results.append(result)
        driver = (time.process_time() - cpu) / (shards - 1)
    by_worker: dict[int, list[tuple[int, float, float, float]]] = {}
    for result in results:
        by_worker.setdefault(result[0], []).append(result)
    spans = [(each[0][1], each[-1][2], sum(end - begin for _, begin, end, _ in each)) for each in by_worker.values()]
    return {
        "workers": len(by_worker),
        "efficiency": round(sum(busy for *_, busy in spans) / sum(end - begin for begin, end, _ in spans), 4),
        "driver_cpu_ms_per_shard": round(1e3 * driver, 2),
        "worker_cpu_ms_per_shard": round(1e3 * sum(result[3] for result in results[workers:]) / (shards - workers), 2),
    }


def loop(model: str, photos: int, rounds: int) -> dict[str, Any]:
    """Return the processor time of shards divided by that of a plain loop."""
    from commands.archive.inputs import find_files, shards_of
    from commands.archive.worker import AS_MANY_AS, ArchiveSettings, ShardWorker
    from commands.wiring.run import choose_batch_size, make_explainer
    from pipeline.config import Config
    from pipeline.frames import Frame
    from stream.image_file import ImageReader

    config = Config.model_validate({"engine": {"model": model, "weights": "random", "threads": 1}})
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in"), Path(folder, "out")
        output.mkdir()
        write_photos(source, photos, (480, 640))
        (shard,) = shards_of(find_files([str(source)]).files, "", photos)
        worker, explainer = ShardWorker(ArchiveSettings(config, str(output), "")), make_explainer(config, AS_MANY_AS)
        batch, reader = choose_batch_size(config, explainer, AS_MANY_AS), ImageReader()

        def plainly(_: int) -> None:
            for first in range(0, photos, batch):
                names = [file.path for file in shard.files[first : first + batch]]
                frames = [Frame(reader.read(name), "in", 0, time.monotonic(), source_name=name) for name in names]
                explainer.explain(frames)

        cases = {"shards": lambda _: worker.explain(shard), "plain": plainly}
        seconds = interleaved(cases, rounds, warmup=1, clock=time.process_time)
    return {
        "model": model, "photos": photos, "batch": batch, "backend": str(explainer.info),
        "shards_cpu_ms_per_photo": round(1e3 * min(seconds["shards"]) / photos, 2),
        "plain_cpu_ms_per_photo": round(1e3 * min(seconds["plain"]) / photos, 2),
        **paired_ratio(seconds["shards"], seconds["plain"]),
    }  # fmt: skip


def kills(photos: int, videos: int, frames: int, workers: int) -> dict[str, Any]:
    """Return what the output holds after two kills of all processes, and a run to the end."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name), Path(name, "out")
        write_photos(folder / "in", photos, (48, 64))
        (folder / "in" / "00001.jpg").write_text("no image")
        for number in range(videos):
            write_video(folder / "in" / f"film{number}.mp4", frames)
        killed_at = []
        for kill in range(3):
            process = _start(folder, workers)
            if kill < 2:
                total = len(killed_at) and killed_at[-1]
                killed_at.append(_kill_after(process, output, total + 8))
        text, _ = process.communicate()
        rows = [row for path in output.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        counts = Counter((row["source"], row["index"]) for row in rows if not row["error"])
        return {
            "exit": process.returncode, "inputs": photos + videos, "partitions_at_kills": killed_at,
            "partitions": len(list(output.glob("*.parquet"))), "rows": len(rows),
            "expected_rows": photos + videos * frames, "repeated": sum(count > 1 for count in counts.values()),
            "sources": len({row["source"] for row in rows}), "errors": sum(bool(row["error"]) for row in rows),
            "left": [path.name for path in output.iterdir() if path.name.startswith(".")], "last_line": text[-200:],
        }  # fmt: skip


def _start(folder: Path, workers: int) -> subprocess.Popen[str]:
    words = ("--output", "out", "--model", "line_net", "--backend", "eager", "--threads", "1", "--input-size", "48x64")
    more = ("--photos", "8", "--part-seconds", "2", "--workers", str(workers))
    command = [sys.executable, str(ROOT / "run.py"), "explain-archive", "in", *words, *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _kill_after(process: subprocess.Popen[str], output: Path, partitions: int) -> int:
    """Kill a run and all that it started once it has written partitions; return how many there are."""
    limit = time.monotonic() + _LIMIT_SECONDS
    while len(list(output.glob("*.parquet"))) < partitions and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    if process.poll() is None:
        for each in [*_descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
    process.communicate()
    return len(list(output.glob("*.parquet")))


def _descendants(process: int) -> list[int]:
    """Return the processes that a process has started, directly or indirectly."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines()[1:])}
    found = [process]
    for each in found:
        found += [pid for pid, parent in parents.items() if parent == each]
    return found[1:]


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write photos of noise."""
    import cv2
    import numpy as np

    folder.mkdir(parents=True)
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number:05}.jpg"), image)


def write_video(path: Path, frames: int) -> None:
    """Write a video of 10 frames/s with a key frame each second."""
    picture = f"testsrc2=size=64x48:rate=10:duration={frames / 10}"
    options = ("-f", "lavfi", "-i", picture, "-c:v", "libx264", "-g", "10", str(path))
    subprocess.run(["ffmpeg", "-loglevel", "error", *options], check=True)


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("sleeping", "loop", "kills"))
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--photos", type=int)
    parser.add_argument("--videos", type=int, default=10)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.case == "sleeping":
        figures = sleeping(given.shards, given.seconds, given.workers)
    elif given.case == "loop":
        figures = loop(given.model, given.photos or 64, given.rounds)
    else:
        figures = kills(given.photos or 384, given.videos, given.frames, given.workers)
    print_line(bench="archive", case=given.case, **figures, **environment())


if __name__ == "__main__":
    main()

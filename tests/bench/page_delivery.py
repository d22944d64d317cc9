"""Measures rate and age of frames in browsers: the page's WebSocket, with the protocol of a browser.

``python -m tests.bench.delivery --page``. One process serves, others look on, ten WebSockets each. Every one says that
a frame was shown as soon as it has come, as the page's script does behind its drawing; one of them may be slow.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from typing import Any

import numpy as np

from overlays.sinks.web import WebSink
from overlays.web.framing import unpack
from overlays.wire.header import decode_header
from pipeline.frames import Explanation, Finding, Frame, Image, Overlay
from pipeline.settings import SinkContext
from tests.bench.figures import quantiles, resident_mib

RATE = 30.0
EACH = 10
CONNECT_SECONDS = 120.0
SPAWN = multiprocessing.get_context("spawn")


def serve(pipe: Any, image: Image, seconds: float) -> None:
    """Serve at the rate for a time when requested; report the processor time."""
    heat = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    finding = Finding("water bottle", 0.9, heat, 1)
    with WebSink("http://127.0.0.1:0", SinkContext(cameras=("bench",))) as sink:
        pipe.send(sink.endpoint)
        pipe.recv()
        started_at, cpu, putting, frames = time.monotonic(), time.process_time(), 0.0, 0
        settled = 0.0
        while (now := time.monotonic()) < started_at + seconds:
            frame = Frame(image, "bench", frames, now)
            sink.put(Overlay(image, Explanation(frame, (finding,), "recipro-cam/point", "layer4")))
            putting += time.monotonic() - now
            frames += 1
            settled = resident_mib() if frames == RATE else settled
            while (left := started_at + frames / RATE - time.monotonic()) > 0:
                time.sleep(min(left, 0.01))
                sink.idle()
        spent = time.monotonic() - started_at
        pipe.send({
            "frames": frames, "encoded": sink.encoded, "put_share_of_a_core": round(putting / spent, 3),
            "process_share_of_a_core": round((time.process_time() - cpu) / spent, 3),
            "rss_mib_after_a_second": settled, "rss_mib_at_last": resident_mib(),
        })  # fmt: skip
        pipe.recv()


def look(pipe: Any, endpoint: str, paces: list[float]) -> None:
    """Receive with one WebSocket for each pace (seconds until a frame is acknowledged) until the end is requested."""
    from websockets.sync.client import connect

    ages: list[list[float]] = [[] for _ in paces]
    stop = threading.Event()
    connected = threading.Barrier(len(paces) + 1)

    def watch(k: int, pace: float) -> None:
        address = endpoint.replace("http://", "ws://") + "/frames"
        with connect(address, compression=None, max_size=None, proxy=None) as link:
            connected.wait(CONNECT_SECONDS)
            while not stop.is_set():
                try:
                    received = link.recv(timeout=0.5)
                except TimeoutError:
                    continue
                if isinstance(received, str):
                    link.send('{"heard": true}')
                    continue
                stop.wait(pace)
                header = decode_header(unpack(received)[0])
                ages[k].append(time.time() - header.taken_at_unix)
                link.send(json.dumps({"shown": header.camera}))

    threads = [threading.Thread(target=watch, args=(k, pace)) for k, pace in enumerate(paces)]
    for thread in threads:
        thread.start()
    connected.wait(CONNECT_SECONDS)
    pipe.send("connected")
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(ages)


def measure_page(viewers: int, *, seconds: float, image: Image, slow: int = 0) -> dict[str, Any]:
    """Run one case; ``slow`` of the viewers take five frames a second."""
    ours, theirs = SPAWN.Pipe()
    server = SPAWN.Process(target=serve, args=(theirs, image, seconds))
    server.start()
    endpoint = ours.recv()
    paces = [0.2] * slow + [0.0] * (viewers - slow)
    lookers = []
    for first in range(0, viewers, EACH):
        mine, other = SPAWN.Pipe()
        process = SPAWN.Process(target=look, args=(other, endpoint, paces[first : first + EACH]))
        process.start()
        lookers.append((mine, process))
    for mine, _ in lookers:
        mine.recv()
    ours.send("go")
    measured = ours.recv()
    answers: list[list[float]] = []
    for mine, _ in lookers:
        mine.send("stop")
        answers.extend(mine.recv())
    ours.send("end")
    for process in (server, *(process for _, process in lookers)):
        process.join(10)
    figures: dict[str, Any] = {"publisher": measured}
    for name, group in (("slow", answers[:slow]), ("fast", answers[slow:])):
        if group:
            rates = sorted(len(each) / seconds for each in group)
            figures[name] = {
                "viewers": len(group), "frames_per_second_least": round(rates[0], 1),
                "frames_per_second_most": round(rates[-1], 1), **quantiles([age for each in group for age in each]),
            }  # fmt: skip
    return figures

"""Fifty viewers of one publisher, some killed, some stopped and resumed, the publisher killed and started again.

``python -m tests.bench.delivery --crowd``. Viewers are processes of ten ``Viewer`` each, the publisher a process of its
own; what each saw is asked of it after every event. Waiting is for what should come about, with a deadline that fails.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.viewer import Viewer
from pipeline.frames import Explanation, Finding, Frame, Image, Overlay
from tests.bench.figures import quantiles, resident_mib

RATE = 30.0
EACH = 10
PATIENCE_SECONDS = 60.0
SPAWN = multiprocessing.get_context("spawn")


def publish(pipe: Any, endpoint: str, image: Image, run: str) -> None:
    """Send at the rate until the end is requested; answer each request with the state."""
    heat = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    frames = 0
    with ZeroMqSink(endpoint) as sink:
        started_at = time.monotonic()
        while True:
            finding = Finding("water bottle", 0.9, heat, 1)
            frame = Frame(image, "bench", frames, time.monotonic())
            sink.put(Overlay(image.copy(), Explanation(frame, (finding,), "m", "layer4", {}, run)))
            frames += 1
            if pipe.poll(max(0.0, started_at + frames / RATE - time.monotonic())):
                if pipe.recv() == "end":
                    return
                pipe.send({"viewers": sink.viewers, "frames": frames, "encoded": sink.encoded, "mib": resident_mib()})


def look(pipe: Any, endpoint: str) -> None:
    """Receive with ten viewers until the end is requested; answer each request with the frames since the last one."""
    stop = threading.Event()
    seen: list[dict[str, Any]] = [_nothing() for _ in range(EACH)]

    def watch(k: int, viewer: Viewer) -> None:
        for received in viewer.messages(stop):
            state = seen[k]
            state["frames"] += 1
            state["run"] = received.header.model
            state["ages"].append(received.received_at_unix - received.header.taken_at_unix)

    with ExitStack() as stack:
        viewers = [stack.enter_context(Viewer(endpoint)) for _ in range(EACH)]
        threads = [threading.Thread(target=watch, args=(k, viewer)) for k, viewer in enumerate(viewers)]
        for thread in threads:
            thread.start()
        while pipe.recv() != "end":
            state = list(seen)
            seen[:] = [_nothing() for _ in range(EACH)]
            pipe.send(state)
        stop.set()
        for thread in threads:
            thread.join()


def _nothing() -> dict[str, Any]:
    return {"frames": 0, "run": "", "ages": []}


class Peer(NamedTuple):
    """A process of the test, and the connection to it."""

    pipe: Any
    process: Any

    def ask(self) -> Any:
        """Return how it goes."""
        self.pipe.send("how")
        return self.pipe.recv()

    def end(self) -> None:
        """End the process in order."""
        self.pipe.send("end")
        self.process.join(30)


def _started(target: Callable[..., None], *parameters: Any) -> Peer:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(theirs, *parameters))
    process.start()
    return Peer(ours, process)


@contextmanager
def _ended(peers: list[Peer]) -> Iterator[None]:
    """End all processes, also after an error."""
    try:
        yield
    finally:
        for peer in peers:
            if peer.process.is_alive():
                os.kill(peer.process.pid, signal.SIGCONT)
                peer.process.kill()
            peer.process.join()


def _until(holds: Callable[[], bool], what: str) -> float:
    """Wait until the condition is true; return the time in seconds."""
    started_at = time.monotonic()
    while not holds():
        if time.monotonic() - started_at > PATIENCE_SECONDS:
            raise AssertionError(f"it did not come to pass within {PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(0.1)
    return round(time.monotonic() - started_at, 2)


def _all_see(groups: list[Peer], run: str) -> bool:
    return all(answer["frames"] and answer["run"] == run for group in groups for answer in group.ask())


def crowd(seconds: float, *, viewers: int = 50, size: tuple[int, int] = (720, 1280)) -> dict[str, Any]:
    """Run all steps, each ``seconds`` long, and return the figures.

    Raises:
        AssertionError: somebody who should see does not, or a frame was compressed more than once.
    """
    image = np.clip(np.random.default_rng(0).normal(120, 8, (*size, 3)), 0, 255).astype(np.uint8)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{door.getsockname()[1]}"
    peers: list[Peer] = []
    scenes: dict[str, dict[str, Any]] = {}

    def scene(name: str, watching: list[Peer], server: Peer) -> None:
        """Run for a time; record what the viewers received and the memory of the publisher."""
        for group in watching:
            group.ask()
        time.sleep(seconds)
        answers = [answer for group in watching for answer in group.ask()]
        scenes[name] = {
            "publisher": server.ask(), "viewers": len(answers),
            "frames_per_second_least": round(min(answer["frames"] for answer in answers) / seconds, 1),
            **quantiles([age for answer in answers for age in answer["ages"]]),
        }  # fmt: skip

    with _ended(peers):
        server = _started(publish, endpoint, image, "first")
        groups = [_started(look, endpoint) for _ in range(viewers // EACH)]
        peers += [server, *groups]
        _until(lambda: _all_see(groups, "first"), "every viewer sees")
        scene("all watch", groups, server)
        killed, stopped, *staying = groups
        killed.process.kill()
        os.kill(stopped.process.pid, signal.SIGSTOP)
        left = EACH * len(staying)
        took = {"gone_seconds": _until(lambda: server.ask()["viewers"] == left, "who is gone is noticed")}
        scene("ten killed, ten stopped", staying, server)
        os.kill(stopped.process.pid, signal.SIGCONT)
        connected = [stopped, *staying]
        took["resumed_seconds"] = _until(lambda: _all_see(connected, "first"), "who was stopped sees again")
        scene("resumed", connected, server)
        totals = server.ask()
        assert totals["encoded"] <= totals["frames"], "one picture, one encode, whatever the number of viewers"
        server.process.kill()
        server.process.join()
        server = _started(publish, endpoint, image, "second")
        peers.append(server)
        took["found_again_seconds"] = _until(lambda: _all_see(connected, "second"), "the new publisher is found")
        scene("publisher killed and started again", connected, server)
        for peer in (*connected, server):
            peer.end()
    grown = scenes["resumed"]["publisher"]["mib"] - scenes["all watch"]["publisher"]["mib"]
    return {
        "viewers": viewers,
        "scene_seconds": seconds,
        "publisher_grew_mib": round(grown, 1),
        **took,
        "scenes": scenes,
    }

"""Measures the database of events: ``python -m tests.bench.events [--events N --rounds N]``.

Prints one JSON line. ``path``: what a frame pays in a run with two sinks, of which one keeps events: the time of the
delivering thread (``deliver``) and the time until the other sink has the frame (``arrive``), for a frame without a
cause, for one that begins an event, and for the next one, while the event is encoded and written in the sink's own
thread; ``alone``: without the events sink. ``put``: the sink's time for a frame without a cause, for one of an event
that goes on, and for the beginning and the end of an event, in turns with a call that does nothing. ``query``: queries
of a database with N events of twelve cameras, as ``/api/events`` makes them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from overlays.events.event import Event, EventKind, Figure, new_event_id
from overlays.events.query import EventFilter, EventReader
from overlays.events.store import EventStore
from overlays.sinks.events import EventsSink
from overlays.sinks.settings import EventSettings
from pipeline.frames import Overlay
from pipeline.outputs import Outputs
from pipeline.ports import Sink
from pipeline.stats import RunStats
from tests.bench.figures import interleaved, quantiles
from tests.support.events import shown

CAMERAS = 12
KINDS: tuple[EventKind, ...] = ("guard", "condition", "signal_loss")


def put_times(folder: Path, rounds: int, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Time ``put`` without a cause, during an event, and at the beginning of an event."""
    settings = EventSettings(uri=str(folder / "put.sqlite"), when="label=scratch and score>0.8", gap_seconds=0.0)
    now = time.monotonic()
    quiet, alarmed = (shown(now, label="ok", inside=inside, size=size) for inside in (None, 0.25))
    with (
        EventsSink(settings) as sink,
        EventsSink(settings.model_copy(update={"uri": str(folder / "b.sqlite")})) as other,
    ):
        other.put(alarmed)

        def begin(_round: int) -> None:
            sink.put(alarmed)

        cases: dict[str, Callable[[int], object]] = {
            "nothing": lambda _round: None,
            "quiet": lambda _round: sink.put(quiet),
            "going_on": lambda _round: other.put(alarmed),
            "begins": begin,
            "ends": lambda _round: sink.put(quiet),
        }
        seconds = interleaved(cases, rounds)
        assert sink.metrics()[0].value >= rounds
    return {name: quantiles(each) for name, each in seconds.items()}


class Probe(Sink):
    """Notes when it gets a frame."""

    lossless = True

    def __init__(self, uri: str) -> None:
        """Set the address."""
        self.uri = uri
        self.came, self.at = threading.Event(), 0.0

    def put(self, overlay: Overlay) -> None:
        """Note the time."""
        del overlay
        self.at = time.perf_counter()
        self.came.set()


def path_times(folder: Path, rounds: int, size: tuple[int, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Time the delivery of frames to a sink of events and to another one."""
    settings = EventSettings(uri=str(folder / "path.sqlite"), gap_seconds=0.0)
    now = time.monotonic()
    quiet, alarmed = (shown(now, label="ok", inside=inside, size=size) for inside in (None, 0.25))
    with EventsSink(settings) as sink, ExitStack() as stack:
        probe, lonely = Probe("probe"), Probe("lonely")
        outputs, alone = Outputs([sink, probe], RunStats([]), 16), Outputs([lonely], RunStats([]), 16)
        outputs.start(stack)
        alone.start(stack)
        worker = outputs.workers[0]

        def deliver(target: Outputs, at: Probe, overlay: Overlay) -> tuple[float, float]:
            at.came.clear()
            started_at = time.perf_counter()
            target.put(overlay, "drop-oldest")
            delivered_at = time.perf_counter()
            assert at.came.wait(60.0)
            return delivered_at - started_at, at.at - started_at

        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("alone", "quiet", "begins", "next")}
        for k in range(rounds + 3):
            for name, target, at, overlay in (
                ("alone", alone, lonely, quiet), ("quiet", outputs, probe, quiet),
                ("begins", outputs, probe, alarmed), ("next", outputs, probe, alarmed),
            ):  # fmt: skip
                times[name].append(deliver(target, at, overlay))
            outputs.put(quiet, "drop-oldest")
            while worker.delivered < 4 * (k + 1):
                time.sleep(0.001)
        begun = sink.metrics()[0].value
    assert begun == rounds + 3
    assert not outputs.workers[0].dropped
    return {
        name: {what: quantiles([pair[k] for pair in pairs[3:]]) for k, what in enumerate(("deliver", "arrive"))}
        for name, pairs in times.items()
    }


def fill(path: Path, count: int) -> float:
    """Write events a minute apart; return the Unix time of the last."""
    store = EventStore(path, budget_bytes=4 << 30, keep_seconds=1e9)
    first = 1.79e9
    store.open(first, 0.0)
    figure = Figure("heat_inside(part)", 0.25, 0.5, -0.25)
    for start in range(0, count, 1000):
        batch = {}
        for k in range(start, min(start + 1000, count)):
            at, label = first + 60.0 * k, f"class {k % 40}"
            text = "heat_inside(part) >= 0.5, but is 0.25"
            kind, camera, rule = KINDS[k % 3], f"camera {k % CAMERAS}", f"rule {k % 7}"
            event = Event(new_event_id(at), kind, camera, rule, text, at, at, at + 5.0, label, 0.9, None, figure)
            batch[event.id] = (event, None)
        store.write(batch)
    store.close()
    return first + 60.0 * count


def query_times(path: Path, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time queries as the page makes them."""
    now = fill(path, count)
    reader, middle = EventReader(path), now - 30.0 * count
    newest = reader.page(EventFilter()).events
    filters = {
        "newest": EventFilter(),
        "camera": EventFilter(cameras=("camera 3",)),
        "last_hour": EventFilter(after=now - 3600.0),
        "an_hour_long_ago": EventFilter(after=middle, before=middle + 3600.0),
        "camera_and_kind": EventFilter(cameras=("camera 3",), kinds=("guard",)),
        "label_that_is_rare": EventFilter(labels=("no such",)),
        "new": EventFilter(states=("new",)),
        "acknowledged": EventFilter(states=("acknowledged",)),
        "all_filters": EventFilter(middle, None, ("camera 3",), ("guard",), ("class 3",), ("new",)),
    }
    cases: dict[str, Callable[[int], object]] = {
        name: lambda _round, chosen=chosen: reader.page(chosen) for name, chosen in filters.items()
    }
    cases["second_page"] = lambda _round: reader.page(EventFilter(), before_id=newest[-1]["id"])
    cases["one_event"] = lambda _round: reader.event(newest[50]["id"])
    cases["summary"] = lambda _round: reader.summary()
    assert len(newest) == min(100, count)
    assert 59 <= len(reader.page(filters["an_hour_long_ago"]).events) <= 62
    return {name: quantiles(each) for name, each in interleaved(cases, rounds, warmup=1).items()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print one JSON line and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = path_times(folder, 5 * options.rounds, tuple(options.size))
        put = put_times(folder, 5 * options.rounds, tuple(options.size))
        query = query_times(folder / "events.sqlite", options.events, options.rounds)
    result = {"events": options.events, "path": path, "put": put, "query": query}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()

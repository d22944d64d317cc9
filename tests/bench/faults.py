"""The fault matrix: the times until a lost camera is noticed and recovered, and the effect on another camera.

    uv run python -m tests.bench.faults --repeats 10
    uv run python -m tests.bench.faults --faults stall close --repeats 3 --table

Two simulated cameras run through the whole pipeline with an explainer that takes no time. One of them has a fault,
again and again; the other is healthy. Detect: from the fault until the camera's health is no longer ``live`` (where
packets are lost or corrupted: from the first of them until one is counted). Recover: from the end of the fault until
the first picture leaves that was taken after it, by the number painted into it. Wrong: pictures shown that cannot be
read, so were damaged. Healthy: the share of the other camera's pictures that left meanwhile. One JSON line per fault.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from overlays.render.renderer import HeatRenderer
from pipeline.loop import Pipeline
from pipeline.ports import Health, Source
from pipeline.result import RunLimits, RunResult
from stream.sources import build_source
from tests.bench.figures import environment, print_line
from tests.support.cable import Cable, missing
from tests.support.feed import Feed
from tests.support.probes import NullExplainer, Observation, ProbeSink
from tests.support.proxy import Proxy
from tests.support.rtsp_server import Faults, RtspServer

LIMIT_SECONDS: Final = 40.0
_LOOK_SECONDS: Final = 0.002
_RIGHT, _WRONG = "right", "wrong"
_NOISE: Final = random.Random(1).randbytes(400)


@dataclass
class Scene:
    """A camera with faults, a camera without faults, and the run that reads both."""

    feed: Feed
    server: RtspServer
    line: Proxy
    cable: Cable | None
    other: Feed
    source: Source
    healthy: Source
    witness: ProbeSink
    healths: list[tuple[float, Health]] = field(default_factory=list)
    """Each change of the faulty camera's health, with its time."""

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until it holds. Raises ``TimeoutError``."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {LIMIT_SECONDS} s: {what}; {self.source.health}")
            time.sleep(_LOOK_SECONDS)

    def seen(self, source: Source) -> list[Observation]:
        """Return what left of one camera."""
        return [sighting for sighting in self.witness.sightings if sighting.camera == source.camera]

    def first_after(self, number: int) -> Observation | None:
        """Return the first picture of the faulty camera that was taken after ``number``."""
        for sighting in self.seen(self.source):
            if sighting.mark is not None and sighting.mark.number > number:
                return sighting
        return None

    def first_health(self, since: float, holds: Callable[[Health], bool]) -> tuple[float, Health] | None:
        """Return the first health since ``since`` for which ``holds`` is true, and its time."""
        return next(((at, health) for at, health in list(self.healths) if at >= since and holds(health)), None)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the matrix."""

    submit: Callable[[Scene], float | None]
    """Makes it happen; returns since when it can be noticed, where that is not the moment of the call."""
    end: Callable[[Scene], object] = lambda _: None
    hold_seconds: tuple[float, float] = (0.3, 0.8)
    """Duration after detection, drawn uniformly."""
    cabac: bool = False
    """True if the camera encodes with CABAC, as most do; False for CAVLC, in which damage is more visible."""
    behind_line: bool = False
    """True if the camera is reached through the proxy, which then has the fault."""
    on_cable: bool = False
    """True if the camera is at the far end of a virtual cable; needs root."""
    noticed: Callable[[Health, Health], bool] | None = lambda _, now: now.state != "live"
    """Condition on the health before and now that means detection; None: the fault cannot be detected."""


def _bad(scene: Scene, **faults: object) -> None:
    scene.server.faults = replace(scene.server.faults, **faults)  # type: ignore[arg-type]


def _good(scene: Scene) -> None:
    scene.server.faults = Faults(time_shift_seconds=scene.server.faults.time_shift_seconds)


def _bad_at_reconnect(**faults: object) -> Callable[[Scene], None]:
    def begin(scene: Scene) -> None:
        _bad(scene, **faults)
        scene.server.close()

    return begin


def _resize(scene: Scene) -> None:
    scene.feed.size = (240, 180) if scene.feed.size == (320, 240) else (320, 240)


def _die_resized(scene: Scene) -> None:
    scene.server.die()
    _resize(scene)


def _lock(scene: Scene) -> None:
    scene.server.password = _WRONG
    scene.server.close()


def _unlock(scene: Scene) -> None:
    scene.server.password = _RIGHT


def _dark(scene: Scene) -> None:
    scene.line.blackholed = True


def _light(scene: Scene) -> None:
    scene.line.blackholed = False


def _pull(scene: Scene) -> None:
    assert scene.cable
    scene.cable.pull()


def _plug(scene: Scene) -> None:
    assert scene.cable
    scene.cable.plug()


def _damaged(**faults: float) -> Callable[[Scene], float]:
    def begin(scene: Scene) -> float:
        counts = scene.server.counts
        before = counts.packets_dropped + counts.packets_corrupted
        _bad(scene, **faults)
        scene.until(lambda: counts.packets_dropped + counts.packets_corrupted > before, "the first damaged packet")
        return time.monotonic()

    return begin


def _counted(before: Health, now: Health) -> bool:
    return now.corrupt > before.corrupt


FAULTS: Final[dict[str, Fault]] = {
    "refused for 3 s": Fault(lambda s: s.server.die(), lambda s: s.server.come_back(), (3.0, 3.5)),
    "dies and returns": Fault(lambda s: s.server.die(), lambda s: s.server.come_back()),
    "close": Fault(lambda s: s.server.close(), hold_seconds=(0.0, 0.0)),
    "stall": Fault(lambda s: _bad(s, stalled=True), _good),
    "blackhole": Fault(_dark, _light, behind_line=True),
    "cable pulled": Fault(_pull, _plug, on_cable=True),
    "cable pulled for 8 s": Fault(_pull, _plug, (6.0, 8.0), on_cable=True),
    "reset": Fault(lambda s: s.line.reset(), hold_seconds=(0.0, 0.0), behind_line=True),
    "hangs up at once for 3 s": Fault(
        lambda s: s.server.die(), lambda s: s.server.come_back(), (3.0, 3.5), behind_line=True
    ),
    "no answer": Fault(_bad_at_reconnect(silent=True), _good, (2.0, 3.0)),
    "unauthorised": Fault(_lock, _unlock),
    "not found": Fault(_bad_at_reconnect(moved_path=True), _good),
    "garbage SDP": Fault(_bad_at_reconnect(description=_NOISE), _good),
    "packet loss 2 %": Fault(_damaged(drop_share=0.02), _good, (2.0, 3.0), noticed=_counted),
    "packet loss 2 %, CABAC": Fault(_damaged(drop_share=0.02), _good, (2.0, 3.0), noticed=_counted, cabac=True),
    "packets corrupted 2 %": Fault(_damaged(corrupt_share=0.02), _good, (2.0, 3.0), noticed=_counted),
    "other size on return": Fault(_die_resized, lambda s: s.server.come_back()),
    "other size, unannounced": Fault(_resize, hold_seconds=(0.0, 0.0), noticed=None),
    "clock set back": Fault(
        lambda s: _bad(s, time_shift_seconds=s.server.faults.time_shift_seconds - 5000.0),
        hold_seconds=(0.0, 0.0), noticed=None,
    ),
    "none": Fault(lambda _: None, hold_seconds=(0.5, 1.0), noticed=None),
}  # fmt: skip


class HealthWatch:
    """Notes each change of a source's health, in a thread."""

    def __init__(self, scene: Scene) -> None:
        """Create a run of the scene whose faulty camera is watched."""
        self._scene = scene
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = None
        while not self._stop.wait(_LOOK_SECONDS):
            health = self._scene.source.health
            if health != last:
                last = health
                self._scene.healths.append((time.monotonic(), health))


@contextmanager
def running(sources: Sequence[Source], witness: ProbeSink) -> Iterator[list[RunResult]]:
    """Run the pipeline in a thread during the block; the list has the result after it. A bug is raised."""
    stop, ended, failed = threading.Event(), [], []

    def run() -> None:
        limits = RunLimits(batch_size=len(sources), batch_window_seconds=0.005)
        lanes = [(source, "drop-oldest") for source in sources]
        try:
            ended.append(Pipeline(lanes, NullExplainer(), HeatRenderer(), [witness], limits=limits, stop=stop).run())
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, name="run")
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


@contextmanager
def staged(fault: Fault, options: dict[str, Any], seed: int) -> Iterator[Scene]:
    """Yield a running scene."""
    with ExitStack() as stack:
        feed = stack.enter_context(Feed((320, 240), rate=10, bit_rate=1_000_000, grain=20, cabac=fault.cabac))
        other = stack.enter_context(Feed((320, 240), rate=10))
        cable = stack.enter_context(Cable()) if fault.on_cable else None
        where = {"host": cable.far, "namespace": cable.name} if cable else {}
        server = stack.enter_context(RtspServer(feed, user="eye", password=_RIGHT, seed=seed, **where))
        neighbour = stack.enter_context(RtspServer(other))
        line = stack.enter_context(Proxy(server.port))
        uri = server.url().replace(f":{server.port}/", f":{line.port}/") if fault.behind_line else server.url()
        source = stack.enter_context(build_source(uri, camera="faulty", **options))
        healthy = stack.enter_context(build_source(neighbour.url(), camera="healthy", **options))
        witness = stack.enter_context(ProbeSink())
        scene = Scene(feed, server, line, cable, other, source, healthy, witness)
        stack.enter_context(HealthWatch(scene))
        stack.enter_context(running([source, healthy], witness))
        yield scene


@dataclass(frozen=True, slots=True)
class Once:
    """One repeat."""

    detect_seconds: float | None
    recover_seconds: float
    age_seconds: float
    """Age of the first image after the fault when it left."""
    reason: str
    others: tuple[int, int]
    """The healthy camera's picture numbers before and after."""


def once(scene: Scene, fault: Fault, chance: random.Random) -> Once:
    """Cause the fault and end it, once."""
    begun_with = scene.feed.number
    scene.until(lambda: scene.first_after(begun_with) and scene.source.health.state == "live", "live before the fault")
    time.sleep(chance.uniform(0.0, 0.2))
    before, others = scene.source.health, scene.other.number
    at = time.monotonic()
    at = fault.submit(scene) or at
    noticed, detected_at = fault.noticed, None
    if noticed is not None:
        scene.until(lambda: scene.first_health(at, lambda now: noticed(before, now)), "noticed")
        detected_at = scene.first_health(at, lambda now: noticed(before, now))
    time.sleep(chance.uniform(*fault.hold_seconds))
    back, number = time.monotonic(), scene.feed.number
    reason = scene.source.health.reason
    fault.end(scene)
    scene.until(lambda: scene.first_after(number), "a fresh picture")
    first = scene.first_after(number)
    assert first
    return Once(
        None if detected_at is None else detected_at[0] - at, first.at - back, first.age_seconds, reason,
        (others, scene.other.number),
    )  # fmt: skip


def measure(name: str, repeats: int, options: dict[str, Any], seed: int = 0) -> dict[str, object]:
    """Return one row of the matrix."""
    chance = random.Random(f"{name} {seed}")
    with staged(FAULTS[name], options, seed) as scene:
        rounds = [once(scene, FAULTS[name], chance) for _ in range(repeats)]
        last = rounds[-1].others[1]
        scene.until(lambda: any(s.mark and s.mark.number > last for s in scene.seen(scene.healthy)), "the other's last")
        others = {s.mark.number for s in scene.seen(scene.healthy) if s.mark}
        shown = scene.seen(scene.source)
        health = scene.source.health
    begin, end = rounds[0].others[0], rounds[-1].others[1]
    fraction = len(others & set(range(begin + 1, end + 1))) / max(1, end - begin)
    detected = [r.detect_seconds for r in rounds if r.detect_seconds is not None]
    return {
        "bench": "faults", "fault": name, "repeats": repeats, "read_timeout_s": options.get("read_timeout_seconds"),
        "detect_s": _spread(detected) if detected else None, "recover_s": _spread([r.recover_seconds for r in rounds]),
        "age_of_first_s": _spread([r.age_seconds for r in rounds]), "shown": len(shown),
        "wrong": sum(sighting.mark is None for sighting in shown), "corrupt_counted": health.corrupt,
        "reconnects": health.reconnects, "healthy_share": round(fraction, 4), "healthy_pictures": end - begin,
        "reason": Counter(r.reason for r in rounds).most_common(1)[0][0],
    }  # fmt: skip


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(seconds), 3), "max": round(max(seconds), 3)}


def table(rows: list[dict[str, object]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| fault | detect p50, max (s) | recover p50, max (s) | wrong of shown | healthy share | in words |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        detect, recover = row["detect_s"], row["recover_s"]
        assert isinstance(recover, dict)
        noticed = f"{detect['p50']:.2f}, {detect['max']:.2f}" if isinstance(detect, dict) else "-"
        lines.append(
            f"| {row['fault']} | {noticed} | {recover['p50']:.2f}, {recover['max']:.2f} | {row['wrong']} of "
            f"{row['shown']} | {row['healthy_share']} | {row['reason']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=[*FAULTS], default=[*FAULTS], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--read-timeout", type=float, default=2.0)
    parser.add_argument("--open-timeout", type=float, default=3.0)
    parser.add_argument("--table", action="store_true", help="print a Markdown table behind the lines")
    arguments = parser.parse_args()
    options = {"read_timeout_seconds": arguments.read_timeout, "open_timeout_seconds": arguments.open_timeout}
    rows = []
    for name in arguments.faults:
        if FAULTS[name].on_cable and missing():
            print_line(bench="faults", fault=name, skipped=missing())
            continue
        rows.append(measure(name, arguments.repeats, options))
        print_line(**rows[-1], **environment())
    if arguments.table:
        print(table(rows))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()

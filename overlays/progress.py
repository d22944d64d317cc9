"""How a run does, on the terminal: a live table for people, a line now and then for logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlays.render.stale import format_duration
from pipeline.drops import format_drops
from pipeline.log_format import escaped
from pipeline.ports import Accounting
from pipeline.result import RunResult
from pipeline.signal_loss import SILENT_INTERVALS
from pipeline.stats import CameraStats
from pipeline.workers.source import SourceWorker

PLAIN_INTERVAL_SECONDS = 5.0
"""How often a line is written where there is no terminal."""
_SILENT_SECONDS = 2.0
"""A camera that has given nothing for so long has no age that means anything."""


class Progress:
    """A with-block whose ``watch`` is given to ``pipeline.loop.Pipeline``."""

    def __init__(self, console: Console, on_progress: Callable[[str], None] | None = None) -> None:
        """Take where to show it; ``on_progress`` gets lines instead, where they are for a machine."""
        self._console = console
        self._tell = on_progress
        shown = console.is_terminal and on_progress is None
        self._live = Live(console=console, auto_refresh=False, transient=True) if shown else None
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._live:
            self._live.stop()

    def watch(self, result: RunResult) -> None:
        """Show how the run does, at most four times a second on a terminal. A full disk there ends no run."""
        now = time.monotonic()
        interval = 0.25 if self._live else PLAIN_INTERVAL_SECONDS
        if now - self._shown_at < interval:
            return
        self._shown_at = now
        with suppress(OSError):
            self._show(result, now)

    def _show(self, result: RunResult, now: float) -> None:
        if self._live:
            self._live.update(table(result, now), refresh=True)
        elif self._tell:
            for line in lines(result, now):
                self._tell(line)
        else:
            for line in lines(result, now):
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def table(result: RunResult, now: float) -> Table:
    """Return the state of every camera as a table."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("camera", "state", "frames", "of", "frames/s", "age p50", "dropped", "reconnects", "verdict"):
        shown.add_column(heading, no_wrap=True)
    for worker in result.source_workers:
        camera, health = result.stats.cameras[worker.camera], worker.health
        cells = (
            worker.camera,
            health.state + (f" ({health.reason})" if health.reason else ""),
            str(camera.explained),
            str(worker.source.frames_total or "-"),
            f"{camera.rate(now):.1f}",
            _freshness(worker, camera, now),
            str(result.stats.frames.dropped(worker.camera)),
            str(health.reconnects),
            f"{camera.label} {camera.score:.2f}" if camera.label else "",
        )
        shown.add_row(*(Text(escaped(cell)) for cell in cells))  # as it is: brackets in names are no markup
    return shown


def lines(result: RunResult, now: float) -> list[str]:
    """Return the state of every camera as one line each."""
    told = []
    for worker in result.source_workers:
        camera, health = result.stats.cameras[worker.camera], worker.health
        total = f"/{worker.source.frames_total}" if worker.source.frames_total else ""
        fresh = _freshness(worker, camera, now)
        told.append(
            escaped(
                f"{worker.camera}: {health.state}{f' ({health.reason})' if health.reason else ''}, "
                f"{_counted(camera.explained, 'frame', total)}, {camera.rate(now):.1f}/s, "
                f"{fresh if fresh.startswith('no ') else f'age {fresh}'}, "
                f"{format_drops(result.stats.frames.drops(worker.camera))}, {_counted(health.reconnects, 'reconnect')}"
                + (f", {camera.label} {camera.score:.2f}" if camera.label else "")
            )
        )
    return told


def _counted(count: int, thing: str, of: str = "") -> str:
    return f"{count}{of} {thing}{'' if count == 1 and not of else 's'}"


def _freshness(worker: SourceWorker, camera: CameraStats, now: float) -> str:
    """Return the median age of a camera's frames, or for how long it has given none."""
    if worker.source.live:
        if worker.last_received_at is None:
            return "no frame yet"
        silent = now - worker.last_received_at
        if silent > max(_SILENT_SECONDS, SILENT_INTERVALS * worker.mean_interval_seconds):
            return f"no frame for {format_duration(silent)}"
    return f"{camera.age.quantile(0.5) * 1e3:.0f} ms"


def summary(result: RunResult) -> list[str]:
    """Return how a run went, a few sentences for people."""
    explained, seconds = result.explained, max(result.seconds, 1e-9)
    corrupt = sum(worker.health.corrupt for worker in result.source_workers)
    told = [
        f"{_counted(result.received, 'frame')} in, {explained} explained, {result.delivered} delivered, "
        f"{format_drops(result.drops)}"
        + (f", {corrupt} damaged" if corrupt else "")
        + f"; {explained / seconds:.1f} frames/s over {seconds:.1f} s"
    ]
    told.extend(
        f"{worker.camera}: {_counted(worker.received, 'frame')}; {worker.health.state}: {worker.health.reason}"
        for worker in result.source_workers
        if worker.health.reason and (worker.received == 0 or worker.health.state not in {"live", "ended"})
    )
    stages = result.stats.stages
    for sink_worker in result.sink_workers:
        age = stages.get(f"age at {sink_worker.name}")
        ages = f", age p50 {age.quantile(0.5) * 1e3:.0f} ms, p99 {age.quantile(0.99) * 1e3:.0f} ms" if age else ""
        refused = f", {sink_worker.refused} refused ({sink_worker.refusal})" if sink_worker.refused else ""
        accounts = (
            part.account for part in result.parts if isinstance(part, Accounting) and part.uri == sink_worker.name
        )
        became = next(accounts, f"{sink_worker.delivered} delivered")
        told.append(f"{sink_worker.name}: {became}, {sink_worker.dropped} dropped{refused}{ages}")
    timed = [name for name in ("preprocess", "explain", "render") if name in stages]
    if timed:
        told.append("per frame, p50: " + ", ".join(f"{n} {stages[n].quantile(0.5) * 1e3:.1f} ms" for n in timed))
    cameras = result.stats.cameras.values()
    if judged := sum(c.judged for c in cameras):
        right, pointed, hits = (sum(getattr(c, n) for c in cameras) for n in ("right", "pointed", "hits"))
        told.append(f"accuracy {right / judged:.1%} ({right} of {judged} frames of known truth)")
        if pointed:
            told.append(
                f"pointing game {hits / pointed:.1%}: the heat's peak lies inside the true defect's box in {hits} of "
                f"{pointed} rightly classified defect frames"
            )
    return [escaped(line) for line in told]

"""Shows the progress of a run: a live table on a terminal, otherwise lines at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlays.render.stale import format_duration
from pipeline.drops import format_drops
from pipeline.log_format import escaped
from pipeline.result import RunResult
from pipeline.stats import CameraStats
from pipeline.workers.source import SourceWorker

PLAIN_INTERVAL_SECONDS = 5.0
"""Interval between lines in seconds, if the output is not a terminal."""
_SILENT_SECONDS = 2.0
"""Time without a frame in seconds after which the time since the last frame replaces the age."""


class Progress:
    """Shows the progress of a run; a context manager whose ``watch`` is passed to ``pipeline.loop.Pipeline``."""

    def __init__(self, console: Console, on_progress: Callable[[str], None] | None = None) -> None:
        """Set the console; if ``on_progress`` is given, it receives the lines instead of the console."""
        self._console = console
        self._on_progress = on_progress
        is_live = console.is_terminal and on_progress is None
        self._live = Live(console=console, auto_refresh=False, transient=True) if is_live else None
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def watch(self, result: RunResult) -> None:
        """Show the progress, at most four times per second on a terminal; output errors are ignored."""
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
        elif self._on_progress:
            for line in lines(result, now):
                self._on_progress(line)
        else:
            for line in lines(result, now):
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def table(result: RunResult, now: float) -> Table:
    """Return the state of all cameras as a table; ``now`` is in monotonic seconds."""
    view = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("camera", "state", "frames", "of", "frames/s", "age p50", "dropped", "reconnects", "top class"):
        view.add_column(heading, no_wrap=True)
    for worker in result.source_workers:
        camera, health = result.stats.cameras[worker.camera], worker.health
        cells = (
            worker.camera,
            health.state + (f" ({health.reason})" if health.reason else ""),
            str(camera.explained),
            str(worker.source.frames_total or "-"),
            f"{camera.rate(now):.1f}",
            _age_text(worker, camera, now),
            str(result.stats.frames.dropped(worker.camera)),
            str(health.reconnects),
            f"{camera.label} {camera.score:.2f}" if camera.label else "",
        )
        view.add_row(*(Text(escaped(cell)) for cell in cells))  # Text does not interpret brackets as markup
    return view


def lines(result: RunResult, now: float) -> list[str]:
    """Return one line of text per camera with its state; ``now`` is in monotonic seconds."""
    rows = []
    for worker in result.source_workers:
        camera, health = result.stats.cameras[worker.camera], worker.health
        total = f"/{worker.source.frames_total}" if worker.source.frames_total else ""
        age = _age_text(worker, camera, now)
        rows.append(
            escaped(
                f"{worker.camera}: {health.state}{f' ({health.reason})' if health.reason else ''}, "
                f"{_counted(camera.explained, 'frame', total)}, {camera.rate(now):.1f}/s, "
                f"{age if age.startswith('no ') else f'age {age}'}, "
                f"{format_drops(result.stats.frames.drops(worker.camera))}, {_counted(health.reconnects, 'reconnect')}"
                + (f", {camera.label} {camera.score:.2f}" if camera.label else "")
            )
        )
    return rows


def _counted(count: int, thing: str, of: str = "") -> str:
    return f"{count}{of} {thing}{'' if count == 1 and not of else 's'}"


def _age_text(worker: SourceWorker, camera: CameraStats, now: float) -> str:
    """Return the median age of a camera's frames as text, or the time since its last frame."""
    if worker.source.live:
        last_at = worker.frame_rate.last_at
        if last_at is None:
            return "no frame yet"
        if worker.frame_rate.is_silent(now, _SILENT_SECONDS):
            return f"no frame for {format_duration(now - last_at)}"
    return f"{camera.age.quantile(0.5) * 1e3:.0f} ms"


def summary(result: RunResult) -> list[str]:
    """Return the summary of a run: totals, problems of sources, sinks, durations and accuracy, one line each."""
    explained, seconds = result.explained, max(result.seconds, 1e-9)
    corrupt, missed = (sum(getattr(w.health, n) for w in result.source_workers) for n in ("corrupt", "missed"))
    rows = [
        f"{_counted(result.received, 'frame')} received, {explained} explained, {result.delivered} delivered, "
        f"{format_drops(result.drops)}"
        + (f", {missed} missed" if missed else "")
        + (f", {corrupt} damaged" if corrupt else "")
        + f"; {explained / seconds:.1f} frames/s over {seconds:.1f} s"
    ]
    rows.extend(
        f"{worker.camera}: {_counted(worker.received, 'frame')}; {worker.health.state}: {worker.health.reason}"
        for worker in result.source_workers
        if worker.health.reason and (worker.received == 0 or worker.health.state not in {"live", "ended"})
    )
    stages = result.stats.stages
    accounts = {part.uri: part.account for part in result.parts}
    for sink_worker in result.sink_workers:
        age = stages.get(f"age at {sink_worker.name}")
        ages = f", age p50 {age.quantile(0.5) * 1e3:.0f} ms, p99 {age.quantile(0.99) * 1e3:.0f} ms" if age else ""
        refused = f", {sink_worker.refused} refused ({sink_worker.refusal})" if sink_worker.refused else ""
        outcome = accounts.get(sink_worker.name) or f"{sink_worker.delivered} delivered"
        rows.append(f"{sink_worker.name}: {outcome}, {sink_worker.dropped} dropped{refused}{ages}")
    timed = [name for name in ("preprocess", "explain", "render") if name in stages]
    if timed:
        rows.append("per frame, p50: " + ", ".join(f"{n} {stages[n].quantile(0.5) * 1e3:.1f} ms" for n in timed))
    cameras = result.stats.cameras.values()
    if judged := sum(c.judged for c in cameras):
        right, pointed, hits = (sum(getattr(c, n) for c in cameras) for n in ("right", "pointed", "hits"))
        rows.append(f"accuracy {right / judged:.1%} ({right} of {judged} frames with known true class)")
        if pointed:
            rows.append(
                f"pointing game {hits / pointed:.1%}: the heat map's peak lies in the box of the true defect in {hits} "
                f"of {pointed} correctly classified defect frames"
            )
    return [escaped(line) for line in rows]

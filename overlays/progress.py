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
from pipeline.log_format import escaped
from pipeline.loop import RunResult
from pipeline.ports import Accounting
from pipeline.signal_loss import SILENT_INTERVALS
from pipeline.stats import CameraStats
from pipeline.workers import SourceWorker

PLAIN_INTERVAL_SECONDS = 5.0
"""How often a line is written where there is no terminal."""
_SILENT_SECONDS = 2.0
"""A camera that has given nothing for so long has no age that means anything."""


class Progress:
    """A with-block whose ``watch`` is given to ``pipeline.loop.run_pipeline``."""

    def __init__(self, console: Console, tell: Callable[[str], None] | None = None) -> None:
        """Take where to show it; ``tell`` gets lines instead, where they are for a machine."""
        self._console = console
        self._tell = tell
        shown = console.is_terminal and tell is None
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

    def watch(self, outcome: RunResult) -> None:
        """Show how the run does, at most four times a second on a terminal. A full disk there ends no run."""
        now = time.monotonic()
        interval = 0.25 if self._live else PLAIN_INTERVAL_SECONDS
        if now - self._shown_at < interval:
            return
        self._shown_at = now
        with suppress(OSError):
            self._show(outcome, now)

    def _show(self, outcome: RunResult, now: float) -> None:
        if self._live:
            self._live.update(table(outcome, now), refresh=True)
        elif self._tell:
            for line in lines(outcome, now):
                self._tell(line)
        else:
            for line in lines(outcome, now):
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def table(outcome: RunResult, now: float) -> Table:
    """Return the state of every camera as a table."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("camera", "state", "frames", "of", "frames/s", "age p50", "dropped", "reconnects", "verdict"):
        shown.add_column(heading, no_wrap=True)
    for pump in outcome.source_workers:
        camera, health = outcome.stats.cameras[pump.camera], pump.health
        cells = (
            pump.camera,
            health.state + (f" ({health.reason})" if health.reason else ""),
            str(camera.explained),
            str(pump.source.frames_total or "-"),
            f"{camera.rate(now):.1f}",
            _freshness(pump, camera, now),
            str(pump.dropped),
            str(health.reconnects),
            f"{camera.label} {camera.score:.2f}" if camera.label else "",
        )
        shown.add_row(*(Text(escaped(cell)) for cell in cells))  # as it is: brackets in names are no markup
    return shown


def lines(outcome: RunResult, now: float) -> list[str]:
    """Return the state of every camera as one line each."""
    told = []
    for pump in outcome.source_workers:
        camera, health = outcome.stats.cameras[pump.camera], pump.health
        total = f"/{pump.source.frames_total}" if pump.source.frames_total else ""
        fresh = _freshness(pump, camera, now)
        told.append(
            escaped(
                f"{pump.camera}: {health.state}{f' ({health.reason})' if health.reason else ''}, "
                f"{_counted(camera.explained, 'frame', total)}, {camera.rate(now):.1f}/s, "
                f"{fresh if fresh.startswith('no ') else f'age {fresh}'}, "
                f"{pump.dropped} dropped, {_counted(health.reconnects, 'reconnect')}"
                + (f", {camera.label} {camera.score:.2f}" if camera.label else "")
            )
        )
    return told


def _counted(count: int, thing: str, of: str = "") -> str:
    return f"{count}{of} {thing}{'' if count == 1 and not of else 's'}"


def _freshness(pump: SourceWorker, camera: CameraStats, now: float) -> str:
    """Return the median age of a camera's frames, or for how long it has given none."""
    if pump.source.live:
        if pump.last_received_at is None:
            return "no frame yet"
        silent = now - pump.last_received_at
        if silent > max(_SILENT_SECONDS, SILENT_INTERVALS * pump.mean_interval_seconds):
            return f"no frame for {format_duration(silent)}"
    return f"{camera.age.quantile(0.5) * 1e3:.0f} ms"


def summary(outcome: RunResult) -> list[str]:
    """Return how a run went, a few sentences for people."""
    explained, seconds = outcome.explained, max(outcome.seconds, 1e-9)
    corrupt = sum(pump.health.corrupt for pump in outcome.source_workers)
    told = [
        f"{_counted(outcome.received, 'frame')} in, {explained} explained, {outcome.dropped} dropped before the engine"
        + (f", {corrupt} damaged" if corrupt else "")
        + (f", {outcome.expired} too old to be worth showing" if outcome.expired else "")
        + f"; {explained / seconds:.1f} frames/s over {seconds:.1f} s"
    ]
    told.extend(
        f"{pump.camera}: {_counted(pump.received, 'frame')}; {pump.health.state}: {pump.health.reason}"
        for pump in outcome.source_workers
        if pump.health.reason and (pump.received == 0 or pump.health.state not in {"live", "ended"})
    )
    stages = outcome.stats.stages
    for outlet in outcome.sink_workers:
        age = stages.get(f"age at {outlet.name}")
        ages = f", age p50 {age.quantile(0.5) * 1e3:.0f} ms, p99 {age.quantile(0.99) * 1e3:.0f} ms" if age else ""
        refused = f", {outlet.refused} refused ({outlet.refusal})" if outlet.refused else ""
        accounts = (part.account for part in outcome.parts if isinstance(part, Accounting) and part.uri == outlet.name)
        became = next(accounts, f"{outlet.delivered} delivered")
        told.append(f"{outlet.name}: {became}, {outlet.dropped} dropped{refused}{ages}")
    timed = [name for name in ("preprocess", "explain", "render") if name in stages]
    if timed:
        told.append("per frame, p50: " + ", ".join(f"{n} {stages[n].quantile(0.5) * 1e3:.1f} ms" for n in timed))
    cameras = outcome.stats.cameras.values()
    if judged := sum(c.judged for c in cameras):
        right, pointed, hits = (sum(getattr(c, n) for c in cameras) for n in ("right", "pointed", "hits"))
        told.append(f"accuracy {right / judged:.1%} ({right} of {judged} frames of known truth)")
        if pointed:
            told.append(
                f"pointing game {hits / pointed:.1%}: the heat's peak lies inside the true defect's box in {hits} of "
                f"{pointed} rightly classified defect frames"
            )
    return [escaped(line) for line in told]

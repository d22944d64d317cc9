"""From a viewer to sinks: what ``run.py view`` does, with every sink behind a queue of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from overlays.viewer import Received, Viewer
from pipeline.errors import WireError
from pipeline.frames import Overlay
from pipeline.loop import outlet_of
from pipeline.metrics import Histogram
from pipeline.ports import Sink
from pipeline.pump import Relay

SILENCE_SECONDS = 2.0
"""After so long without a message it is said."""
_SAY_EVERY_SECONDS = 5.0


@dataclass
class Watched:
    """What a viewer saw."""

    frames: int = 0
    missed: int = 0
    damaged: int = 0
    age: Histogram = field(default_factory=Histogram)
    outlets: list[Relay[Overlay]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """A few sentences for people."""
        p50, p99 = self.age.quantile(0.5) * 1e3, self.age.quantile(0.99) * 1e3
        ages = f"age p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        told = [f"{self.frames} frames seen, {self.missed} missed, {self.damaged} damaged; {ages}"]
        told.extend(f"{o.name}: {o.delivered} delivered, {o.dropped} dropped" for o in self.outlets)
        return told


def watch(
    viewer: Viewer,
    sinks: Sequence[Sink],
    *,
    stop: threading.Event,
    frames: int | None = None,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
) -> Watched:
    """Put what a viewer receives into sinks until ``stop`` is set, a limit is reached, or the window is closed.

    Args:
        viewer: entered.
        sinks: entered.
        stop: ends it.
        frames: stop after so many.
        seconds: stop after so long.
        say: told when nothing comes, and when it comes again.
    """
    seen = Watched(outlets=[outlet_of(sink, sink.put) for sink in sinks])
    until = None if seconds is None else time.monotonic() + seconds
    with ExitStack() as stack:
        for outlet in seen.outlets:
            stack.enter_context(outlet)
        said_at = time.monotonic()
        silent = False
        for received in viewer.messages_or_silence(stop):
            now = time.monotonic()
            if received is None:
                if viewer.silent_seconds > SILENCE_SECONDS and (not silent or now - said_at > _SAY_EVERY_SECONDS):
                    say(f"no signal from {viewer.uri} for {viewer.silent_seconds:.0f} s; still listening")
                    silent, said_at = True, now
            elif _pass_on(received, seen):
                silent = False
            if seen.frames == frames or (until is not None and now >= until) or _closed(seen.outlets):
                break
    seen.damaged = viewer.damaged
    for outlet in seen.outlets:
        if outlet.error is not None:
            seen.errors.append(str(outlet.error))
    return seen


def _pass_on(received: Received, seen: Watched) -> bool:
    """Put one message into every outlet; return False when its picture is damaged."""
    try:
        overlay = received.overlay()
    except WireError:
        return False
    if overlay.silence is None:
        seen.frames += 1
        seen.missed += received.missed
        seen.age.add(max(received.age_seconds(), 0.0))
    for outlet in seen.outlets:
        outlet.put(overlay)
    return True


def _closed(outlets: Sequence[Relay[Overlay]]) -> bool:
    return any(o.stop_requested.is_set() for o in outlets) or all(o.broken for o in outlets)

"""Overlays of a camera as a story, for tests of events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.frames import Explanation, Finding, Frame, Overlay, SignalLoss
from pipeline.guards.state import GuardFigure, GuardState

WALL = 1_790_000_000.0
"""Unix time of the monotonic time 0 in these stories."""


def explanation(
    seconds: float = 0.0, *, camera: str = "line", label: str = "scratch", score: float = 0.9,
    inside: float | None = None, size: tuple[int, int] = (48, 64),
) -> Explanation:  # fmt: skip
    """Return a frame at a time; with ``inside``, the guard ``grounded`` fires with this value."""
    image = np.full((*size, 3), 90, np.uint8)
    heat = np.zeros((3, 4), np.float32)
    heat[0, 0] = 1.0
    frame = Frame(image, camera, round(seconds * 10), seconds)
    made = Explanation(frame, (Finding(label, score, heat, 3),), "recipro-cam/point", "layer4", model="resnet18")
    return made if inside is None else replace(made, guards=(guard(inside),))


def guard(inside: float, *, firing: bool = True, seconds: float = 0.0) -> GuardState:
    """Return the state of the guard ``grounded``, with the fraction of the heat inside its region."""
    figure = GuardFigure("heat_inside(part)", inside, 0.5, inside - 0.5)
    text = f"heat_inside(part) >= 0.5, but is {inside:.2f}"
    return GuardState("grounded", firing, seconds, text if firing else "", 1, figure if firing else None)


def shown(seconds: float = 0.0, **facts) -> Overlay:
    """Return the overlay of ``explanation``."""
    made = explanation(seconds, **facts)
    return Overlay(made.frame.image, made)


def silent(seconds: float, lost_seconds: float, reason: str = "refused", camera: str = "line") -> Overlay:
    """Return the report of a signal loss that has lasted ``lost_seconds``."""
    made = explanation(seconds - lost_seconds, camera=camera)
    return Overlay(made.frame.image, made, SignalLoss(lost_seconds, "waiting", reason))


class Clock:
    """Monotonic and Unix time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        """Return Unix seconds."""
        return WALL + self.now

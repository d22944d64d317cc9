"""What the page knows of each camera, and how it tells it: how fresh, how often, how many lost, and why."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from overlays.wire.json_fields import replace_undecodable
from pipeline.frames import Overlay, SignalLoss
from pipeline.ports import MetricSample
from pipeline.result import RunResult
from pipeline.signal_loss import SILENT_INTERVALS, SILENT_SECONDS

_RATE_FRAMES: Final = 30
_MAX_INTERVAL_SECONDS: Final = 10.0
_MAX_FIRST_SECONDS: Final = 60.0
"""Between a camera's first two frames: it may be slow by nature."""
_DRIFT_SECONDS: Final = 2.0


@dataclass(slots=True)
class CameraStatus:
    """One camera, as its frames came to the page."""

    frames: int = 0
    missed: int = 0
    """Frames the camera gave that did not come this far: gaps in their numbers."""
    index: int = -1
    captured_at: float = 0.0
    received_at: float = 0.0
    label: str = ""
    score: float = 0.0
    signal_loss: SignalLoss | None = None
    """What the one before us says, where it says so (a stream that is watched from afar)."""
    interval_seconds: float = 0.0
    """The usual time between two frames; 0 before the second."""
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=_RATE_FRAMES))
    """Of the writer alone."""

    def is_stale(self, now: float) -> bool:
        """Say whether nothing has come for longer than is usual."""
        return now - self.received_at > max(SILENT_SECONDS, SILENT_INTERVALS * self.interval_seconds)

    def is_paused(self, now: float) -> bool:
        """Say whether so long a time has passed that it tells nothing of the camera's rate."""
        usual = SILENT_INTERVALS * self.interval_seconds if len(self.arrivals) > 1 else _MAX_FIRST_SECONDS
        return now - self.received_at > max(_MAX_INTERVAL_SECONDS, usual)


class StatusBoard:
    """Written by the thread that puts; read by the loop, which tolerates a value that is one frame older."""

    def __init__(self, cameras: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """Take the cameras that are expected: they are told of before their first frame."""
        self.clock = clock
        self.cameras: dict[str, CameraStatus] = {replace_undecodable(camera): CameraStatus() for camera in cameras}
        self.outcome: RunResult | None = None
        """The run, where the page is part of one."""
        self._drift_at = -math.inf
        self._drifts: dict[str, str] = {}

    def update(self, overlay: Overlay) -> None:
        """Take note of a frame, or of a silence."""
        frame = overlay.explanation.frame
        camera = replace_undecodable(frame.camera)
        seen = self.cameras.get(camera) or CameraStatus()
        if overlay.signal_loss is not None:
            seen.signal_loss = overlay.signal_loss
        else:
            now = self.clock()
            seen.signal_loss = None
            seen.missed += max(frame.index - seen.index - 1, 0) if seen.frames else 0
            seen.index, seen.captured_at, seen.received_at = frame.index, frame.captured_at, now
            if seen.frames and seen.is_paused(now):
                seen.arrivals.clear()
            seen.arrivals.append(now)
            passed = seen.arrivals[-1] - seen.arrivals[0]
            seen.interval_seconds = passed / max(len(seen.arrivals) - 1, 1)
            verdict = overlay.explanation.top_scoring
            seen.label = verdict.label if verdict else ""
            seen.score = verdict.score if verdict and math.isfinite(verdict.score) else 0.0
            seen.frames += 1
        if camera not in self.cameras:
            # Replaced as a whole: the loop may be walking through it.
            self.cameras = {**self.cameras, camera: seen}

    def snapshot(self) -> list[dict[str, Any]]:
        """Return every camera's state in plain JSON values."""
        now = self.clock()
        return [self._camera_snapshot(camera, seen, now) for camera, seen in self.cameras.items()]

    def _camera_snapshot(self, camera: str, seen: CameraStatus, now: float) -> dict[str, Any]:
        silent = seen.frames > 0 and seen.is_stale(now)
        state, reason, reconnects, corrupt = "live" if seen.frames else "waiting", "", 0, 0
        worker = (
            next((p for p in self.outcome.source_workers if replace_undecodable(p.camera) == camera), None)
            if self.outcome
            else None
        )
        if worker is not None:
            health = worker.health
            state, reason, reconnects, corrupt = health.state, health.reason, health.reconnects, health.corrupt
            if worker.finished and state not in {"failed", "ended"}:
                state = "ended"
        elif seen.signal_loss is not None:
            state, reason, silent = seen.signal_loss.state, seen.signal_loss.reason, True
        if silent and state in {"live", ""}:
            state = "silent"
        rate = 0.0 if silent or not seen.interval_seconds else 1.0 / seen.interval_seconds
        return {
            "camera": camera,
            "state": state,
            "reason": reason,
            "silent": silent or (seen.signal_loss is not None),
            "age_seconds": round(now - seen.captured_at, 3) if seen.frames else None,
            "index": seen.index,
            "frames": seen.frames,
            "missed": seen.missed,
            "corrupt": corrupt,
            "reconnects": reconnects,
            "rate": round(rate, 2),
            "label": seen.label,
            "score": round(seen.score, 4),
            "drift": self._drift(camera, now),
        }

    def _drift(self, camera: str, now: float) -> str | None:
        """Say which slow statistic of a camera has come away furthest from the baseline; None where there is none."""
        if self.outcome is not None and now - self._drift_at > _DRIFT_SECONDS:
            self._drift_at = now
            furthest: dict[str, MetricSample] = {}
            for figure in self.outcome.metrics():
                if figure.name == "drift_psi":
                    of = replace_undecodable(dict(figure.labels)["camera"])
                    furthest[of] = max(figure, furthest.get(of, figure), key=lambda one: one.value)
            self._drifts = {
                of: "{statistic} of {label}".format(**dict(figure.labels)) + f", PSI {figure.value:.2f}"
                for of, figure in furthest.items()
            }
        return self._drifts.get(camera)


def readiness(cameras: Sequence[dict[str, Any]], within_seconds: float) -> tuple[bool, dict[str, str]]:
    """Say whether frames are fresh, and for each camera ``fresh`` or why not.

    A file that has come to its end is not held against the others.
    """
    said: dict[str, str] = {}
    for camera in cameras:
        age = camera["age_seconds"]
        why = f": {camera['reason']}" if camera["reason"] else ""
        if camera["state"] == "ended":
            said[camera["camera"]] = "ended"
        elif age is None:
            said[camera["camera"]] = f"no frame yet, {camera['state']}{why}"
        elif age > within_seconds:
            said[camera["camera"]] = f"the last frame is {age:.1f} s old, {camera['state']}{why}"
        else:
            said[camera["camera"]] = "fresh"
    running = [word for word in said.values() if word != "ended"]
    return bool(running) and all(word == "fresh" for word in running), said

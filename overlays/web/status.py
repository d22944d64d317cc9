"""State of each camera for the page, MQTT and metrics: age, frame rate, missing frames and problems."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from overlays.web.history import History, Point
from overlays.web.parts import PassageBoard
from overlays.wire.text import replace_undecodable
from pipeline.frame_rate import FrameRate
from pipeline.frames import Overlay, SignalLoss
from pipeline.ports import MetricSample
from pipeline.result import RunResult

_DRIFT_SECONDS: Final = 2.0


@dataclass(slots=True)
class CameraStatus:
    """State of one camera, derived from the frames that reached the sink."""

    frames: int = 0
    missed: int = 0
    """Number of frames that did not reach the sink, counted from gaps in the frame indices."""
    index: int = -1
    epoch: int | None = None
    """In a fleet, the lease epoch of the newest frame; otherwise None."""
    captured_at: float = 0.0
    label: str = ""
    score: float = 0.0
    firing: tuple[str, ...] = ()
    """Names of the guards that fire in the newest frame."""
    signal_loss: SignalLoss | None = None
    """Signal loss that the publisher reports, if the frames come from another run."""
    frame_rate: FrameRate = field(default_factory=FrameRate)


class StatusBoard:
    """State of all cameras. The sink's thread writes; other threads read, possibly values that are one frame old."""

    def __init__(self, cameras: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """Create the board; ``cameras`` are reported even before their first frame."""
        self.clock = clock
        self.cameras: dict[str, CameraStatus] = {replace_undecodable(camera): CameraStatus() for camera in cameras}
        self.passages = PassageBoard(clock=clock)
        """The last parts and crossings of each camera."""
        self.history = History()
        """Scores and alarms of each camera in the last minute."""
        self.opened_at = clock()
        """Time when the page was opened, in monotonic seconds."""
        self.outcome: RunResult | None = None
        """The result of the page's run; None if the page belongs to no run or the run has not started."""
        self._drift_at = -math.inf
        self._drifts: dict[str, str] = {}

    def update(self, overlay: Overlay) -> None:
        """Record a frame or a signal loss."""
        frame = overlay.explanation.frame
        camera = replace_undecodable(frame.camera)
        self.passages.record(overlay.explanation)
        status = self.cameras.get(camera) or CameraStatus()
        if overlay.signal_loss is not None:
            status.signal_loss = overlay.signal_loss
        else:
            status.signal_loss = None
            if status.frames and frame.epoch == status.epoch:  # the indices of different workers are unrelated
                status.missed += max(frame.index - status.index - 1, 0)
            status.index, status.epoch, status.captured_at = frame.index, frame.epoch, frame.captured_at
            status.frame_rate.record(self.clock())
            top = overlay.explanation.top_scoring
            status.label = top.label if top else ""
            status.score = top.score if top and math.isfinite(top.score) else 0.0
            guards = overlay.explanation.guards
            status.firing = tuple([guard.name for guard in guards if guard.firing]) if guards else ()
            status.frames += 1
            self.history.record(camera, Point(frame.captured_at, status.score, bool(status.firing)))
        if camera not in self.cameras:
            # Replaced, not changed, because the event loop may be iterating over it.
            self.cameras = {**self.cameras, camera: status}

    def forget(self, camera: str) -> None:
        """Remove a camera that left the run."""
        name = replace_undecodable(camera)
        self.cameras = {other: status for other, status in self.cameras.items() if other != name}
        self.passages.forget(camera)
        self.history.forget(name)

    @property
    def building_seconds(self) -> float | None:
        """Seconds since the page was opened while the run starts; None once the run has started."""
        is_built = self.outcome is not None or any(status.frames for status in self.cameras.values())
        return None if is_built else self.clock() - self.opened_at

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the state of every camera as JSON values."""
        now = self.clock()
        cameras = self.cameras
        workers = () if self.outcome is None else tuple(self.outcome.source_workers)
        names = {replace_undecodable(worker.camera) for worker in workers} - cameras.keys()
        silent = {name: CameraStatus() for name in sorted(names)}  # added during the run, without a frame yet
        return [self._camera_snapshot(camera, status, now) for camera, status in {**cameras, **silent}.items()]

    def _camera_snapshot(self, camera: str, status: CameraStatus, now: float) -> dict[str, Any]:
        silent = status.frame_rate.is_silent(now)
        state, reason, reconnects, corrupt = "live" if status.frames else "waiting", "", 0, 0
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
        elif status.signal_loss is not None:
            state, reason, silent = status.signal_loss.state, status.signal_loss.reason, True
        if silent and state in {"live", ""}:
            state = "silent"
        rate = 0.0 if silent else status.frame_rate.frames_per_second(now)
        return {
            "camera": camera,
            "state": state,
            "reason": reason,
            "silent": silent or (status.signal_loss is not None),
            "age_seconds": round(now - status.captured_at, 3) if status.frames else None,
            "index": status.index,
            "frames": status.frames,
            "missed": status.missed,
            "corrupt": corrupt,
            "reconnects": reconnects,
            "rate": round(rate, 2),
            "label": status.label,
            "score": round(status.score, 4),
            "alarms": [replace_undecodable(name) for name in status.firing],
            "drift": self._drift(camera, now),
        }

    def _drift(self, camera: str, now: float) -> str | None:
        """Return the camera's drift statistic with the largest PSI as text; None without drift statistics."""
        if self.outcome is not None and now - self._drift_at > _DRIFT_SECONDS:
            self._drift_at = now
            furthest: dict[str, MetricSample] = {}
            for sample in self.outcome.metrics():
                if sample.name == "drift_psi":
                    name = replace_undecodable(dict(sample.labels)["camera"])
                    furthest[name] = max(sample, furthest.get(name, sample), key=lambda drift: drift.value)
            self._drifts = {
                name: "{statistic} of {label}".format(**dict(sample.labels)) + f", PSI {sample.value:.2f}"
                for name, sample in furthest.items()
            }
        return self._drifts.get(camera)


def readiness(cameras: Sequence[dict[str, Any]], within_seconds: float) -> tuple[bool, dict[str, str]]:
    """Return whether all cameras are fresh, and the state of each: ``fresh``, ``ended``, or the problem.

    Ended files are ignored. Without any running camera the result is False.

    Args:
        cameras: the cameras from ``StatusBoard.snapshot``.
        within_seconds: maximum age of a fresh frame.
    """
    states: dict[str, str] = {}
    for camera in cameras:
        age = camera["age_seconds"]
        why = f": {camera['reason']}" if camera["reason"] else ""
        if camera["state"] == "ended":
            states[camera["camera"]] = "ended"
        elif age is None:
            states[camera["camera"]] = f"no frame yet, {camera['state']}{why}"
        elif age > within_seconds:
            states[camera["camera"]] = f"the last frame is {age:.1f} s old, {camera['state']}{why}"
        else:
            states[camera["camera"]] = "fresh"
    running = [state for state in states.values() if state != "ended"]
    return bool(running) and all(state == "fresh" for state in running), states

"""Limits and results of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.drops import DropReason
from pipeline.errors import ReciproStreamError
from pipeline.frames import Overlay
from pipeline.ports import MetricSample, Part
from pipeline.stats import RunStats
from pipeline.workers.queue import QueueWorker
from pipeline.workers.source import SourceWorker


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Limits of a run, and the sizes of its queues and batches."""

    frames: int | None = None
    """Maximum number of explained frames of all cameras; None = no limit."""
    seconds: float | None = None
    """Maximum duration of the run; None = no limit."""
    batch_size: int = 8
    """Maximum number of frames in a batch."""
    batch_window_seconds: float = 0.0
    """Time that a batch waits for frames of further cameras."""
    queue_frames: int = 2
    """Maximum number of frames of a camera that wait for the engine."""
    max_age_seconds: float | None = None
    """Maximum age of frames of live cameras, checked before the engine and before drawing; None = no limit."""
    sink_queue_frames: int = 16
    """Maximum number of overlays of a camera that wait for a lossless sink; for other sinks it is 2."""


@dataclass(slots=True)
class RunResult:
    """The state of a run, and its result after the end."""

    stats: RunStats
    source_workers: list[SourceWorker]
    sink_workers: list[QueueWorker[Overlay]]
    """The thread and queue of each sink."""
    parts: Sequence[Part] = ()
    """The explainer and the sinks, which may have metrics and problems."""
    errors: list[str] = field(default_factory=list)
    """Errors that ended a camera or a sink early, one sentence each."""
    seconds: float = 0.0
    removed_errors: list[BaseException] = field(default_factory=list)
    """Errors of cameras that were removed from the run."""

    @property
    def received(self) -> int:
        """Number of frames that all sources returned."""
        return self.stats.frames.received()

    @property
    def delivered(self) -> int:
        """Number of frames that at least one sink delivered, or that were explained in a run without sinks."""
        return self.stats.frames.delivered()

    @property
    def drops(self) -> dict[DropReason, int]:
        """Number of dropped frames of all cameras by reason."""
        return self.stats.frames.drops()

    @property
    def dropped(self) -> int:
        """Number of dropped frames of all cameras."""
        return self.stats.frames.dropped()

    @property
    def explained(self) -> int:
        """Number of explained frames."""
        return sum(camera.explained for camera in self.stats.cameras.values())

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of the explainer and the sinks."""
        return [sample for part in self.parts for sample in part.metrics()]

    def problems(self) -> dict[str, str]:
        """Return the problem of each sink that has one, by address; also of sinks that continue."""
        problems = {part.uri: part.problem for part in self.parts}
        problems |= {worker.name: f"closed: {worker.error}" for worker in self.sink_workers if worker.error}
        return {uri: problem for uri, problem in problems.items() if problem}

    def collect_errors(self) -> None:
        """Add the errors of sources and sinks to ``errors``.

        Raises:
            Exception: an exception that is neither a ``ReciproStreamError`` nor an ``OSError``, which is a bug.
        """
        raised = [*self.removed_errors, *(worker.error for worker in self.source_workers)]
        raised.extend(worker.error or worker.fault for worker in self.sink_workers)
        for error in raised:
            if error is not None and not isinstance(error, ReciproStreamError | OSError):
                raise error
            if error is not None:
                self.errors.append(str(error))
        for worker in self.sink_workers:
            if worker.counts_all and worker.refused:
                frames = worker.delivered + worker.dropped + worker.refused
                self.errors.append(
                    f"{worker.name}: {worker.refused} of {frames} frames were refused; the last: {worker.refusal}"
                )

"""A worker as a Ray actor: it runs one network on one device for the cameras that the director leases to it.

The worker decodes, explains and publishes frames itself; only beats go through Ray.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from commands.fleet.capacity import measure_capacity
from commands.fleet.directors import Directors
from commands.fleet.roster import Roster
from commands.fleet.term_file import TermFile, default_term_file
from commands.ray_settings import restore_threads
from commands.wiring.cameras import Camera, make_cameras, with_all_cameras
from commands.wiring.kinds import load_config
from commands.wiring.run import OpenRun, open_run
from pipeline.config import Config
from pipeline.config_loader import read_yaml
from pipeline.errors import ReciproStreamError
from pipeline.fleet.clock import lease_clock
from pipeline.fleet.leases import WorkerLeases
from pipeline.fleet.messages import FleetTiming, WorkerInfo
from pipeline.fleet.places import reachable_address
from pipeline.frames import Frame
from pipeline.log_format import log_as_text
from pipeline.loop import Pipeline
from pipeline.sharding import shard_uri
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger("recipro-stream")

_LOCK_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The arguments of a worker. Ray stores them as plain text, so they contain names and paths, but no addresses."""

    fleet: str
    node: str
    device: str
    number: int
    """Number of the worker on its node, from 0; added to the port of each sink."""
    stream: str
    """Path of the node's stream configuration."""
    without_director: Literal["stop", "keep"] = "stop"
    timing: FleetTiming = field(default_factory=FleetTiming)
    folder: str = ""
    """The working directory of relative paths in the configuration, because Ray's workers may start in another one;
    empty: that of the worker."""

    @property
    def slot(self) -> str:
        """Name of the worker's place in the fleet, such as ``NODE/cuda:0-0``."""
        return f"{self.node}/{self.device}-{self.number}"


class FleetWorker:
    """Runs cameras while their leases are valid by the worker's own clock."""

    def __init__(self, spec: WorkerSpec, directors: Directors) -> None:
        """Build the network, and start the threads of the pipeline and the beats.

        Args:
            spec: the arguments of the worker.
            directors: the client of the directors, which answer the beats.
        """
        log_as_text()
        restore_threads(os.environ)
        if spec.folder:
            os.chdir(spec.folder)
        self._spec, self._directors = spec, directors
        self._lock_file = _take_slot(spec)
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._run = self.open_parts(self._stack)
        self._capacity = self.measure(self._run)
        name = f"{spec.slot}#{uuid.uuid4().hex[:8]}"
        self._terms = TermFile(default_term_file(spec.fleet))
        self._leases = WorkerLeases(
            name, spec.slot, spec.timing, keep=spec.without_director == "keep", term=self._terms.read()
        )
        self._roster = Roster(self._run.running, self.read_cameras, self._leases)
        self._info = WorkerInfo(spec.node, spec.device, self._addresses())
        pipeline = Pipeline(
            self._run.sources, self._run.explainer, self._run.renderer, self._run.sinks,
            limits=self._run.limits, stop=self._stop, discovery=self._run.running, may_publish=self._may_publish,
        )  # fmt: skip
        self._start("pipeline", pipeline.run)
        self._stack.enter_context(self._roster)
        self._start("beats", self._beat)
        log.info("%s: explains %.1f frames/s, and gets cameras for at most %.0f %% of this rate", name, self._capacity,
                 100.0 * spec.timing.fill)  # fmt: skip

    def open_parts(self, stack: ExitStack) -> OpenRun:
        """Open the engine and the sinks, without cameras."""
        return open_run(self.read_config(), stack, starts_empty=True)

    def _addresses(self) -> tuple[str, ...]:
        """Return the addresses of the sinks for other machines."""
        import ray

        host = ray.util.get_node_ip_address()
        return tuple(reachable_address(getattr(sink, "endpoint", sink.uri), host) for sink in self._run.sinks)

    def measure(self, run: OpenRun) -> float:
        """Measure and return the frames per second that this worker explains."""
        return measure_capacity(run.explainer, run.renderer, run.limits.batch_size)

    def read_config(self) -> Config:
        """Read the node's configuration; set this worker's device and sink addresses."""
        path = Path(self._spec.stream)
        config = with_all_cameras(load_config(read_yaml(path.read_text(encoding="utf-8"), path.name), path.name))
        engine = config.engine.model_copy(update={"device": self._spec.device})
        sinks = [sink.model_copy(update={"uri": shard_uri(sink, self._spec.number)}) for sink in config.sinks]
        return config.model_copy(update={"engine": engine, "sinks": sinks, "frames": None, "seconds": None})

    def read_cameras(self) -> list[Camera]:
        """Read the node's configuration again, and return its cameras, unopened."""
        return make_cameras(self.read_config())

    def capacity(self) -> float:
        """Return the measured capacity in frames per second; a result shows that the worker has started."""
        return self._capacity

    def process(self) -> int:
        """Return the process ID of this worker."""
        return os.getpid()

    def close(self) -> None:
        """Close the cameras and the sinks in order."""
        self._stack.close()

    def _may_publish(self, frame: Frame) -> bool:
        return self._leases.may_publish(frame.camera, frame.epoch, lease_clock())

    def _start(self, name: str, run: Callable[[], object]) -> None:
        """Run a function in a thread; if it ends before ``close``, end the process."""

        def call() -> None:
            try:
                run()
            except BaseException:
                log.exception("%s: %s ended; the worker is started again", self._spec.slot, name)
            if not self._stop.is_set():
                os._exit(1)  # Ray starts a new process for this slot; the old leases expire

        self._stack.enter_context(ThreadWorker(f"{name} of {self._spec.slot}", call, self._stop.set))

    def _beat(self) -> None:
        timing = self._spec.timing
        while not self._stop.is_set():
            began_at = lease_clock()
            roster = self._roster
            beat = self._leases.ask(began_at, self._capacity, closing=roster.closing(), unable=roster.unable,
                                    info=self._info)  # fmt: skip
            grant = self._directors.beat(beat)
            is_granted = grant is not None and self._leases.accept(grant) and grant.leases is not None
            self._terms.write(self._leases.term)
            roster.follow(self._leases.valid(lease_clock()))
            pause = timing.beat_seconds if is_granted else timing.retry_seconds
            self._stop.wait(max(began_at + pause - lease_clock(), 0.0))


def _take_slot(spec: WorkerSpec) -> Any:  # noqa: ANN401 - an open file
    """Lock the worker's slot on this machine, and wait for an earlier process of the slot to end.

    Raises:
        ReciproStreamError: another process still has the slot after ``_LOCK_SECONDS``.
    """
    name = f"recipro-fleet-{os.getuid()}-{spec.fleet}-{spec.slot}.lock".replace("/", "_")
    path = Path(tempfile.gettempdir()) / name
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w")
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ReciproStreamError(
                    f"{path}: another worker of {spec.slot} runs on this machine; end it, or give this node another "
                    "name: --node NAME"
                ) from None
            time.sleep(0.1)
        else:
            return file

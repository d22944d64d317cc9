"""`run.py fleet gateway`: serves one page for all cameras of a fleet.

A child process, ``run.py fleet status --watch``, connects to Ray and prints the fleet's state. This process reads the
printed lines and serves viewers; it never loads Ray. If Ray ends on this node, the page continues to show each camera
at its last known worker.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from commands.console import exit_with_outcome, print_line
from commands.multi_device import RUN
from commands.signals import shutdown_on_signal
from commands.wiring.kinds import load_config
from commands.wiring.sinks import apply_web_token, open_sinks
from overlays.wire.followed import FollowedStreams
from overlays.wire.remote import RemoteExplainer, RemoteRenderer
from pipeline.fleet.places import fleet_metrics, places, stream_addresses
from pipeline.ports import MetricSample
from pipeline.workers.thread import ThreadWorker, WorkerOwner

log = logging.getLogger("recipro-stream")

_READ_SECONDS: Final = 0.2
_SILENT_SECONDS: Final = 4.0
"""Age in seconds from which the page shows that the fleet's state is old; a new state comes twice a second."""
_RESTART_SECONDS: Final = 2.0
_MAX_SILENT_SECONDS: Final = 120.0
"""Time in seconds without a state after which the child process is restarted.

Ray can take long to start. A child that has lost its head cannot reach a new head at the same address.
"""
_END_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Options of ``run.py fleet gateway``."""

    sinks: Sequence[str]
    address: str
    fleet: str
    token_file: Path | None = None
    page_token_file: Path | None = None
    key: Path | None = None
    server_key: str | None = None


class FleetExplainer(RemoteExplainer):
    """Returns the received explanations, and stores the last state of the fleet for the page. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Store the clock, a function that returns monotonic seconds."""
        super().__init__()
        self.uri, self._clock = "fleet", clock
        self._state: dict[str, Any] | None = None
        self._why = "it has not answered yet"
        self._at = clock()

    def accept_state(self, state: dict[str, Any]) -> None:
        """Replace the state of the fleet."""
        self._state, self._why, self._at = state, "", self._clock()

    def accept_problem(self, why: str) -> None:
        """Store the reason why there is no newer state."""
        self._why = why

    def fleet_state(self) -> dict[str, Any] | None:
        """Return the last state of the fleet; None before the first state."""
        return self._state

    def fleet_age_seconds(self) -> float:
        """Return the time since the last state arrived, in seconds."""
        return self._clock() - self._at

    @property
    def problem(self) -> str:
        """The reason why the workers of cameras may be out of date; empty if the state is recent."""
        age = self.fleet_age_seconds()
        if self._state is not None and age < _SILENT_SECONDS:
            return ""
        shown = "" if self._state is None else "; cameras are shown where they were last"
        return f"the fleet's director has not answered for {age:.0f} s{': ' * bool(self._why)}{self._why}{shown}"

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of the cameras and of the fleet."""
        samples = super().metrics()
        if self._state is not None:
            samples += fleet_metrics(self._state)
            samples.append(
                MetricSample("fleet_state_age_seconds", self.fleet_age_seconds(), "Age of the fleet's state.")
            )
        return samples


class StatusReader(WorkerOwner):
    """Runs the child process that connects to Ray, restarts it when it ends, and reports each state that it prints."""

    def __init__(
        self, command: Sequence[str], on_state: Callable[[dict[str, Any]], None], on_problem: Callable[[str], None]
    ) -> None:
        """Create the thread; entering starts it.

        Args:
            command: command line of the child process, which prints a line of JSON twice a second.
            on_state: receives each state of the fleet.
            on_problem: receives the reason why there is no state.
        """
        self._command, self._on_state, self._on_problem = list(command), on_state, on_problem
        self._stop = threading.Event()
        self._worker = ThreadWorker("state of the fleet", self._run, self._stop.set)

    def _run(self) -> None:
        while not self._stop.is_set():
            with tempfile.TemporaryFile() as errors, self._started(errors) as process:
                try:
                    has_ended = self._read(process)
                finally:
                    _end(process)
                errors.seek(0)
                last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            if has_ended:
                self._on_problem(last[0].removeprefix("error: ") if last else "its status ended")
            self._stop.wait(_RESTART_SECONDS)

    def _started(self, errors: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - a temporary file
        return subprocess.Popen(  # noqa: S603 - our own program; a new session, so that Ctrl-C reaches only this process
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )

    def _read(self, process: subprocess.Popen[bytes]) -> bool:
        """Read the lines of the child process until it ends, and return whether it ended by itself.

        Return False if no state came for ``_MAX_SILENT_SECONDS``, or if this reader is stopped.
        """
        stated_at = time.monotonic()
        for line in _lines(process, self._stop):
            state = _read_state(line)
            if state is not None and "problem" not in state:
                self._on_state(state)
                stated_at = time.monotonic()
                continue
            if state is not None:
                self._on_problem(str(state["problem"]))
            if time.monotonic() > stated_at + _MAX_SILENT_SECONDS:
                return False
        return not self._stop.is_set()


def _read_state(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if the line is not a JSON object."""
    try:
        state = json.loads(line)
    except ValueError:
        return None
    return state if isinstance(state, dict) else None


def _lines(process: subprocess.Popen[bytes], stop: threading.Event) -> Iterator[bytes]:
    """Yield the lines that a process prints; yield an empty line after each ``_READ_SECONDS`` without output."""
    assert process.stdout is not None  # noqa: S101 - opened with a pipe
    descriptor, rest = process.stdout.fileno(), b""
    while not stop.is_set():
        if not select.select([descriptor], [], [], _READ_SECONDS)[0]:
            yield b""
            continue
        if not (received := os.read(descriptor, 1 << 16)):
            return
        *lines, rest = (rest + received).split(b"\n")
        yield from lines


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def status_command(options: GatewayOptions) -> list[str]:
    """Return the command line of the child process that prints the fleet's state."""
    token = [] if options.token_file is None else ["--token-file", str(options.token_file)]
    return [
        *(sys.executable, str(RUN), "fleet", "status", "--watch", "--json"),
        *("--address", options.address, "--fleet", options.fleet, *token),
    ]


def run_gateway(options: GatewayOptions) -> None:
    """Serve the cameras of a fleet until a signal.

    Raises:
        ReciproStreamError: an option is wrong, or the page cannot be opened.
    """
    from overlays.sinks.locks import claimed, to_claim
    from overlays.sinks.paths import check_outputs
    from overlays.wire.viewer import Viewer
    from pipeline.loop import Pipeline
    from pipeline.result import RunLimits

    config = load_config({}, "command line", {"sinks": list(options.sinks)})
    settings = apply_web_token(config.sinks, options.page_token_file)
    sinks = open_sinks(settings, [], config.overlay, painted=True)
    uris = [entry.uri for entry in settings]
    check_outputs(uris, [], [])
    explainer = FleetExplainer()
    streams = FollowedStreams(lambda address: Viewer(address, key=options.key, server_key=options.server_key))

    def on_state(state: dict[str, Any]) -> None:
        explainer.accept_state(state)
        streams.follow(places(state), stream_addresses(state))

    started = threading.Event()
    started.set()
    with shutdown_on_signal(started) as stop, ExitStack() as stack:
        stack.enter_context(claimed(to_claim(uris, [])))
        for sink in sinks:
            stack.enter_context(sink)
        stack.enter_context(streams)
        stack.enter_context(StatusReader(status_command(options), on_state, explainer.accept_problem))
        shown = [getattr(sink, "endpoint", sink.uri) for sink in sinks]
        print_line(f"fleet {options.fleet}: all cameras at {', '.join(shown)}; Ctrl-C ends")
        outcome = Pipeline(
            [], explainer, RemoteRenderer(), sinks, limits=RunLimits(), stop=stop, discovery=streams
        ).run()  # fmt: skip
    exit_with_outcome(outcome)

"""`run.py stream --devices`: distributes the cameras over one process per device."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from commands.console import print_line
from commands.parent_process import VARIABLE
from commands.signals import shutdown_on_signal
from pipeline.config import Config
from pipeline.config_loader import to_yaml
from pipeline.sharding import isolate_gpus, shard_config
from pipeline.systemd import SystemdNotifier

RUN = Path(__file__).resolve().parents[1] / "run.py"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 0.2
_END_SECONDS = 15.0
log = logging.getLogger("recipro-stream")


def run_sharded(config: Config, devices: Sequence[str], *, log_format: str = "text") -> None:
    """Distribute the cameras over one process per device, and run until all processes have ended.

    A failed process is logged, and the other processes continue.

    Args:
        config: the configuration of the run.
        devices: the devices, such as ``cuda:0``.
        log_format: ``text`` or ``json``.

    Raises:
        typer.Exit: a process failed; has the exit code of the first failed device.
    """
    shards = shard_config(_named(config), devices)
    for number, shard in enumerate(shards):
        addresses = ", ".join(sink.uri for sink in shard.sinks) or "no sink"
        cameras = ", ".join(str(source.name) for source in shard.sources)
        print_line(f"process {number} on {shard.engine.device}: {cameras}; {addresses}")
    started = threading.Event()
    started.set()
    with shutdown_on_signal(started) as stop, SystemdNotifier(os.environ) as supervisor, _lifeline() as lifeline:
        running = [_started(shard, log_format, lifeline) for shard in shards]
        try:
            while any(process.poll() is None for process in running) and not stop.is_set():
                supervisor.notify_alive()
                stop.wait(_POLL_SECONDS)
        finally:
            codes = _ended(running, stop.other_signal)
    for number, code in enumerate(codes):
        if code:
            log.error("process %d on %s ended with exit code %d", number, shards[number].engine.device, code)
    if failed := [code for code in codes if code]:
        raise typer.Exit(failed[0] if failed[0] > 0 else 1)


@contextmanager
def _lifeline() -> Iterator[int | None]:
    """Yield the reading end of a pipe that closes when this process ends; None on systems other than POSIX."""
    if os.name != "posix":
        yield None
        return
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _started(shard: Config, log_format: str, lifeline: int | None) -> subprocess.Popen[bytes]:
    """Start the process of a shard, which ends when this process ends.

    The configuration is sent through a pipe, because it may contain credentials.
    """
    environment = {name: value for name, value in os.environ.items() if name not in {"NOTIFY_SOCKET", "WATCHDOG_USEC"}}
    shard, gpus = isolate_gpus(shard, os.environ.get(_VISIBLE))
    if gpus is not None:
        environment[_VISIBLE] = gpus
    if lifeline is not None:
        environment[VARIABLE] = str(lifeline)
    command = [sys.executable, str(RUN), "stream", "/dev/stdin", "--log", log_format]
    process = subprocess.Popen(  # noqa: S603 - our own program
        command, stdin=subprocess.PIPE, env=environment, pass_fds=() if lifeline is None else (lifeline,)
    )
    assert process.stdin is not None  # noqa: S101 - opened with a pipe
    with process.stdin as pipe:
        pipe.write(to_yaml(shard).encode())
    return process


def _ended(running: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> list[int]:
    """Send a signal to all processes, wait for each, and return their exit codes; kill processes that do not end."""
    for process in running:
        if process.poll() is None:
            process.send_signal(number)
    codes = []
    for process in running:
        try:
            codes.append(process.wait(_END_SECONDS))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    return codes


def _named(config: Config) -> Config:
    """Return the configuration with the camera names that a single process would use."""
    from commands.wiring.cameras import with_all_cameras
    from commands.wiring.run import make_sources

    config = with_all_cameras(config)
    sources = [
        settings.model_copy(update={"name": source.camera})
        for settings, (source, _) in zip(config.sources, make_sources(config), strict=True)
    ]
    return config.model_copy(update={"sources": sources})

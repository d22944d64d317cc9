"""Starts and ends Ray's processes on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from commands.fleet.environment import HEAD, NODE, PORT, ROLE
from pipeline.errors import ReciproStreamError

_OBJECT_STORE_BYTES: Final = 100 << 20
"""Size of Ray's object store in bytes; only beats go through it."""
_START_SECONDS: Final = 120.0
_END_SECONDS: Final = 15.0
_ATTEMPTS: Final = 3
_RAYLET: Final = "raylet"
"""Name of Ray's node process; without it, the node is lost."""
_READY: Final = "Ray runtime started"
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class RayNode:
    """Ray's processes on this machine."""

    address: str
    """``HOST:PORT`` of the fleet's head."""
    process: subprocess.Popen[bytes]

    @property
    def has_ended(self) -> bool:
        """Whether Ray has ended on this machine, for example because the head did not reach it for some seconds."""
        return self.process.poll() is not None or _RAYLET not in map(_command, _descendants(self.process.pid))

    def end(self) -> None:
        """End the remaining processes."""
        _end(self.process)


@contextmanager
def ray_node(*, listen: str, head: str | None, node: str) -> Iterator[RayNode]:
    """Run Ray on this machine inside the block, and yield its processes.

    Args:
        listen: IP address of this machine for other nodes.
        head: ``HOST:PORT`` of the head to join; None: this machine is the head.
        node: name of this node.

    Raises:
        ReciproStreamError: Ray did not start.
    """
    role = "node" if head else HEAD
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *(["--address", head] if head else ["--head", "--port", str(PORT), "--include-dashboard", "false"]),
        *("--node-ip-address", listen, "--num-cpus", "1", "--object-store-memory", str(_OBJECT_STORE_BYTES)),
    ]
    process = _start(command, {**os.environ, NODE: node, ROLE: role})
    try:
        yield RayNode(head or f"{listen}:{PORT}", process)
    finally:
        _end(process)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start Ray and wait until it runs; retry a failed start, which is common on a busy machine.

    Raises:
        ReciproStreamError: Ray did not start; the message contains its last output.
    """
    text = ""
    for _ in range(_ATTEMPTS):
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread runs yet
            )  # fmt: skip
            try:
                if _is_started(process, output):
                    return process
            except BaseException:
                _end(process)
                raise
            _end(process)
            output.seek(0)
            text = " ".join([line for line in output.read().splitlines() if line.strip()][-3:])
    raise ReciproStreamError(f"fleet: Ray did not start here: {text or 'it printed no reason'}")


def _end_with_parent() -> None:
    """Make the kernel end this process when its parent ends, so that a killed fleet leaves no Ray process."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_started(process: subprocess.Popen[bytes], output: IO[str]) -> bool:
    """Wait until Ray runs, has ended, or the time limit is over; return whether Ray runs."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        output.seek(0)
        if _READY in output.read():
            return True
        time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate Ray's processes, and kill any that remain after the time limit."""
    family = [process.pid, *_descendants(process.pid)]
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    for number in family:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def _command(process: int) -> str:
    """Return the name of a process's program; empty if the process has ended or is a zombie."""
    with suppress(OSError, ValueError):
        name, state, _ = _stat(Path(f"/proc/{process}/stat"))
        return "" if state == "Z" else name
    return ""


def _stat(path: Path) -> tuple[str, str, int]:
    """Return the name, the state and the parent's ID of a process; the name can contain any character."""
    head, _, tail = path.read_text().rpartition(")")
    state, parent = tail.split()[:2]
    return head.partition("(")[2], state, int(parent)


def _descendants(parent: int) -> list[int]:
    """Return the IDs of all descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            parents[int(entry.parent.name)] = _stat(entry)[2]
    found = [parent]
    for number in found:
        found += [child for child, above in parents.items() if above == number]
    return found[1:]

"""A network cable that can be unplugged: a veth pair to its own network namespace. Linux, root, iproute2.

    with Cable() as cable, RtspServer(feed, host=cable.far, namespace=cable.name) as server:
        ...
        cable.pull()

Only a pulled cable has this effect: packets are lost without an error, and both sides keep their connections. Only the
far end is taken down, as where a camera's plug is pulled: the near one keeps addresses and routes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

NAMESPACES: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000  # sched.h


class Cable:
    """Two ends, ``near`` here and ``far`` in the namespace ``name``; both are IPv4 addresses."""

    def __init__(self) -> None:
        number = os.getpid() % 60_000
        self.name = f"ground{number}"
        # 198.18.0.0/15 is kept for benchmarks (RFC 2544).
        self.near, self.far = (f"198.18.{number // 250}.{number % 62 * 4 + k}" for k in (1, 2))
        self._device = f"gr{number}"

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._device, "type", "veth", "peer", "name", "far", "netns", self.name)
            _ip("address", "add", f"{self.near}/30", "dev", self._device)
            _ip("-n", self.name, "address", "add", f"{self.far}/30", "dev", "far")
            _ip("link", "set", self._device, "up")
            self.plug()
        except BaseException:
            self._away()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._away()

    def pull(self) -> None:
        """Disable the far end, as if its plug was pulled."""
        _ip("-n", self.name, "link", "set", "far", "down")

    def plug(self) -> None:
        """Bring the far end up again."""
        _ip("-n", self.name, "link", "set", "far", "up")

    def _away(self) -> None:
        # With sockets still open in it the namespace would outlive its name, and its end of the cable with it.
        subprocess.run(["ip", "link", "delete", self._device], check=False, capture_output=True)
        _ip("netns", "delete", self.name)


@functools.cache
def missing() -> str:
    """Return why this machine can create no cable; empty where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    try:
        with Cable():
            return ""
    except FileNotFoundError:
        return "needs iproute2: apt-get install iproute2"
    except subprocess.CalledProcessError as refusal:
        return f"may not make network namespaces ({str(refusal.stderr).strip()}); run as root"


def enter(namespace: str) -> None:
    """Move the calling thread into a namespace: its new sockets are created there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NAMESPACES / namespace).open() as door:
        if libc.setns(door.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

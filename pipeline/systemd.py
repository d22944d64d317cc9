"""Telling a supervisor that we are up and alive: systemd's notification protocol, sd_notify(3).

Silent where nobody supervises. Knows nothing of cameras: a run whose cameras are all dead is alive, and says so
elsewhere; one whose main loop hangs is not.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)


class SystemdNotifier:
    """A with-block: READY on entering, STOPPING on leaving, WATCHDOG at half the interval that is asked for."""

    def __init__(self, environment: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the environment that systemd set: NOTIFY_SOCKET, and WATCHDOG_USEC where a watchdog waits."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = environment.get("WATCHDOG_USEC", "")
        self._interval_seconds = int(usec) / 2e6 if usec.isdigit() and int(usec) else None
        self._clock = clock
        self._notified_at = clock()

    def __enter__(self) -> Self:
        self._send("READY=1")
        return self

    def notify_alive(self) -> None:
        """Say that the main loop still turns, as often as the watchdog wants to hear it."""
        now = self._clock()
        if self._interval_seconds is not None and now - self._notified_at >= self._interval_seconds:
            self._notified_at = now
            self._send("WATCHDOG=1")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._send("STOPPING=1")

    def _send(self, word: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
                door.sendto(word.encode(), self._address)
        except OSError as reason:
            log.warning("the supervisor at NOTIFY_SOCKET does not listen: %s", reason.strerror or reason)
            self._address = ""

"""Notifies systemd that the run is ready and alive, by the protocol of sd_notify(3).

Without systemd nothing is sent. A run is alive if its main loop runs, even if all its cameras have failed.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Self

log = logging.getLogger(__name__)


class SystemdNotifier:
    """Sends READY when its block is entered, WATCHDOG at half the required interval, and STOPPING at the end."""

    def __init__(self, environment: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC``, which systemd sets, from ``environment``."""
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
        """Send WATCHDOG, unless it was sent less than half the required interval ago."""
        now = self._clock()
        if self._interval_seconds is not None and now - self._notified_at >= self._interval_seconds:
            self._notified_at = now
            self._send("WATCHDOG=1")

    def __exit__(self, *_: object) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.sendto(message.encode(), self._address)
        except OSError as reason:
            log.warning(
                "the supervisor cannot be notified at NOTIFY_SOCKET (%s); no more notifications are sent, so its "
                "watchdog may restart the run", reason.strerror or reason,
            )  # fmt: skip
            self._address = ""

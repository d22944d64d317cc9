"""The clock of leases."""

from __future__ import annotations

import time
from typing import Final

_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def lease_clock() -> float:
    """Return seconds that go on while the machine sleeps or is suspended, and that nobody sets.

    ``time.monotonic`` stands still in that time (Linux), so that a machine that wakes would take old leases for valid.
    """
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)

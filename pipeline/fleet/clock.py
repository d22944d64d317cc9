"""The clock that measures leases."""

from __future__ import annotations

import time
from typing import Final

_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def lease_clock() -> float:
    """Return monotonic seconds that include the time in which the machine is suspended.

    On Linux, ``time.monotonic`` stops while the machine is suspended: leases that have ended would seem valid.
    """
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)

"""Rate limits of HTTP requests: per address, and for all unauthenticated requests together.

The limiter only computes delays: it reads no request and no clock, and does not wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_WAIT_SECONDS: Final = 2.0
"""Maximum delay of a response in seconds; a request that would wait longer is refused."""
_MAX_ADDRESSES: Final = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """Long-term rate in requests per second, and burst size in requests."""

    per_second: float
    burst: int


UNAUTHENTICATED: Final = Rate(20.0, 60)
"""Limit per address for requests without a valid token. A browser's sign-in needs about five requests."""
ALL_UNAUTHENTICATED: Final = Rate(200.0, 400)
OPEN_PAGE: Final = Rate(200.0, 400)
"""Limit per address on a page that requires no token."""
WRONG_TOKEN_COST: Final = 10
"""Number of requests that one wrong token counts as: this permits two guesses per second and address."""


class RequestRateLimiter:
    """Limits requests with the generic cell rate algorithm (ITU-T I.371), which stores one number per address."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._all_due = 0.0

    def delay(self, address: str, now: float, *, is_unauthenticated: bool, cost: int = 1) -> float | None:
        """Return the delay in seconds before a request may be answered; None if the request is refused.

        Args:
            address: client address from ``overlays.file_limits.shared_address``.
            now: current time in monotonic seconds.
            is_unauthenticated: True if the page requires a token and the request has none.
            cost: number of requests that this request counts as.
        """
        rate = UNAUTHENTICATED if is_unauthenticated else OPEN_PAGE
        due = max(self._due.get(address, now), now) + cost / rate.per_second
        wait = due - now - rate.burst / rate.per_second
        if is_unauthenticated:
            all_due = max(self._all_due, now) + cost / ALL_UNAUTHENTICATED.per_second
            wait = max(wait, all_due - now - ALL_UNAUTHENTICATED.burst / ALL_UNAUTHENTICATED.per_second)
        if wait > MAX_WAIT_SECONDS:
            return None
        if is_unauthenticated:
            self._all_due = all_due
        if address not in self._due and len(self._due) >= _MAX_ADDRESSES:
            self._due = {known: due_at for known, due_at in self._due.items() if due_at > now}
            if len(self._due) >= _MAX_ADDRESSES:
                return None
        self._due[address] = due
        return max(wait, 0.0)

"""How many requests a client may make: each address has a rate, and all of those without the token together have one.

Pure; knows no request and waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_WAIT_SECONDS: Final = 2.0
"""A request is answered that much later at most; one that would wait longer is refused."""
_MAX_ADDRESSES: Final = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second in the long run, and how many at once."""

    per_second: float
    burst: int


STRANGERS: Final = Rate(20.0, 60)
"""Of one address, without the token. A browser's sign-in takes about five."""
ALL_STRANGERS: Final = Rate(200.0, 400)
VISITORS: Final = Rate(200.0, 400)
"""Of one address, where no token is asked for."""
WRONG_TOKEN_COST: Final = 10
"""Requests that a wrong token counts for: two guesses a second and address."""


class Pace:
    """Spaces requests (the generic cell rate algorithm): one number for each address."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._all_due = 0.0

    def delay(self, address: str, now: float, *, is_stranger: bool, cost: int = 1) -> float | None:
        """Return in how many seconds a request may be answered; None where it is refused.

        Args:
            address: see ``overlays.file_limits.shared_address``.
            now: monotonic seconds.
            is_stranger: whether it lacks the token that the page asks for.
            cost: requests that it counts for.
        """
        rate = STRANGERS if is_stranger else VISITORS
        due = max(self._due.get(address, now), now) + cost / rate.per_second
        wait = due - now - rate.burst / rate.per_second
        if is_stranger:
            all_due = max(self._all_due, now) + cost / ALL_STRANGERS.per_second
            wait = max(wait, all_due - now - ALL_STRANGERS.burst / ALL_STRANGERS.per_second)
        if wait > MAX_WAIT_SECONDS:
            return None
        if is_stranger:
            self._all_due = all_due
        if address not in self._due and len(self._due) >= _MAX_ADDRESSES:
            self._due = {one: until for one, until in self._due.items() if until > now}
            if len(self._due) >= _MAX_ADDRESSES:
                return None
        self._due[address] = due
        return max(wait, 0.0)

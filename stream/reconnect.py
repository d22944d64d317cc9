"""The delays and time limits of reconnecting, computed without a clock.

Delays double with each failed attempt. For about the first minute they stay below a short maximum, because a camera
that is switched off and on is back within seconds; then they grow further. Each delay is drawn uniformly from its whole
range ("full jitter"), so that many clients do not reconnect to a restarted camera at the same time. See Marc Brooker,
"Exponential backoff and jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

RetryClass = Literal["quick", "slow", "never"]
"""``quick``: may recover at once; ``slow``: needs a correction by the user first; ``never``: retrying cannot help."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delay before each attempt, in seconds."""

    min_seconds: float = 0.1
    """Minimum delay."""
    max_seconds: float = 10.0
    """Maximum delay of a quick retry."""
    initial_max_seconds: float = 0.8
    """Maximum delay of the first ``initial_failures`` attempts in a row."""
    initial_failures: int = 90
    slow_seconds: float = 10.0
    """Approximate delay after a wrong password or path: many cameras lock out a client that retries too often."""

    def __post_init__(self) -> None:
        shown = f"backoff from {self.min_seconds} s to {self.max_seconds} s"
        if not self.min_seconds > 0:
            message = f"{shown}: the minimum must be above 0; for example 0.1"
            raise ValueError(message)
        if not self.min_seconds <= self.max_seconds:
            message = f"{shown}: the minimum must be at most the maximum; exchange them"
            raise ValueError(message)

    def delay_seconds(
        self, failures: int, rng: random.Random, *, retry_class: RetryClass = "quick", spent_seconds: float = 0.0
    ) -> float:
        """Return the delay in seconds after ``failures`` failed attempts in a row.

        A quick retry draws uniformly from [min, ceiling]. The ceiling is min * 2 ** (failures + 1), at most
        ``initial_max_seconds``; after ``initial_failures`` it doubles up to ``max_seconds``. ``spent_seconds``, the
        duration of the last attempt, is subtracted from the ceiling, down to 2 * min. A slow retry: ``slow_seconds``,
        +/- 20 %.
        """
        if retry_class == "slow":
            return self.slow_seconds * rng.uniform(0.8, 1.2)
        if failures < self.initial_failures:
            ceiling = min(self.initial_max_seconds, self.min_seconds * 2.0 ** min(failures + 1, 64))
        else:
            ceiling = self.initial_max_seconds * 2.0 ** min(failures + 1 - self.initial_failures, 64)
        ceiling = max(min(ceiling, self.max_seconds) - spent_seconds, 2 * self.min_seconds)
        ceiling = min(ceiling, self.max_seconds)
        return rng.uniform(self.min_seconds, ceiling)


@dataclass(frozen=True, slots=True)
class ConnectTimeoutPolicy:
    """The time limit for a camera's answer, adapted like TCP's retransmission timer (RFC 6298).

    If a camera that used to answer within milliseconds does not answer, it is probably off: with a short limit it is
    found soon after its return. Some attempts wait for the full time, because the camera may have become slow.
    """

    max_seconds: float
    """Maximum limit, which also applies to a camera that has never answered."""
    min_seconds: float = 1.0
    """Minimum limit."""
    factor: float = 4.0
    """The limit as a multiple of the camera's typical answer time."""
    full_every: int = 4
    """Every ``full_every``-th attempt in a row waits for the full time."""
    initial_failures: int = 90
    """After this number of attempts in a row, every attempt waits for the full time."""

    def timeout_seconds(self, failures: int, took_seconds: float | None) -> float:
        """Return the time limit in seconds after ``failures`` failed attempts.

        ``took_seconds``: the value that ``record`` returned last; None: the camera has never answered.
        """
        is_full = failures % self.full_every == self.full_every - 1 or failures >= self.initial_failures
        if took_seconds is None or is_full:
            return self.max_seconds
        return min(self.max_seconds, max(self.min_seconds, self.factor * took_seconds))

    @staticmethod
    def record(before_seconds: float | None, took_seconds: float) -> float:
        """Return the new typical answer time: it rises at once and falls slowly."""
        return took_seconds if before_seconds is None else max(took_seconds, (before_seconds + took_seconds) / 2)

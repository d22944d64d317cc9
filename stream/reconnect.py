"""Policies of reconnecting: delays and time limits. Independent of any clock.

Delays double with each failed attempt, up to a short maximum for the first minute or so, because a camera that is
switched off and on is back within seconds; then they grow further. Each delay is drawn uniformly from the whole range
("full jitter"), so that many clients do not reconnect to a restarted camera at the same time. See Marc Brooker,
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
        if not 0 < self.min_seconds <= self.max_seconds:
            message = (
                f"backoff from {self.min_seconds} s to {self.max_seconds} s: "
                "the minimum must be above 0 and at most the maximum; exchange them"
            )
            raise ValueError(message)

    def delay_seconds(
        self, failures: int, rng: random.Random, *, retry_class: RetryClass = "quick", spent_seconds: float = 0.0
    ) -> float:
        """Return the delay in seconds after ``failures`` failed attempts in a row.

        Quick: uniform in [min, ceiling]. The ceiling is min * 2 ** (failures + 1), at most ``initial_max_seconds``, and
        doubles up to ``max_seconds`` after ``initial_failures``. The duration of the last attempt, ``spent_seconds``,
        is subtracted from the ceiling, down to 2 * min. Slow: ``slow_seconds``, plus or minus 20 %.
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
    """The time limit of a camera's answer, like TCP's timer (RFC 6298).

    A camera that used to answer within milliseconds and does not answer now is probably off: a short limit finds it
    soon after it returns. Some attempts wait for the full time, because the camera may have become slow.
    """

    max_seconds: float
    """The limit for a camera that has never answered, and the maximum."""
    min_seconds: float = 1.0
    """The minimum."""
    factor: float = 4.0
    """The limit as a multiple of the earlier answer time."""
    full_every: int = 4
    """Each attempt of this number in a row waits for the full time."""
    initial_failures: int = 90
    """After so many attempts in a row, each one waits for the full time."""

    def timeout_seconds(self, failures: int, took_seconds: float | None) -> float:
        """Return the time limit in seconds after ``failures`` failed attempts.

        ``took_seconds``: the value that ``record`` returned; None: the camera has never answered.
        """
        is_full = failures % self.full_every == self.full_every - 1 or failures >= self.initial_failures
        if took_seconds is None or is_full:
            return self.max_seconds
        return min(self.max_seconds, max(self.min_seconds, self.factor * took_seconds))

    @staticmethod
    def record(before_seconds: float | None, took_seconds: float) -> float:
        """Return the updated answer time: rises at once, falls slowly."""
        return took_seconds if before_seconds is None else max(took_seconds, (before_seconds + took_seconds) / 2)

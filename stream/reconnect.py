"""When to try a lost camera again, and how long to wait for its answer: pure policies. They know no clock.

Delays double from one failed attempt to the next, up to a brief one for the first minute or so: a camera that was
switched off and on is back within seconds, and its picture should be, too. Only then do they grow further. Each is
drawn evenly from the whole span ("full jitter"), so that a hundred viewers do not knock at a restarted camera in step.
See Marc Brooker, "Exponential backoff and jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

RetryClass = Literal["quick", "slow", "never"]
"""``quick``: it may be back at once; ``slow``: a person must mend something first; ``never``: it cannot work here."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before each attempt."""

    shortest_seconds: float = 0.1
    """No attempt follows another sooner than this."""
    longest_seconds: float = 10.0
    """No quick retry waits longer than this."""
    brief_seconds: float = 0.8
    """Nor longer than this for the first ``brief_failures`` attempts in a row."""
    brief_failures: int = 90
    slow_seconds: float = 10.0
    """About how long to wait after a wrong password or path: many cameras lock out who asks too often."""

    def __post_init__(self) -> None:
        if not 0 < self.shortest_seconds <= self.longest_seconds:
            message = (
                f"backoff from {self.shortest_seconds} s to {self.longest_seconds} s: "
                "the shortest delay is above 0 and at most the longest; exchange them"
            )
            raise ValueError(message)

    def delay_seconds(
        self, failures: int, rng: random.Random, *, retry_class: RetryClass = "quick", spent_seconds: float = 0.0
    ) -> float:
        """Return the seconds to wait after ``failures`` attempts in a row have failed (0: it had just been live).

        Quick: even in [shortest, ceiling]; the ceiling is shortest * 2 ** (failures + 1), at most ``brief_seconds`` at
        first, and doubles on to ``longest_seconds`` after ``brief_failures``. What the attempt itself took,
        ``spent_seconds``, is taken off it, down to twice the shortest. Slow: ``slow_seconds``, give or take a fifth.
        """
        if retry_class == "slow":
            return self.slow_seconds * rng.uniform(0.8, 1.2)
        if failures < self.brief_failures:
            ceiling = min(self.brief_seconds, self.shortest_seconds * 2.0 ** min(failures + 1, 64))
        else:
            ceiling = self.brief_seconds * 2.0 ** min(failures + 1 - self.brief_failures, 64)
        ceiling = max(min(ceiling, self.longest_seconds) - spent_seconds, 2 * self.shortest_seconds)
        ceiling = min(ceiling, self.longest_seconds)
        return rng.uniform(self.shortest_seconds, ceiling)


@dataclass(frozen=True, slots=True)
class ConnectTimeoutPolicy:
    """How long to wait for the answer of a camera, by how long it took before: as TCP sets its timer (RFC 6298).

    A camera that answered within milliseconds and now says nothing will not answer in three seconds either: who hangs
    on to it misses its return. Now and then the full time is waited all the same: it may have become slow.
    """

    full_seconds: float
    """For a camera that has never been live, and at the most."""
    shortest_seconds: float = 1.0
    """At the least."""
    times: float = 4.0
    """That many times what it took before."""
    full_every: int = 4
    """Each such attempt in a row waits the full time."""
    brief_failures: int = 90
    """And every one does after so many in a row."""

    def timeout_seconds(self, failures: int, took_seconds: float | None) -> float:
        """Return the seconds to wait for an answer, ``failures`` attempts in a row having failed.

        ``took_seconds``: what ``learned`` returned; None: it has never been live.
        """
        is_full = failures % self.full_every == self.full_every - 1 or failures >= self.brief_failures
        if took_seconds is None or is_full:
            return self.full_seconds
        return min(self.full_seconds, max(self.shortest_seconds, self.times * took_seconds))

    @staticmethod
    def record(before_seconds: float | None, took_seconds: float) -> float:
        """Return what a camera's answers take, by what was known and by the newest: rises at once, falls by halves."""
        return took_seconds if before_seconds is None else max(took_seconds, (before_seconds + took_seconds) / 2)

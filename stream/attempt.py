"""One attempt to read a live stream: what may be waited for, until when, and what its end means."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Literal

AtEnd = Literal["lost", "ended", "next"]
"""What the end of a connection means: a loss, the stream's own end, or that the next part follows at once."""


@dataclass(slots=True)
class Attempt:
    """The time limits of one connection, shared by everything that waits for it. Used by one thread.

    Whoever opens the connection may change ``read_seconds``, ``live`` and ``at_end`` by what it finds there.
    """

    answer_seconds: float
    """How long the other side may take to answer."""
    read_seconds: float
    """How long it may then stay silent."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends every wait."""
    live: bool = True
    """Whether the stream goes on when nobody reads; a finished one waits for its reader."""
    resumes: bool = False
    """Whether the next connection goes on where this one is lost, though the stream is finite."""
    at_end: AtEnd | None = None
    """What the end of the connection means; None: judged by the length that the container states."""
    waits_for: str = "answer"
    """What is being waited for: ``answer`` or ``picture``."""
    allowed_seconds: float = 0.0
    """How long the current wait may take."""
    heard_at: float = 0.0
    """``time.monotonic()`` when something useful came last."""
    deadline: float = 0.0
    """``time.monotonic()`` after which waiting raises ``TimeoutError``."""

    def __post_init__(self) -> None:
        self.heard_at = time.monotonic()
        self.allow(self.answer_seconds)

    def heard(self) -> None:
        """Note that something useful came: the next wait may take ``read_seconds`` from now."""
        self.heard_at = time.monotonic()
        self.allow(self.read_seconds)

    def allow(self, seconds: float) -> None:
        """Let waits take so long from now on, all together."""
        self.allowed_seconds = seconds
        self.deadline = time.monotonic() + seconds

    def pause(self, seconds: float) -> None:
        """Wait, at most until the deadline. Raises ``TimeoutError`` there; returns at once when stopped."""
        left = self.deadline - time.monotonic()
        self.stop.wait(max(0.0, min(seconds, left)))
        if left <= seconds and not self.stop.is_set():
            raise TimeoutError("nothing came in time")

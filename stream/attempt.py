"""The state of one connection to a live stream: its time limits and how it ended."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Literal

AtEnd = Literal["lost", "ended", "next"]
"""Meaning of a connection's end: the connection was lost, the stream has ended, or another part follows at once."""


@dataclass(slots=True)
class Attempt:
    """The time limits of one connection, shared by all code that waits for its data.

    The code that opens the connection may change ``read_seconds``, ``live`` and ``at_end`` to match the stream.
    """

    answer_seconds: float
    """Time limit for the server's first answer."""
    read_seconds: float
    """Time limit between two pieces of data, after the first answer."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends every wait."""
    live: bool = True
    """True if the stream goes on while nobody reads it (a camera); False for a recording."""
    resumes: bool = False
    """True if the stream is finite and the next connection continues where this one was lost."""
    at_end: AtEnd | None = None
    """Meaning of the connection's end; None: derived from the container's declared duration."""
    waits_for: str = "answer"
    """What the current wait is for: ``answer`` or ``frame``."""
    timeout_seconds: float = 0.0
    """Time limit of the current wait."""
    last_data_at: float = 0.0
    """``time.monotonic()`` of the last useful data."""
    deadline: float = 0.0
    """``time.monotonic()`` after which a wait raises ``TimeoutError``."""

    def __post_init__(self) -> None:
        self.last_data_at = time.monotonic()
        self.set_timeout(self.answer_seconds)

    def record_data(self) -> None:
        """Record that useful data arrived: the next wait ends ``read_seconds`` from now."""
        self.last_data_at = time.monotonic()
        self.set_timeout(self.read_seconds)

    def set_timeout(self, seconds: float) -> None:
        """Set the deadline of all following waits to ``seconds`` from now."""
        self.timeout_seconds = seconds
        self.deadline = time.monotonic() + seconds

    def pause(self, seconds: float) -> None:
        """Wait ``seconds``, at most until the deadline; return at once when stopped.

        Raises:
            TimeoutError: the deadline has passed.
        """
        remaining = self.deadline - time.monotonic()
        self.stop.wait(max(0.0, min(seconds, remaining)))
        if remaining <= seconds and not self.stop.is_set():
            raise TimeoutError("no data arrived before the deadline")

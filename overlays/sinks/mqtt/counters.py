"""Counts of published, refused, omitted and lost findings, and the queue of findings that wait for the broker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.ports import MetricSample


class QueuedFinding(NamedTuple):
    """A finding message that waits for the broker or for its confirmation."""

    topic: str
    message: bytes
    is_file: bool
    """True if the frame comes from a file or a folder: the finding waits for the broker, as it is not repeated."""
    is_passage: bool = False
    """True for a part or a crossing: it waits for the broker, too, but does not delay frames."""

    @property
    def is_kept(self) -> bool:
        """True if the finding waits while the broker is not connected."""
        return self.is_file or self.is_passage


@dataclass(slots=True)
class MqttCounts:
    """Counts of findings. Only the sink's thread changes them; any thread may read."""

    published: int = 0
    """Number of findings that were sent to the broker."""
    refused: int = 0
    """Number of published findings that the broker refused."""
    refusal: str = ""
    """Reason why the broker refuses findings; empty while it accepts them."""
    left_out: int = 0
    """Number of findings that were skipped by the rate limit."""
    lost: int = 0
    """Number of findings that were due but not sent, or not confirmed."""
    lost_of_files: int = 0
    """Number of lost findings from files and folders."""

    def lose(self, finding: QueuedFinding) -> None:
        """Count a finding that will not be sent."""
        self.lost += 1
        self.lost_of_files += finding.is_file

    def account(self, max_rate: float, *, is_v5: bool) -> str:
        """Return a one-line summary of all counts."""
        parts = [f"{max(0, self.published - self.refused)} findings accepted by the broker"]
        if self.left_out:
            parts.append(f"{self.left_out} left out by the rate of {max_rate:g} per second")
        if self.refused:
            parts.append(f"{self.refused} refused by the broker ({self.refusal or 'no longer'})")
        parts.append(f"{self.lost} lost")
        if not is_v5:
            parts.append("by MQTT 3.1.1, which cannot report what the broker refuses")
        return ", ".join(parts)

    def metrics(self, uri: str, *, is_connected: bool) -> list[MetricSample]:
        """Return all counts for Prometheus."""
        labels = (("sink", uri),)
        return [
            MetricSample("mqtt_connected", float(is_connected), "1 while connected to an MQTT broker.", labels=labels),
            MetricSample("mqtt_published", self.published, "Findings handed to an MQTT broker.", "counter", labels),
            MetricSample("mqtt_refused", self.refused, "Findings that an MQTT broker refused.", "counter", labels),
            MetricSample("mqtt_left_out", self.left_out, "Findings left out by a sink's rate.", "counter", labels),
            MetricSample("mqtt_lost", self.lost, "Findings that reached no MQTT broker.", "counter", labels),
        ]


class FindingQueue:
    """Findings that wait for the broker, oldest first."""

    def __init__(self, counts: MqttCounts) -> None:
        self._counts = counts
        self._queue: deque[QueuedFinding] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def holds_files(self) -> bool:
        """True if the queue has a finding of a file or a folder."""
        return any(finding.is_file for finding in self._queue)

    def add(self, finding: QueuedFinding) -> None:
        """Append a finding."""
        self._queue.append(finding)

    def take(self) -> QueuedFinding:
        """Remove and return the oldest finding."""
        return self._queue.popleft()

    def trim(self, max_length: int, *, keep_live: bool) -> None:
        """Drop findings and count them as lost.

        Args:
            max_length: maximum length of the queue; the oldest findings are dropped.
            keep_live: whether to keep findings of live cameras; otherwise all of them are dropped first.
        """
        if not keep_live:
            for finding in self._queue:
                if not finding.is_kept:
                    self._counts.lose(finding)
            self._queue = deque(finding for finding in self._queue if finding.is_kept)
        while len(self._queue) > max_length:
            self._counts.lose(self._queue.popleft())

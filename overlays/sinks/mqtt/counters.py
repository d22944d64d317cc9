"""What became of the findings that a broker was to be told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.ports import MetricSample


class Told(NamedTuple):
    """A finding on its way."""

    topic: str
    message: bytes
    is_file: bool
    """Whether its frame is of a file or a folder: it waits for the broker, since it does not come again."""


@dataclass(slots=True)
class MqttCounts:
    """Written by the sink's thread, read by any."""

    published: int = 0
    """Findings handed to the broker."""
    refused: int = 0
    """Those of them that it refused."""
    refusal: str = ""
    """Why it refuses findings now; empty while it takes them."""
    left_out: int = 0
    """Findings that the rate left out: it was not their turn."""
    lost: int = 0
    """Findings that were not sent, or not confirmed, though it was their turn."""
    lost_of_files: int = 0
    """Those of the lost ones that are of files and folders."""

    def lose(self, told: Told) -> None:
        """Count a finding that will not be sent."""
        self.lost += 1
        self.lost_of_files += told.is_file

    def account(self, max_rate: float, *, is_v5: bool) -> str:
        """Return all of it in words."""
        told = [f"{max(0, self.published - self.refused)} findings told to the broker"]
        if self.left_out:
            told.append(f"{self.left_out} left out by the rate of {max_rate:g} a second")
        if self.refused:
            told.append(f"{self.refused} refused by it ({self.refusal or 'not any more'})")
        told.append(f"{self.lost} lost")
        if not is_v5:
            told.append("by MQTT 3.1.1, which cannot say what the broker refuses")
        return ", ".join(told)

    def metrics(self, uri: str, *, is_connected: bool) -> list[MetricSample]:
        """Return all of it for Prometheus."""
        here = (("sink", uri),)
        return [
            MetricSample("mqtt_connected", float(is_connected), "1 while an MQTT broker hears us.", labels=here),
            MetricSample("mqtt_published", self.published, "Findings handed to an MQTT broker.", "counter", here),
            MetricSample("mqtt_refused", self.refused, "Findings that an MQTT broker refused.", "counter", here),
            MetricSample("mqtt_left_out", self.left_out, "Findings left out by a sink's rate.", "counter", here),
            MetricSample("mqtt_lost", self.lost, "Findings that no MQTT broker took.", "counter", here),
        ]


class Waiting:
    """Findings that wait for the broker, in their order."""

    def __init__(self, counts: MqttCounts) -> None:
        self._counts = counts
        self._queue: deque[Told] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def holds_files(self) -> bool:
        """Whether any of them is of a file."""
        return any(told.is_file for told in self._queue)

    def add(self, told: Told) -> None:
        """Put one at the end."""
        self._queue.append(told)

    def take(self) -> Told:
        """Return the oldest."""
        return self._queue.popleft()

    def trim(self, most: int, *, all_wait: bool) -> None:
        """Drop the oldest beyond ``most``, and before them all that are of no file unless ``all_wait``; counted."""
        if not all_wait:
            for told in self._queue:
                if not told.is_file:
                    self._counts.lose(told)
            self._queue = deque(told for told in self._queue if told.is_file)
        while len(self._queue) > most:
            self._counts.lose(self._queue.popleft())

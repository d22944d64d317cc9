"""Frames of one size on their way over the device: up once, through one captured graph, answers and picture out.

Nobody waits where it is not needed: the host fills the next slot of a ring while the last one is copied, the copy lane
uploads frame n + 1 while the compute lane explains frame n, and whoever wants an answer waits for that answer alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from engine.gpu.streams import Call, DeviceStreams
from pipeline.frames import Image

SLOTS: Final = 3
"""Places in the ring of each frame size: one is filled, one copied, one explained."""

_POWERS_UP_TO: Final = 8


def buckets_up_to(most: int) -> tuple[int, ...]:
    """Return the batch sizes to compile for: powers of two up to 8, then of four, and ``most`` itself."""
    sizes = {most}
    size = 1
    while size < most:
        sizes.add(size)
        size *= 2 if size < _POWERS_UP_TO else 4
    return tuple(sorted(sizes))


def split_into_buckets(count: int, buckets: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a batch into (frames, bucket): as many of the largest as are full, the rest in the smallest that holds it."""
    largest = max(buckets)
    told = [(largest, largest)] * (count // largest)
    rest = count % largest
    if rest:
        told.append((rest, min(size for size in buckets if size >= rest)))
    return told


@dataclass(eq=False)
class CapturedGraph:
    """What is done to one bucket of frames of one size: a captured graph over fixed memory."""

    frames: Tensor
    """The graph's input on the device, uint8 (bucket, H, W, 3)."""
    run: Call
    """Explains and draws what lies in ``frames``: scores, classes, heat, pictures; the same memory every time."""


@dataclass(eq=False)
class _Slot:
    """A place in the ring."""

    host: Tensor
    device: Tensor
    host_free: object = None
    """Reached when ``host`` may be filled again."""
    device_free: object = None
    """Reached when ``device`` may be overwritten."""


@dataclass(frozen=True, eq=False)
class InFlightBatch:
    """Some frames under way."""

    count: int
    outputs: tuple[Tensor, ...]
    """Scores, classes and heat in host memory; valid once ``done`` is reached."""
    images: tuple[Tensor, ...]
    """The drawn frames on the device, uint8 (3, H, W), each in memory of its own: whoever keeps one keeps no other.
    Valid once ``done`` is reached."""
    done: object


class BatchPipeline:
    """Launches frames of any sizes. One thread launches; any may wait for a flight."""

    def __init__(
        self,
        streams: DeviceStreams,
        buckets: Sequence[int],
        capture: Callable[[tuple[int, int], int], tuple[Tensor, Call]],
    ) -> None:
        """Take the device, the batch sizes, and what makes (input, call) of a frame size and a bucket."""
        self.streams = streams
        self.buckets = tuple(sorted(buckets))
        self._capture = capture
        self._graphs: dict[tuple[tuple[int, int], int], CapturedGraph] = {}
        self._slots: dict[tuple[int, int], itertools.cycle[_Slot]] = {}

    def submit(self, images: Sequence[Image]) -> list[InFlightBatch]:
        """Send frames of one size on their way and return at once: flights in order, of some frames each."""
        flights = []
        start = 0
        for count, bucket in split_into_buckets(len(images), self.buckets):
            flights.append(self._submit(images[start : start + count], bucket))
            start += count
        return flights

    def warm_up(self, size: tuple[int, int], bucket: int) -> CapturedGraph:
        """Capture the graph for frames of this size in this bucket, if it is not yet."""
        key = (size, bucket)
        if key not in self._graphs:
            with self.streams.stream("compute"):
                frames, call = self._capture(size, bucket)
            run = self.streams.capture_graph(call, f"{bucket} frames of {size[1]}x{size[0]}")
            self._graphs[key] = CapturedGraph(frames, run)
        return self._graphs[key]

    def _submit(self, images: Sequence[Image], bucket: int) -> InFlightBatch:
        size = (images[0].shape[0], images[0].shape[1])
        capture, slot, streams = self.warm_up(size, bucket), self._next_slot(size), self.streams
        count = len(images)
        streams.synchronize(slot.host_free)
        rows = slot.host.numpy()
        for place, image in enumerate(images):
            np.copyto(rows[place], image)
        streams.wait_event("copy", slot.device_free)
        with streams.stream("copy"):
            slot.device[:count].copy_(slot.host[:count], non_blocking=True)
        slot.host_free = streams.record_event("copy")
        streams.wait_event("compute", slot.host_free)
        with streams.stream("compute"):
            # What fills a bucket up is whatever lay there before: its answers are cut off.
            capture.frames.copy_(slot.device[:bucket])
            slot.device_free = streams.record_event("compute")
            *answers, pictures = capture.run()
            kept = tuple(picture.clone() for picture in pictures[:count])
            told = tuple(self._to_host(part[:count]) for part in answers)
        return InFlightBatch(count, told, kept, streams.record_event("compute"))

    def _to_host(self, part: Tensor) -> Tensor:
        place = self.streams.pinned_empty(tuple(part.shape), part.dtype)
        return place.copy_(part, non_blocking=True)

    def _next_slot(self, size: tuple[int, int]) -> _Slot:
        if size not in self._slots:
            shape = (max(self.buckets), *size, 3)
            # The lane that first writes there makes it, so that nothing overtakes the zeros.
            with self.streams.stream("copy"):
                device = [torch.zeros(shape, dtype=torch.uint8, device=self.streams.device) for _ in range(SLOTS)]
            self._slots[size] = itertools.cycle(
                [_Slot(self.streams.pinned_empty(shape, torch.uint8), one) for one in device]
            )
        return next(self._slots[size])

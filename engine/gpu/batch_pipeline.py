"""Pipeline of batches on the device: upload, one captured graph, download.

The host fills the next slot of a ring while the previous slot is copied. The copy stream uploads batch n + 1 while the
compute stream explains batch n. A reader waits only for the batch it reads.
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
"""Slots per frame size: one is filled, one copied, one explained."""

_POWERS_UP_TO: Final = 8


def buckets_up_to(most: int) -> tuple[int, ...]:
    """Return the batch sizes to compile for: powers of two up to 8, then powers of four, and ``most`` itself."""
    sizes = {most}
    size = 1
    while size < most:
        sizes.add(size)
        size *= 2 if size < _POWERS_UP_TO else 4
    return tuple(sorted(sizes))


def split_into_buckets(count: int, buckets: Sequence[int]) -> list[tuple[int, int]]:
    """Split a batch into (frames, bucket): full buckets of the largest size, the rest in the smallest that holds it."""
    largest = max(buckets)
    parts = [(largest, largest)] * (count // largest)
    rest = count % largest
    if rest:
        parts.append((rest, min(size for size in buckets if size >= rest)))
    return parts


@dataclass(eq=False)
class CapturedGraph:
    """A captured graph over fixed memory, for one frame size and one batch size."""

    frames: Tensor
    """The graph's input on the device, uint8 (bucket, H, W, 3)."""
    run: Call
    """Explains and renders ``frames``: scores, classes, heat maps, images; always in the same memory."""


@dataclass(eq=False)
class _Slot:
    """A slot of the ring."""

    host: Tensor
    device: Tensor
    host_free: object = None
    """Reached when ``host`` may be filled again."""
    device_free: object = None
    """Reached when ``device`` may be overwritten."""


@dataclass(frozen=True, eq=False)
class InFlightBatch:
    """A submitted batch."""

    count: int
    outputs: tuple[Tensor, ...]
    """Scores, classes and heat maps in host memory; valid after ``done``."""
    images: tuple[Tensor, ...]
    """The rendered frames on the device, uint8 (3, H, W), each in its own memory, so that a kept frame does not hold
    the others. Valid after ``done``."""
    done: object


class BatchPipeline:
    """Submits frames of any size. One thread submits; any thread may wait for a batch."""

    def __init__(
        self,
        streams: DeviceStreams,
        buckets: Sequence[int],
        capture: Callable[[tuple[int, int], int], tuple[Tensor, Call]],
    ) -> None:
        """Create a pipeline; ``prepare`` returns (input, call) for a frame size and a bucket."""
        self.streams = streams
        self.buckets = tuple(sorted(buckets))
        self._capture = capture
        self._graphs: dict[tuple[tuple[int, int], int], CapturedGraph] = {}
        self._slots: dict[tuple[int, int], itertools.cycle[_Slot]] = {}

    def submit(self, images: Sequence[Image]) -> list[InFlightBatch]:
        """Submit frames of one size and return at once; the batches are in order."""
        flights = []
        start = 0
        for count, bucket in split_into_buckets(len(images), self.buckets):
            flights.append(self._submit(images[start : start + count], bucket))
            start += count
        return flights

    def warm_up(self, size: tuple[int, int], bucket: int) -> CapturedGraph:
        """Capture the graph for this frame size and bucket, unless it is captured already."""
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
        for row, image in enumerate(images):
            np.copyto(rows[row], image)
        streams.wait_event("copy", slot.device_free)
        with streams.stream("copy"):
            slot.device[:count].copy_(slot.host[:count], non_blocking=True)
        slot.host_free = streams.record_event("copy")
        streams.wait_event("compute", slot.host_free)
        with streams.stream("compute"):
            # The rest of a bucket keeps old frames: their results are cut off.
            capture.frames.copy_(slot.device[:bucket])
            slot.device_free = streams.record_event("compute")
            *answers, rendered = capture.run()
            clones = tuple(image.clone() for image in rendered[:count])
            parts = tuple(self._to_host(part[:count]) for part in answers)
        return InFlightBatch(count, parts, clones, streams.record_event("compute"))

    def _to_host(self, part: Tensor) -> Tensor:
        host = self.streams.pinned_empty(tuple(part.shape), part.dtype)
        return host.copy_(part, non_blocking=True)

    def _next_slot(self, size: tuple[int, int]) -> _Slot:
        if size not in self._slots:
            shape = (max(self.buckets), *size, 3)
            # The stream that writes first also allocates, so that the zeros are written before the frames.
            with self.streams.stream("copy"):
                device = [torch.zeros(shape, dtype=torch.uint8, device=self.streams.device) for _ in range(SLOTS)]
            self._slots[size] = itertools.cycle(
                [_Slot(self.streams.pinned_empty(shape, torch.uint8), tensor) for tensor in device]
            )
        return next(self._slots[size])

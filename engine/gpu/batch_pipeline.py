"""Pipeline of batches on the device: upload, one captured graph, download.

The host fills the next slot of a ring while the previous slot is copied. The copy stream uploads batch n + 1 while the
compute stream explains batch n. A reader waits only for the batch it reads. Frames that a GPU decoder has left on the
device are not uploaded.

Memory is bounded: one ring serves all frame sizes, host memory for results is reused, and only the graphs of recently
used frame sizes are kept. All graphs of a frame size are captured at its first frame, so that no later batch waits.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from engine.gpu.decoded import decoded_planes
from engine.gpu.streams import Call, DeviceStreams
from pipeline.device_image import DeviceImage, YuvColours
from pipeline.frames import Image, Pixels
from pipeline.input_area import InputArea

log = logging.getLogger(__name__)

T = TypeVar("T")
Size = tuple[int, int]
"""Height and width of a frame."""


class FrameKind(NamedTuple):
    """The properties that all frames of a graph have in common."""

    size: Size
    area: InputArea | None = None
    """The part of the frames that the network gets."""
    colours: YuvColours | None = None
    """The conversion of NV12 frames that a GPU decoded; None for RGB frames from the host."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame in device memory."""
        height, width = self.size
        return (height, width, 3) if self.colours is None else (height * 3 // 2, width)


Capture = Callable[[Tensor, FrameKind], Call]


SLOTS: Final = 3
"""Number of slots in the ring: one is filled, one is copied, one is explained."""
MAX_SLOT_BYTES: Final = 256 << 20
"""Maximum size of a slot in bytes; larger batches are split into smaller buckets."""
MAX_GRAPH_BYTES: Final = 4 << 30
"""Maximum memory of captured graphs in bytes; above it the least recently used sizes are released."""

_POWERS_UP_TO: Final = 8
_LAUNCH_FRAMES: Final = 8
"""Fixed time per batch, in units of the time per frame of a large batch: small batches do not fill a GPU."""


def kind_of(image: Pixels, area: InputArea | None = None) -> FrameKind:
    """Return the kind of a frame with this image and input area."""
    height, width, _ = image.shape
    return FrameKind((height, width), area, image.colours if isinstance(image, DeviceImage) else None)


def buckets_up_to(most: int) -> tuple[int, ...]:
    """Return the batch sizes to compile for: powers of two up to 8, then powers of four, and ``most`` itself."""
    sizes = {most}
    size = 1
    while size < most:
        sizes.add(size)
        size *= 2 if size < _POWERS_UP_TO else 4
    return tuple(sorted(sizes))


@functools.lru_cache(maxsize=1024)
def split_into_buckets(count: int, buckets: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Split a batch into the fastest sequence of (frames, bucket); only the last may be partly filled.

    A bucket of b takes the time of ``b + _LAUNCH_FRAMES`` frames.
    """
    best: list[tuple[int, int]] = [(0, 0)]
    """For each number of frames: the shortest time, and the first bucket."""
    for frames in range(1, count + 1):
        times = ((size + _LAUNCH_FRAMES + best[max(frames - size, 0)][0], -size) for size in buckets)
        time, size = min(times)
        best.append((time, -size))
    parts = []
    while count:
        bucket = best[count][1]
        parts.append((min(count, bucket), bucket))
        count -= parts[-1][0]
    return tuple(parts)


@dataclass(eq=False)
class CapturedSize:
    """The captured graphs of one frame size, over fixed memory."""

    frames: Tensor
    """The graphs' input on the device, uint8 (largest bucket, *shape of a frame); each graph reads the first rows."""
    graphs: dict[int, Call]
    """By bucket: a graph that returns scores, classes, heat maps and images of ``frames``, in fixed memory."""
    image_bytes: int = 0
    """Memory of one rendered image."""
    last_used: object = None
    """Event recorded after the last run of a graph."""

    @property
    def nbytes(self) -> int:
        """Approximate memory of the frames and of the RGB images of all graphs."""
        return self.frames.nbytes + self.image_bytes * sum(self.graphs)


@dataclass(eq=False)
class _Slot:
    """A slot of the ring: bytes for frames of any size."""

    host: Tensor
    device: Tensor
    host_free: object = None
    """Event after which ``host`` may be filled again."""
    device_free: object = None
    """Event after which ``device`` may be overwritten."""


@dataclass(frozen=True, eq=False)
class InFlightBatch:
    """A submitted batch."""

    count: int
    bucket: int
    outputs: tuple[Tensor, ...]
    """Scores, classes and heat maps in host memory; valid from ``done`` until ``BatchPipeline.release``."""
    images: tuple[Tensor, ...]
    """The rendered frames on the device, uint8 (3, H, W), each in its own memory, so that a stored frame does not keep
    the others. Valid after ``done``."""
    done: object
    memory: tuple[Tensor, ...]
    """The host memory of the outputs."""


class BatchPipeline:
    """Submits frames of any size. One thread submits; any thread may wait for a batch and release it."""

    def __init__(self, streams: DeviceStreams, buckets: Sequence[int], capture: Capture) -> None:
        """Create a pipeline.

        Args:
            streams: the device's streams.
            buckets: batch sizes to capture.
            capture: returns the function to capture, for frames in device memory, uint8 (bucket, H, W, 3) or NV12
                (bucket, H * 3 // 2, W), and their kind.
        """
        self.streams = streams
        self.buckets = tuple(sorted(buckets))
        self._capture = capture
        self._sizes: dict[FrameKind, CapturedSize] = {}
        """The captured kinds of frames, in order of last use."""
        nothing = torch.empty(0, dtype=torch.uint8)
        self._ring = itertools.cycle([_Slot(nothing, nothing) for _ in range(SLOTS)])
        self._answers: dict[int, list[tuple[Tensor, ...]]] = {size: [] for size in self.buckets}
        """Free host memory for the results of a bucket."""

    def submit(self, images: Sequence[Pixels], area: InputArea | None = None) -> list[InFlightBatch]:
        """Submit frames of one kind and return at once; the batches are in order."""
        if not images:
            return []
        captured = self.prepare(kind_of(images[0], area))
        flights = []
        start = 0
        for count, bucket in split_into_buckets(len(images), tuple(captured.graphs)):
            flights.append(self._submit(images[start : start + count], bucket, captured))
            start += count
        return flights

    def release(self, batch: InFlightBatch) -> None:
        """Reuse the host memory of a batch whose outputs have been read."""
        self._answers[batch.bucket].append(batch.memory)

    def prepare(self, kind: FrameKind) -> CapturedSize:
        """Return the graphs for this kind of frames; capture them at the first call.

        An area usually belongs to a single camera, with one frame per batch: only its smallest bucket is captured, so
        that the graphs of many cameras fit into memory.

        Raises:
            torch.OutOfMemoryError: the device has not enough memory for the smallest bucket.
        """
        captured = self._sizes.pop(kind, None)
        if captured is None:
            captured = self._captured(kind)
            held = captured.nbytes + sum(other.nbytes for other in self._sizes.values())
            while held > MAX_GRAPH_BYTES and self._sizes:
                held -= self._release_oldest()
        self._sizes[kind] = captured
        return captured

    def _captured(self, kind: FrameKind) -> CapturedSize:
        frame_bytes = math.prod(kind.shape)
        sizes = self.buckets if kind.area is None else self.buckets[:1]
        buckets = [bucket for bucket in sizes if bucket * frame_bytes <= MAX_SLOT_BYTES] or [self.buckets[0]]
        frames = self._with_room(lambda: self._zeros((buckets[-1], *kind.shape)))
        captured = CapturedSize(frames, {}, math.prod(kind.size) * 3)
        for bucket in buckets:
            try:
                captured.graphs[bucket] = self._with_room(
                    functools.partial(self._graph, captured.frames[:bucket], kind)
                )
            except torch.OutOfMemoryError:
                if not captured.graphs:
                    raise
                most = max(captured.graphs)
                log.warning(
                    "the GPU has too little memory for %d frames of %dx%d: batches have at most %d frames; a smaller "
                    "--batch leaves more memory", bucket, kind.size[1], kind.size[0], most,
                )  # fmt: skip
                break
        return captured

    def _graph(self, frames: Tensor, kind: FrameKind) -> Call:
        with self.streams.stream("compute"):
            call = self._capture(frames, kind)
        return self.streams.capture_graph(call, f"{len(frames)} frames of {kind.size[1]}x{kind.size[0]}")

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        with self.streams.stream("compute"):
            return torch.zeros(shape, dtype=torch.uint8, device=self.streams.device)

    def _with_room(self, make: Callable[[], T]) -> T:
        """Call ``make``; if memory runs out, release other frame sizes and call it again."""
        while True:
            try:
                return make()
            except torch.OutOfMemoryError:
                if not self._release_oldest():
                    raise

    def _release_oldest(self) -> int:
        """Release the graphs of the frame size used least recently; return their bytes, 0 if there is none."""
        if not self._sizes:
            return 0
        kind = next(iter(self._sizes))
        captured = self._sizes.pop(kind)
        self.streams.synchronize(captured.last_used)
        log.info("graphs for %dx%d are released", kind.size[1], kind.size[0])
        return captured.nbytes

    def _submit(self, images: Sequence[Pixels], bucket: int, captured: CapturedSize) -> InFlightBatch:
        streams, count = self.streams, len(images)
        part = captured.frames[:count]
        decoded = [decoded_planes(image) for image in images if isinstance(image, DeviceImage)]
        slot = None if decoded else self._upload(images, captured)
        with streams.stream("compute"):
            # The unused rows of a bucket contain old frames; their results are cut off.
            if slot is not None:
                part.copy_(slot.device[: part.nbytes].view(part.shape))
                slot.device_free = streams.record_event("compute")
            for row, planes in enumerate(decoded):
                streams.record_stream(planes, "compute")
                part[row].copy_(planes)
            *answers, rendered = captured.graphs[bucket]()
            clones = tuple(image.clone() for image in rendered[:count])
            memory = self._host_memory(answers, bucket)
            for host, answer in zip(memory, answers, strict=True):
                host[:count].copy_(answer[:count], non_blocking=True)
        captured.last_used = done = streams.record_event("compute")
        return InFlightBatch(count, bucket, tuple(host[:count] for host in memory), clones, done, memory)

    def _upload(self, images: Sequence[Pixels], captured: CapturedSize) -> _Slot:
        """Copy images from host memory to the next slot of the ring; the compute stream waits for it."""
        streams, part = self.streams, captured.frames[: len(images)]
        slot = self._next_slot(captured.frames[: max(captured.graphs)].nbytes)
        streams.synchronize(slot.host_free)
        rows = slot.host[: part.nbytes].view(part.shape).numpy()
        for row, image in enumerate(images):
            np.copyto(rows[row], cast("Image", image))
        streams.wait_event("copy", slot.device_free)
        with streams.stream("copy"):
            slot.device[: part.nbytes].copy_(slot.host[: part.nbytes], non_blocking=True)
        slot.host_free = streams.record_event("copy")
        streams.wait_event("compute", slot.host_free)
        return slot

    def _host_memory(self, answers: Sequence[Tensor], bucket: int) -> tuple[Tensor, ...]:
        """Return pinned memory for results; reused, because allocating it blocks on the device."""
        free = self._answers[bucket]
        return free.pop() if free else tuple(self.streams.pinned_empty(tuple(a.shape), a.dtype) for a in answers)

    def _next_slot(self, nbytes: int) -> _Slot:
        """Return the next slot of the ring, with room for this many bytes."""
        slot, streams = next(self._ring), self.streams
        if slot.host.nbytes < nbytes:
            streams.synchronize(slot.device_free)
            # Memory is allocated on the stream that writes to it first.
            with streams.stream("copy"):
                slot.device = torch.empty(nbytes, dtype=torch.uint8, device=streams.device)
            slot.host = streams.pinned_empty((nbytes,), torch.uint8)
        return slot

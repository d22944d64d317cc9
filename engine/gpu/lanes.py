"""Where work on a device runs side by side: copying, computing, encoding, and who waits for whom.

A lane is a CUDA stream; a mark is an event on it. On a machine without a GPU the same calls run at once, one after
another: what is right there in any order of waiting is proven with a fake, what the device does with it by the tests
marked ``gpu``. The default stream is never used, and the host waits for a mark alone, never for the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Lane = Literal["copy", "compute", "encode"]
LANES: Final[tuple[Lane, ...]] = ("copy", "compute", "encode")

Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]

_WARM_UP_ROUNDS: Final = 3


class Lanes(Protocol):
    """One device's lanes; each is used from one thread at a time, marks by any."""

    device: torch.device

    def on(self, lane: Lane) -> AbstractContextManager[Any]:
        """Make what is called inside run on this lane."""
        ...

    def mark(self, lane: Lane) -> object:
        """Return a mark behind everything this lane was given so far."""
        ...

    def follow(self, lane: Lane, mark: object) -> None:
        """Make what this lane is given from now on wait for a mark; the host goes on."""
        ...

    def wait(self, mark: object) -> None:
        """Hold the host until a mark is reached."""
        ...

    def lend(self, tensor: Tensor, lane: Lane) -> None:
        """Keep a tensor's memory from being used again before this lane is done with it."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return host memory that the device copies from and to while the host goes on."""
        ...

    def captured(self, call: Call, name: str) -> Call:
        """Return something that repeats ``call`` on the compute lane, in the same memory, at one launch."""
        ...


class PlainLanes:
    """A device whose work is done when the call returns: the CPU."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def on(self, lane: Lane) -> AbstractContextManager[Any]:  # noqa: ARG002 - the protocol's signature
        """Run it here and now."""
        return nullcontext()

    def mark(self, lane: Lane) -> object:  # noqa: ARG002 - the same
        """Return a mark that is reached already."""
        return None

    def follow(self, lane: Lane, mark: object) -> None:
        """Nothing is left to wait for."""

    def wait(self, mark: object) -> None:
        """Nothing is left to wait for."""

    def lend(self, tensor: Tensor, lane: Lane) -> None:
        """Nobody uses it behind our back."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return plain memory."""
        return torch.empty(shape, dtype=dtype)

    def captured(self, call: Call, name: str) -> Call:  # noqa: ARG002 - the same
        """Return the call itself."""
        return call


class CudaLanes:
    """A CUDA device: a stream for each lane, and CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        """Take the device, with its index."""
        self.device = device
        stream: Callable[..., Any] = torch.cuda.Stream
        # What leaves goes first, then what is computed: a finished frame is never held up by the next one.
        self._streams = {lane: stream(device=device, priority=-1 if lane == "encode" else 0) for lane in LANES}
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def on(self, lane: Lane) -> AbstractContextManager[Any]:
        """Make the lane's stream the current one."""
        chosen: AbstractContextManager[Any] = torch.cuda.stream(self._streams[lane])
        return chosen

    def mark(self, lane: Lane) -> object:
        """Return an event on the lane's stream; waiting for it sleeps, it does not spin."""
        event: Callable[..., Any] = torch.cuda.Event
        told = event(blocking=True)
        told.record(self._streams[lane])
        return told

    def follow(self, lane: Lane, mark: Any) -> None:  # noqa: ANN401 - an event, or None before the first
        """Make the lane's stream wait for the event."""
        if mark is not None:
            self._streams[lane].wait_event(mark)

    def wait(self, mark: Any) -> None:  # noqa: ANN401 - the same
        """Hold the host until the event was reached."""
        if mark is not None:
            mark.synchronize()

    def lend(self, tensor: Tensor, lane: Lane) -> None:
        """Tell the allocator of the lane's stream."""
        tensor.record_stream(self._streams[lane])

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return page-locked memory; torch keeps freed pieces for the next one."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def captured(self, call: Call, name: str) -> Call:
        """Run it some times, so that everything lazy has happened, then capture it as one CUDA graph.

        What cannot be captured (it asks the host in between) runs call by call, and is said so.
        """
        compute, exact = self._streams["compute"], not torch.backends.cudnn.allow_tf32
        graph = torch.cuda.CUDAGraph()
        try:
            # Shapes are fixed: the fastest convolutions are looked for once, here.
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact):
                with torch.cuda.stream(compute):
                    for _ in range(_WARM_UP_ROUNDS):
                        call()
                compute.synchronize()
                # Other threads go on allocating meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=compute, capture_error_mode="thread_local"):
                    outputs = call()
        except RuntimeError as reason:
            log.warning("%s cannot be captured as a CUDA graph and runs call by call (%s)", name, reason)
            return call

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


def lanes_of(device: torch.device) -> Lanes:
    """Return the lanes of a device."""
    return CudaLanes(device) if device.type == "cuda" else PlainLanes(device)

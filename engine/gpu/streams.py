"""Where work on a device runs side by side: copying, computing, encoding, and who waits for whom.

A lane is a CUDA stream; a mark is an event on it. On a machine without a GPU the same calls run at once, one after
another: what is right there in any order of waiting is proven with a fake, what the device does with it by the tests
marked ``gpu``. The default stream is never used, and the host waits for a mark alone, never for the device.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

from pipeline.errors import BackendError

log = logging.getLogger(__name__)

StreamName = Literal["copy", "compute", "encode"]
LANES: Final[tuple[StreamName, ...]] = ("copy", "compute", "encode")

Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]

_WARM_UP_ROUNDS: Final = 3


class DeviceStreams(Protocol):
    """One device's lanes; each is used from one thread at a time, marks by any."""

    device: torch.device

    def stream(self, stream: StreamName) -> AbstractContextManager[Any]:
        """Make what is called inside run on this lane."""
        ...

    def record_event(self, stream: StreamName) -> object:
        """Return a mark behind everything this lane was given so far."""
        ...

    def wait_event(self, stream: StreamName, mark: object) -> None:
        """Make what this lane is given from now on wait for a mark; the host goes on."""
        ...

    def synchronize(self, mark: object) -> None:
        """Hold the host until a mark is reached."""
        ...

    def record_stream(self, tensor: Tensor, stream: StreamName) -> None:
        """Keep a tensor's memory from being used again before this lane is done with it."""
        ...

    def pinned_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return host memory that the device copies from and to while the host goes on."""
        ...

    def encoder_stream(self) -> AbstractContextManager[Any]:
        """Make what is called inside run where the JPEG encoder works, behind all that the encode lane was given."""
        ...

    def capture_graph(self, call: Call, name: str) -> Call:
        """Return something that repeats ``call`` on the compute lane, in the same memory, at one launch."""
        ...


class CpuStreams:
    """A device whose work is done when the call returns: the CPU."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def stream(self, stream: StreamName) -> AbstractContextManager[Any]:  # noqa: ARG002 - the protocol's signature
        """Run it here and now."""
        return nullcontext()

    def record_event(self, stream: StreamName) -> object:  # noqa: ARG002 - the same
        """Return a mark that is reached already."""
        return None

    def wait_event(self, stream: StreamName, mark: object) -> None:
        """Nothing is left to wait for."""

    def synchronize(self, mark: object) -> None:
        """Nothing is left to wait for."""

    def record_stream(self, tensor: Tensor, stream: StreamName) -> None:
        """Nobody uses it behind our back."""

    def pinned_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return plain memory."""
        return torch.empty(shape, dtype=dtype)

    def encoder_stream(self) -> AbstractContextManager[Any]:
        """Run it here and now."""
        return nullcontext()

    def capture_graph(self, call: Call, name: str) -> Call:  # noqa: ARG002 - the same
        """Return the call itself."""
        return call


_encoders: dict[str, Any] = {}
_encoders_lock = threading.Lock()
"""Held while the first lanes of a device make its stream for JPEG."""


class CudaStreams:
    """A CUDA device: a stream for each lane, and CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        """Take the device, with its index."""
        self.device = device
        stream: Callable[..., Any] = torch.cuda.Stream
        # What leaves goes first, then what is computed: a finished frame is never held up by the next one.
        self._streams = {lane: stream(device=device, priority=-1 if lane == "encode" else 0) for lane in LANES}
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
        # torchvision keeps one encoder for the whole process. It has a stream of its own, and takes pictures from and
        # hands bytes to the stream that was current when it was first called, whichever is current later: so it must
        # meet the same one every time.
        with _encoders_lock:
            self._encoder = _encoders.setdefault(str(device), stream(device=device, priority=-1))
        self.failed_captures: list[tuple[object, str]] = []
        """Graphs whose capture failed, and why; some versions of torch go on asking them."""

    def stream(self, stream: StreamName) -> AbstractContextManager[Any]:
        """Make the lane's stream the current one."""
        chosen: AbstractContextManager[Any] = torch.cuda.stream(self._streams[stream])
        return chosen

    def record_event(self, stream: StreamName) -> object:
        """Return an event on the lane's stream; waiting for it sleeps, it does not spin."""
        event: Callable[..., Any] = torch.cuda.Event
        told = event(blocking=True)
        told.record(self._streams[stream])
        return told

    def wait_event(self, stream: StreamName, mark: Any) -> None:  # noqa: ANN401 - an event, or None before the first
        """Make the lane's stream wait for the event."""
        if mark is not None:
            self._streams[stream].wait_event(mark)

    def synchronize(self, mark: Any) -> None:  # noqa: ANN401 - the same
        """Hold the host until the event was reached."""
        if mark is not None:
            mark.synchronize()

    def record_stream(self, tensor: Tensor, stream: StreamName) -> None:
        """Tell the allocator of the lane's stream."""
        tensor.record_stream(self._streams[stream])

    def pinned_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return page-locked memory; torch keeps freed pieces for the next one."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def encoder_stream(self) -> AbstractContextManager[Any]:
        """Make the encoder's stream the current one; it waits for the encode lane's."""
        self._encoder.wait_stream(self._streams["encode"])
        chosen: AbstractContextManager[Any] = torch.cuda.stream(self._encoder)
        return chosen

    def capture_graph(self, call: Call, name: str) -> Call:
        """Run it some times, so that everything lazy has happened, then capture it as one CUDA graph.

        What cannot be captured (it asks the host in between) runs call by call, and is said so.
        """
        compute, exact = self._streams["compute"], not torch.backends.cudnn.allow_tf32
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        # Shapes are fixed: the fastest convolutions are looked for once, here.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact):
            with torch.cuda.stream(compute):
                for _ in range(_WARM_UP_ROUNDS):
                    call()
            compute.synchronize()
            try:
                # Other threads go on allocating meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=compute, capture_error_mode="thread_local"):
                    outputs = call()
            except (RuntimeError, BackendError) as reason:
                log.warning("%s cannot be captured as a CUDA graph and runs call by call (%s)", name, reason)
                self.failed_captures.append((graph, str(reason)))
                self._reset_after_failure(before)
                return call

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _reset_after_failure(self, before: Any) -> None:  # noqa: ANN401 - a stream
        """Clear up behind a capture that failed: torch leaves its stream the current one, and its allocator waiting."""
        torch.cuda.set_stream(before)
        self._pool, pool = torch.cuda.graph_pool_handle(), self._pool
        with suppress(RuntimeError, AttributeError):  # others have ended it themselves
            torch._C._cuda_endAllocateToPool(self.device.index, pool)  # noqa: SLF001 - nothing public does


def device_streams(device: torch.device) -> DeviceStreams:
    """Return the lanes of a device."""
    return CudaStreams(device) if device.type == "cuda" else CpuStreams(device)

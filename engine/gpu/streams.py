"""CUDA streams of a device: copy, compute, encode, and the events between them.

On a CPU the same calls run immediately, in order. Tests check the order of waits with a fake; tests marked ``gpu``
check the device. The default stream is never used, and the host waits for events only, never for the whole device.
"""

from __future__ import annotations

import logging
import threading
import warnings
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
    """Streams of one device. Each is used from one thread at a time; events may be used from any thread."""

    device: torch.device
    failed_captures: list[tuple[object, str]]
    """Graphs whose capture failed, with the reason; some torch versions poll them later."""

    def stream(self, stream: StreamName) -> AbstractContextManager[Any]:
        """Run the block's operations on this stream."""
        ...

    def record_event(self, stream: StreamName) -> object:
        """Record an event after all work submitted to this stream, and return it."""
        ...

    def wait_event(self, stream: StreamName, mark: object) -> None:
        """Make later work of this stream wait for an event; the host continues."""
        ...

    def synchronize(self, mark: object) -> None:
        """Block the host until an event is reached."""
        ...

    def record_stream(self, tensor: Tensor, stream: StreamName) -> None:
        """Prevent reuse of a tensor's memory until this stream has finished with it."""
        ...

    def pinned_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pinned host memory, for copies that do not block the host."""
        ...

    def encoder_stream(self) -> AbstractContextManager[Any]:
        """Run the block's operations on the JPEG encoder's stream, after all work of the encode stream."""
        ...

    def capture_graph(self, call: Call, name: str) -> Call:
        """Return a callable that repeats ``call`` on the compute stream, in the same memory, with one launch."""
        ...


class CpuStreams:
    """The streams of a CPU: work is finished when a call returns."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.failed_captures: list[tuple[object, str]] = []

    def stream(self, stream: StreamName) -> AbstractContextManager[Any]:  # noqa: ARG002 - the protocol's signature
        """Run the block at once."""
        return nullcontext()

    def record_event(self, stream: StreamName) -> object:  # noqa: ARG002 - the same
        """Return an event that is already reached."""
        return None

    def wait_event(self, stream: StreamName, mark: object) -> None:
        """Do nothing: all work is finished."""

    def synchronize(self, mark: object) -> None:
        """Do nothing: all work is finished."""

    def record_stream(self, tensor: Tensor, stream: StreamName) -> None:
        """Do nothing: memory is not used asynchronously."""

    def pinned_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return ordinary memory."""
        return torch.empty(shape, dtype=dtype)

    def encoder_stream(self) -> AbstractContextManager[Any]:
        """Run the block at once."""
        return nullcontext()

    def capture_graph(self, call: Call, name: str) -> Call:  # noqa: ARG002 - the same
        """Return the call itself."""
        return call


_encoders: dict[str, Any] = {}
_encoders_lock = threading.Lock()
"""Held while the first streams of a device create its JPEG encoder stream."""


class CudaStreams:
    """A CUDA device with streams by purpose, and CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        """Create the streams of ``device``, which must have an index."""
        self.device = device
        stream: Callable[..., Any] = torch.cuda.Stream
        # Encoding has the highest priority, then computing: a finished frame never waits for the next frame.
        self._streams = {lane: stream(device=device, priority=-1 if lane == "encode" else 0) for lane in LANES}
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
        # torchvision keeps one encoder per process, with its own stream. It synchronises with the stream that was
        # current at its first call, even if another stream is current later: so it must always be called on the same
        # stream.
        with _encoders_lock:
            self._encoder = _encoders.setdefault(str(device), stream(device=device, priority=-1))
        self.failed_captures: list[tuple[object, str]] = []

    def stream(self, stream: StreamName) -> AbstractContextManager[Any]:
        """Make the stream current."""
        chosen: AbstractContextManager[Any] = torch.cuda.stream(self._streams[stream])
        return chosen

    def record_event(self, stream: StreamName) -> object:
        """Record an event on the stream and return it; waiting for it sleeps instead of spinning."""
        event: Callable[..., Any] = torch.cuda.Event
        recorded = event(blocking=True)
        recorded.record(self._streams[stream])
        return recorded

    def wait_event(self, stream: StreamName, mark: Any) -> None:  # noqa: ANN401 - an event, or None before the first
        """Make the stream wait for the event."""
        if mark is not None:
            self._streams[stream].wait_event(mark)

    def synchronize(self, mark: Any) -> None:  # noqa: ANN401 - the same
        """Block the host until the event is reached."""
        if mark is not None:
            mark.synchronize()

    def record_stream(self, tensor: Tensor, stream: StreamName) -> None:
        """Tell the allocator that the stream uses the tensor."""
        tensor.record_stream(self._streams[stream])

    def pinned_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return page-locked memory; torch reuses freed blocks."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def encoder_stream(self) -> AbstractContextManager[Any]:
        """Make the encoder's stream current; it waits for the encode stream."""
        self._encoder.wait_stream(self._streams["encode"])
        chosen: AbstractContextManager[Any] = torch.cuda.stream(self._encoder)
        return chosen

    def capture_graph(self, call: Call, name: str) -> Call:
        """Run ``call`` a few times, for lazy initialisation, then capture it as one CUDA graph.

        If capturing fails, because ``call`` synchronises with the host, return ``call`` itself, with a warning.

        Raises:
            torch.OutOfMemoryError: the device has not enough memory for the call.
        """
        # Capturing synchronises the current device and empties its cache. With another GPU current, the process would
        # open a context of hundreds of MB there.
        with torch.cuda.device(self.device):
            return self._capture(call, name)

    def _capture(self, call: Call, name: str) -> Call:
        compute, exact = self._streams["compute"], not torch.backends.cudnn.allow_tf32
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        # Shapes are fixed, so cuDNN can search the fastest convolutions once, here.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact):
            with torch.cuda.stream(compute):
                for _ in range(_WARM_UP_ROUNDS):
                    call()
            compute.synchronize()
            try:
                # Other threads may allocate memory during the capture.
                with torch.cuda.graph(graph, pool=self._pool, stream=compute, capture_error_mode="thread_local"):
                    outputs = call()
            except (RuntimeError, BackendError) as reason:
                self.failed_captures.append((graph, str(reason)))
                self._reset_after_failure(before)
                if isinstance(reason, torch.OutOfMemoryError):
                    raise
                log.warning("%s cannot be captured as a CUDA graph and runs call by call (%s)", name, reason)
                return call

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _reset_after_failure(self, before: Any) -> None:  # noqa: ANN401 - a stream
        """Clean up after a failed capture.

        torch leaves its stream current, and its allocator and random number generator in capture mode. Only the next
        successful capture resets the generator.
        """
        torch.cuda.set_stream(before)
        self._pool, pool = torch.cuda.graph_pool_handle(), self._pool
        with suppress(RuntimeError, AttributeError):  # some versions of torch have ended it already
            torch._C._cuda_endAllocateToPool(self.device.index, pool)  # noqa: SLF001 - there is no public function
        empty, compute = torch.cuda.CUDAGraph(), self._streams["compute"]
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the graph is empty
            with torch.cuda.graph(empty, stream=compute, capture_error_mode="thread_local"):
                pass
        torch.cuda.set_stream(before)


def device_streams(device: torch.device) -> DeviceStreams:
    """Return the streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else CpuStreams(device)

"""Timing on a device: rounds that are synchronised around the clock, cases in turn, and a budget for the whole run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from engine.backends.registry import BACKENDS
from engine.gpu.streams import device_streams
from engine.runtime.compile_cache import CompileCache
from tests.bench.figures import quantiles

Call = Callable[[int], object]


@dataclass
class Settings:
    """Device, size and duration of the measurements."""

    device: torch.device
    small: bool = False
    """True for the smallest run: on a CPU, to check that all code works."""
    seconds: float = 460.0
    """Time limit of the whole run."""
    photos: str | None = None
    weights: str | None = None
    begun: float = field(default_factory=time.monotonic)
    cache: CompileCache = field(default_factory=lambda: CompileCache(Path(tempfile.mkdtemp(prefix="bench-gpu-"))))
    """Engines of one section are used by the next."""
    without: dict[str, str] = field(default_factory=dict)
    """Backends that were found not to work here, and why: nobody tries them again."""

    def lacking(self, backend: str) -> str:
        """Return why a backend cannot be measured here, or ""."""
        reason: str = self.without.get(backend) or BACKENDS[backend].load().missing(self.device.type)
        return reason

    @property
    def left(self) -> float:
        """Seconds left of the run."""
        return self.seconds - (time.monotonic() - self.begun)

    @property
    def precision(self) -> str:
        """Half precision on a GPU; float32 on a CPU."""
        return "fp16" if self.device.type == "cuda" else "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """The same as a type."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    @property
    def rounds_seconds(self) -> float:
        """Time limit of the rounds of one case."""
        return 0.05 if self.small else 0.6


def settle(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def off_default_stream(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own, where there are streams."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def once(call: Call, number: int, device: torch.device) -> float:
    """Return the seconds of one call, from an idle device to an idle device."""
    if device.type != "cuda":
        started_at = time.perf_counter()
        call(number)
        return time.perf_counter() - started_at
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call(number)
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def timed(cases: Mapping[str, Call], settings: Settings, images: int) -> dict[str, dict[str, float]]:
    """Time cases in turn, A B A B, after a warm-up: latency of single calls, and images a second back to back."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode(), off_default_stream(settings.device):
        for number in range(2 if settings.small else 5):
            for call in cases.values():
                once(call, number, settings.device)
        deadline = time.monotonic() + settings.rounds_seconds * len(cases)
        number = 0
        while number < 4 or (time.monotonic() < deadline and number < 400):
            for name, call in cases.items():
                seconds[name].append(once(call, number, settings.device))
            number += 1
        rates = {name: _rate(call, seconds[name], settings, images) for name, call in cases.items()}
    return {
        name: {**quantiles(durations), "images_per_second": rates[name], "rounds": len(durations)}
        for name, durations in seconds.items()
    }


def _rate(call: Call, durations: list[float], settings: Settings, images: int) -> float:
    """Return images a second when calls follow each other without waiting."""
    count = max(2, min(500, round(settings.rounds_seconds / max(sorted(durations)[len(durations) // 2], 1e-6) / 2)))
    settle(settings.device)
    started_at = time.perf_counter()
    for number in range(count):
        call(number)
    settle(settings.device)
    return round(images * count / (time.perf_counter() - started_at), 1)


def rotated(shape: tuple[int, ...], settings: Settings, count: int = 4) -> list[Tensor]:
    """Return different random inputs on the device: the same one would stay in a cache."""
    generator = torch.Generator(settings.device).manual_seed(5)
    count = count if shape[0] <= 64 else 2
    return [
        torch.randn(shape, generator=generator, device=settings.device)
        .to(settings.dtype)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(count)
    ]


def captured(call: Callable[[Tensor], object], example: Tensor, settings: Settings) -> Callable[[Tensor], object]:
    """Return the call as one CUDA graph; inputs are copied into its memory, which is part of what is timed.

    Raises ``RuntimeError`` where it cannot be captured: what runs call by call is not measured as a graph.
    """
    if settings.device.type != "cuda":
        return call
    static, lanes = example.clone(memory_format=torch.preserve_format), device_streams(settings.device)
    settle(settings.device)  # the capture's stream is another one than the copy's
    with torch.inference_mode():
        replay = lanes.capture_graph(lambda: call(static), "what is measured")
    if lanes.failed_captures:
        raise RuntimeError(f"it cannot be captured: {lanes.failed_captures[-1][1]}")

    def run(images: Tensor) -> object:
        static.copy_(images)
        return replay()

    return run

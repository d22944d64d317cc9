"""State of NVIDIA GPUs from the driver: version, utilization, clocks, memory, temperature and power.

Reads the NVIDIA Management Library through ``pynvml`` (package ``nvidia-ml-py``), which loads the driver's library at
the first call. Without a driver, no GPUs are returned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml
from pynvml import NVMLError


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """Current state of a GPU; None for values that its driver does not report."""

    name: str
    driver: str
    """Version of the driver."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization: float | None = None
    """Fraction of the last sampling period in which at least one kernel ran, in [0, 1]."""
    memory_utilization: float | None = None
    """Fraction of the last sampling period in which memory was read or written, in [0, 1]."""
    clock_mhz: int | None = None
    """Clock of the multiprocessors."""
    clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    celsius: int | None = None
    watts: float | None = None

    def __str__(self) -> str:
        mib = 1 << 20
        parts = [self.name, f"driver {self.driver}"]
        if self.memory_used_bytes is not None and self.memory_total_bytes is not None:
            parts.append(f"{self.memory_used_bytes // mib} of {self.memory_total_bytes // mib} MiB used")
        if self.utilization is not None:
            parts.append(f"{self.utilization:.0%} busy")
        if self.clock_mhz is not None:
            maximum = "" if self.clock_max_mhz is None else f" of {self.clock_max_mhz}"
            parts.append(f"{self.clock_mhz}{maximum} MHz")
        if self.celsius is not None:
            parts.append(f"{self.celsius} °C")
        if self.watts is not None:
            parts.append(f"{self.watts:.0f} W")
        return ", ".join(parts)


def list_gpus() -> list[GpuStatus]:
    """Return all GPUs of this machine, in the driver's order; empty without a driver."""
    try:
        _open_driver()
        handles = [_optional(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except NVMLError:
        return []
    return [_status(handle) for handle in handles if handle is not None]


def gpu_at(pci: str) -> GpuStatus | None:
    """Return the GPU at a PCI address, ``domain:bus:device.function`` in hex; None if there is none."""
    try:
        _open_driver()
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci)
    except NVMLError:
        return None
    return _status(handle)


@functools.cache
def _open_driver() -> None:
    """Open the driver's library, once for the process: each opening takes milliseconds."""
    pynvml.nvmlInit()


def _status(handle: object) -> GpuStatus:
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    load = _optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _optional(pynvml.nvmlDeviceGetPowerUsage, handle)
    return GpuStatus(
        name=_optional(pynvml.nvmlDeviceGetName, handle) or "unknown",
        driver=_optional(pynvml.nvmlSystemGetDriverVersion) or "unknown",
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        utilization=None if load is None else load.gpu / 100,
        memory_utilization=None if load is None else load.memory / 100,
        clock_mhz=_optional(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        clock_max_mhz=_optional(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=_optional(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        celsius=_optional(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        watts=None if milliwatts is None else milliwatts / 1000,
    )


def _optional(read: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - pynvml has no types
    """Call a function of NVML; return None if it fails, for example for a value that the GPU lacks."""
    try:
        return read(*arguments)
    except NVMLError:
        return None

"""What the NVIDIA driver tells of its devices: version, load, clocks, memory, heat and power.

Asked of the driver's own library, which comes with every driver; no package is needed. Where there is none, nothing is
told. Structures and names: NVIDIA Management Library API Reference, version 2 symbols.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

_LIBRARIES: Final = ("libnvidia-ml.so.1", "nvml.dll")
_TEXT_BYTES: Final = 96
_SM_CLOCK, _MEMORY_CLOCK = 1, 2
_TEMPERATURE: Final = 0


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """How one device does right now; None for what its driver does not tell."""

    name: str
    driver: str
    """The driver's version."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization: float | None = None
    """Of the last sampling period: how long at least one kernel ran, in [0, 1]."""
    memory_utilization: float | None = None
    clock_mhz: int | None = None
    """Of the multiprocessors."""
    clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    celsius: int | None = None
    watts: float | None = None

    def __str__(self) -> str:
        mib = 1 << 20
        told = [self.name, f"driver {self.driver}"]
        if self.memory_used_bytes is not None and self.memory_total_bytes is not None:
            told.append(f"{self.memory_used_bytes // mib} of {self.memory_total_bytes // mib} MiB used")
        if self.utilization is not None:
            told.append(f"{self.utilization:.0%} busy")
        if self.clock_mhz is not None:
            most = "" if self.clock_max_mhz is None else f" of {self.clock_max_mhz}"
            told.append(f"{self.clock_mhz}{most} MHz")
        if self.celsius is not None:
            told.append(f"{self.celsius} °C")
        if self.watts is not None:
            told.append(f"{self.watts:.0f} W")
        return ", ".join(told)


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Load(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def list_gpus(library: Any = None) -> list[GpuStatus]:  # noqa: ANN401 - a shared library, or what stands in for it
    """Return every device of this machine, in the driver's order; none where there is no driver."""
    with _asked(library) as nvml:
        count = ctypes.c_uint()
        if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
                found.append(_gpu(nvml, handle))
        return found


def gpu_at(pci: str, library: Any = None) -> GpuStatus | None:  # noqa: ANN401 - the same
    """Return the device at a PCI address, ``domain:bus:device.function`` in hex; None where there is none."""
    with _asked(library) as nvml:
        handle = ctypes.c_void_p()
        if nvml is None or nvml.nvmlDeviceGetHandleByPciBusId_v2(pci.encode(), ctypes.byref(handle)) != 0:
            return None
        return _gpu(nvml, handle)


@contextmanager
def _asked(library: Any) -> Iterator[Any]:  # noqa: ANN401 - the same
    """Give the library, open; None where there is no driver."""
    nvml = _loaded() if library is None else library
    if nvml is None or nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


@functools.cache
def _loaded() -> Any:  # noqa: ANN401 - a shared library
    for name in _LIBRARIES:
        try:
            nvml = ctypes.CDLL(name)
        except OSError:
            continue
        nvml.nvmlInit_v2()  # once for the process: opening it anew each time would take milliseconds
        return nvml
    return None


def _gpu(nvml: Any, handle: ctypes.c_void_p) -> GpuStatus:  # noqa: ANN401 - a shared library
    memory, load = _Memory(), _Load()
    has_memory = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    has_load = nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(load)) == 0
    milliwatts = _number(nvml.nvmlDeviceGetPowerUsage, handle)
    return GpuStatus(
        name=_text(nvml.nvmlDeviceGetName, handle),
        driver=_text(nvml.nvmlSystemGetDriverVersion),
        memory_used_bytes=memory.used if has_memory else None,
        memory_total_bytes=memory.total if has_memory else None,
        utilization=load.gpu / 100 if has_load else None,
        memory_utilization=load.memory / 100 if has_load else None,
        clock_mhz=_number(nvml.nvmlDeviceGetClockInfo, handle, ctypes.c_uint(_SM_CLOCK)),
        clock_max_mhz=_number(nvml.nvmlDeviceGetMaxClockInfo, handle, ctypes.c_uint(_SM_CLOCK)),
        memory_clock_mhz=_number(nvml.nvmlDeviceGetClockInfo, handle, ctypes.c_uint(_MEMORY_CLOCK)),
        celsius=_number(nvml.nvmlDeviceGetTemperature, handle, ctypes.c_uint(_TEMPERATURE)),
        watts=None if milliwatts is None else milliwatts / 1000,
    )


def _number(ask: Any, *arguments: Any) -> int | None:  # noqa: ANN401 - ctypes
    told = ctypes.c_uint()
    return int(told.value) if ask(*arguments, ctypes.byref(told)) == 0 else None


def _text(ask: Any, *arguments: Any) -> str:  # noqa: ANN401 - ctypes
    told = ctypes.create_string_buffer(_TEXT_BYTES)
    return told.value.decode(errors="replace") if ask(*arguments, told, ctypes.c_uint(_TEXT_BYTES)) == 0 else "unknown"

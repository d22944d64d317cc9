"""Where a network can run, and in which arithmetic."""

from __future__ import annotations

import logging

import torch
from torch import nn

from engine.gpu.nvml import GpuStatus, gpu_at, list_gpus
from pipeline.errors import BackendError
from pipeline.ports import MetricSample

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by the name users give them."""


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        BackendError: CUDA was asked for and is not there, or has no device of that number.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "torch sees no GPU" if torch.version.cuda else "this torch was built without CUDA"
        raise BackendError(
            f"device {name!r}: {why}; `run.py doctor` tells more. Use --device cpu, or auto to take what there is"
        )
    index, count = int(name.partition(":")[2] or torch.cuda.current_device()), torch.cuda.device_count()
    if index >= count:
        raise BackendError(
            f"device {name!r}: there are {count}, the last is cuda:{count - 1}; `run.py doctor` tells more"
        )
    return torch.device("cuda", index)


def disable_tf32(precision: str, device: torch.device) -> None:
    """Make float32 mean float32 on a GPU, for the whole process: convolutions there round to 10 bits (TF32) unasked.

    Beside a network in half precision what runs in float32 may round its factors so: the feature map has no more bits
    than that, and sums are float32 still. On a card's tensor cores the product of all cells then costs a tenth.
    """
    if device.type != "cuda":
        return
    exact = precision == "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
    if exact:
        log.info("precision fp32 leaves the GPU's tensor cores idle; fp16 is what they are for: --precision fp16")


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Say so when a precision that was asked for costs time here instead of saving it."""
    if device.type == "cpu" and precision == "fp16":
        log.warning("precision fp16 is slower than fp32 on most CPUs; bf16 is the fast half precision here")
    if device.type == "cpu" and precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        log.warning("this CPU has no bf16 arithmetic; precision bf16 is emulated and slower than fp32")


def gpu_status(device: torch.device) -> GpuStatus | None:
    """Return how a CUDA device does right now, as its driver tells it; None on a CPU and where it does not tell."""
    if device.type != "cuda":
        return None
    told = torch.cuda.get_device_properties(device)
    parts = [getattr(told, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if any(part is None for part in parts):
        return next(iter(list_gpus()), None) if torch.cuda.device_count() == 1 else None
    domain, bus, place = (int(part or 0) for part in parts)
    return gpu_at(f"{domain:08X}:{bus:02X}:{place:02X}.0")


def gpu_metrics(device: torch.device) -> list[MetricSample]:
    """Return a CUDA device's load, clocks, heat and power as figures; none on a CPU and where nobody tells."""
    gpu = gpu_status(device)
    if gpu is None:
        return []
    told = (
        ("device_busy_ratio", gpu.utilization, "Share of the last sampling period in which a kernel ran."),
        (
            "device_memory_busy_ratio",
            gpu.memory_utilization,
            "Share of it in which device memory was read or written.",
        ),
        ("device_clock_hertz", _mega(gpu.clock_mhz), "Clock of the multiprocessors."),
        ("device_memory_clock_hertz", _mega(gpu.memory_clock_mhz), "Clock of the device's memory."),
        ("device_temperature_celsius", gpu.celsius, "How hot the device is."),
        ("device_power_watts", gpu.watts, "What the device draws."),
    )
    labels = (("device", str(device)),)
    return [MetricSample(name, value, says, labels=labels) for name, value, says in told if value is not None]


def _mega(count: int | None) -> float | None:
    return None if count is None else 1e6 * count


def channels_last(module: nn.Module) -> nn.Module:
    """Lay out a module's weights of four dimensions with the channels last, in place; return it.

    ``Module.to`` fails where there are buffers of five dimensions, as some transformers have them.
    """
    for part in module.modules():
        for own in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if own.dim() == 4:
                own.data = own.data.contiguous(memory_format=torch.channels_last)
    return module

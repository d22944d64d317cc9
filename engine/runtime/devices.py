"""Selects devices and precisions, and reports the state of GPUs."""

from __future__ import annotations

import logging

import torch
from torch import nn

from engine.gpu.nvml import GpuStatus, gpu_at, list_gpus
from pipeline.errors import BackendError
from pipeline.ports import MetricSample

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of each precision in the configuration."""


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        BackendError: CUDA is not available, or has no device with this number.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "torch finds no GPU" if torch.version.cuda else "this torch was built without CUDA"
        raise BackendError(f"device {name!r}: {why}; see `run.py doctor`, and use --device cpu or auto")
    index, count = int(name.partition(":")[2] or torch.cuda.current_device()), torch.cuda.device_count()
    if index >= count:
        raise BackendError(
            f"device {name!r}: no such CUDA device; the last is cuda:{count - 1}; `run.py doctor` lists them"
        )
    return torch.device("cuda", index)


def set_product_precision(precision: str, device: torch.device) -> None:
    """Disable TF32 for precision fp32 on a GPU, for the whole process; enable it for half precision.

    Products in half precision are summed in float32.

    By default cuDNN rounds the factors of float32 convolutions to 10 bits (TF32). For a network in half precision,
    float32 operations may also use TF32: the feature map has no more bits, and sums stay float32. On tensor cores the
    matrix product of all cells then takes a tenth of the time.
    """
    if device.type != "cuda":
        return
    # By default cuBLAS may add partial sums of half-precision products in half precision.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    exact = precision == "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
    if exact:
        log.info("precision fp32 does not use the GPU's tensor cores; --precision fp16 does and is faster")


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Log a warning if the precision is slower than fp32 on this device."""
    if device.type == "cpu" and precision == "fp16":
        log.warning(
            "precision fp16 is slower than fp32 on most CPUs; use bf16 if `run.py doctor` finds it in hardware, or fp32"
        )
    if device.type == "cpu" and precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        log.warning(
            "this CPU has no bf16 arithmetic, so precision bf16 is emulated and slower than fp32; use --precision fp32"
        )


def gpu_status(device: torch.device) -> GpuStatus | None:
    """Return the current state of a CUDA device from its driver; None for a CPU or if the driver does not report it."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    parts = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if any(part is None for part in parts):
        return next(iter(list_gpus()), None) if torch.cuda.device_count() == 1 else None
    domain, bus, pci_device = (int(part or 0) for part in parts)
    return gpu_at(f"{domain:08X}:{bus:02X}:{pci_device:02X}.0")


def gpu_metrics(device: torch.device) -> list[MetricSample]:
    """Return utilization, clocks, temperature and power of a CUDA device; [] if ``gpu_status`` returns None."""
    gpu = gpu_status(device)
    if gpu is None:
        return []
    values = (
        ("device_busy_ratio", gpu.utilization, "Fraction of the last sampling period in which a kernel ran."),
        (
            "device_memory_busy_ratio",
            gpu.memory_utilization,
            "Fraction of the last sampling period in which device memory was read or written.",
        ),
        ("device_clock_hertz", _hertz(gpu.clock_mhz), "Clock of the multiprocessors."),
        ("device_memory_clock_hertz", _hertz(gpu.memory_clock_mhz), "Clock of the device memory."),
        ("device_temperature_celsius", gpu.celsius, "Temperature of the device."),
        ("device_power_watts", gpu.watts, "Power draw of the device."),
    )
    labels = (("device", str(device)),)
    return [MetricSample(name, value, text, labels=labels) for name, value, text in values if value is not None]


def _hertz(megahertz: int | None) -> float | None:
    return None if megahertz is None else 1e6 * megahertz


def channels_last(module: nn.Module) -> nn.Module:
    """Convert a module's 4-dimensional weights to channels-last memory format, in place; return the module.

    ``Module.to(memory_format=...)`` fails for modules with 5-dimensional buffers, such as some transformers.
    """
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module

"""Where a network can run, and in which arithmetic."""

from __future__ import annotations

import logging

import torch

from pipeline.errors import BackendError

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


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Say so when a precision that was asked for costs time here instead of saving it."""
    if device.type == "cpu" and precision == "fp16":
        log.warning("precision fp16 is slower than fp32 on most CPUs; bf16 is the fast half precision here")
    if device.type == "cpu" and precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        log.warning("this CPU has no bf16 arithmetic; precision bf16 is emulated and slower than fp32")

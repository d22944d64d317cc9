"""Opens a GPU's primary CUDA context, which torch also uses, through the driver's library.

FFmpeg rejects a primary context that another library opened with other flags, but accepts the context that is current
in the calling thread. This way all cameras and the network share one context, in whatever order they are created.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_BLOCKING_SYNC: Final = 4  # CU_CTX_SCHED_BLOCKING_SYNC: a thread that waits for the GPU sleeps


@contextmanager
def primary_context(gpu: int) -> Iterator[bool]:
    """Make a GPU's primary context current in this thread; yield False if it cannot be opened."""
    context = _retained(gpu)
    driver = _driver()
    if context is None or driver is None or driver.cuCtxPushCurrent_v2(context):
        yield False
        return
    try:
        yield True
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


@functools.cache
def _driver() -> Any:  # noqa: ANN401 - the driver's own functions
    """Load the driver's library; return None without a driver."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


@functools.cache
def _retained(gpu: int) -> ctypes.c_void_p | None:
    """Open a GPU's primary context until the process ends; return None if that fails."""
    driver, device, context = _driver(), ctypes.c_int(), ctypes.c_void_p()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), gpu):
        return None
    # The flags have no effect on a context that is already open.
    driver.cuDevicePrimaryCtxSetFlags_v2(device, _BLOCKING_SYNC)
    return None if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) else context

"""Preserves a thread's alternate signal stack (sigaltstack) while a library replaces it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DISABLED = 2  # SS_DISABLE in signal.h


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux's signal.h."""

    _fields_ = (("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t))


@contextmanager
def preserve_signal_stack() -> Iterator[None]:
    """Restore this thread's alternate signal stack at the end of the block; only on Linux.

    OpenVINO sets its own signal stack in the thread that loads it, and frees that memory with the last compiled model,
    possibly in another thread. The next signal in the first thread, such as Ctrl-C or an alarm, would then crash the
    process.
    """
    if sys.platform != "linux":
        yield
        return
    exchange = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = exchange(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            before.flags &= _DISABLED  # of the flags that it returns, sigaltstack accepts only this one
            exchange(ctypes.byref(before), None)

"""A thread's stack for signals (sigaltstack), kept as it is while a library loads that would bring its own."""

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
    """Give this thread back the signal stack that it came with, at the block's end. Linux only; elsewhere nothing.

    OpenVINO gives the thread that loads it a signal stack of its own, and frees that memory with its last compiled
    model, in whichever thread lets go of it. The first thread would be left with a stack that is gone: its next
    signal, Ctrl-C or an alarm, would end the process in a crash.
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
            before.flags &= _DISABLED  # the kernel takes no other flag back
            exchange(ctypes.byref(before), None)

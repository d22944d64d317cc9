"""Signals are safe after compiled networks are freed."""

import ctypes
import gc
import signal
import sys
import threading

import pytest

from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from pipeline.config import EngineConfig
from tests.bench.figures import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are read by Linux's own call")


class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t)]


def signal_stack():
    result = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(result)) == 0
    return result.at


@pytest.mark.slow
def test_compile_preserves_the_signal_stack():
    pytest.importorskip("openvino")
    before = signal_stack()
    network = load_network("line_net", weights=ROOT / "configs" / "models" / "line.safetensors")
    explainer = NetworkExplainer(network, EngineConfig(cache="off", backend="openvino"))
    assert signal_stack() == before
    del explainer, network
    gc.collect()
    assert signal_stack() == before


@pytest.mark.slow
def test_signal_is_safe_after_a_network_is_freed_in_another_thread():
    pytest.importorskip("openvino")
    network = load_network("line_net", weights=ROOT / "configs" / "models" / "line.safetensors")
    held = [NetworkExplainer(network, EngineConfig(cache="off", backend="openvino"))]
    other = threading.Thread(target=lambda: (held.clear(), gc.collect()))
    other.start()
    other.join()
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: came.append(True))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came

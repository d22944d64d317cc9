"""Ctrl-C stays harmless whatever was compiled and not chosen."""

import ctypes
import gc
import sys

import pytest

from engine.build import Runner
from engine.explainer import NetworkExplainer
from engine.networks import load_network
from pipeline.config import EngineConfig
from tests.bench.figures import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are read by Linux's own call")


class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t)]


def signal_stack():
    told = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(told)) == 0
    return told.at


def test_a_network_that_was_not_chosen_leaves_no_signal_stack_to_the_thread_that_built_it(monkeypatch):
    pytest.importorskip("openvino")
    before = signal_stack()
    monkeypatch.setattr(Runner, "seconds_per_image", lambda self: float(self.build.backend == "openvino"))
    network = load_network("line_net", weights=ROOT / "configs" / "models" / "line.safetensors")
    gc.disable()  # it comes when it likes, in whichever thread: it must not be needed
    try:
        explainer = NetworkExplainer(network, EngineConfig(cache="off"))
        assert explainer.facts.backend == "eager"
        assert signal_stack() == before
    finally:
        gc.enable()

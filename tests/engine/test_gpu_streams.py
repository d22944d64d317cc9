"""Calls of CUDA, checked with a fake: right names, right order, no call that does not exist."""

import functools
import inspect
import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.explainers.gpu import GpuExplainer
from engine.gpu import streams as cuda_lanes
from engine.gpu.streams import LANES, CpuStreams, CudaStreams, device_streams
from engine.models.loader import load_network
from overlays.render.gpu_tables import heat_lut
from pipeline.config import EngineConfig
from pipeline.frames import Frame
from pipeline.image_patch import ImagePatch
from tests.bench import gpu_clock

CPU = torch.device("cpu")
REAL = {name: getattr(torch.cuda, name) for name in ("graph", "Stream", "Event")}


class FakeCuda:
    """Records the calls of streams, events and graphs; a replay repeats no call."""

    def __init__(self, monkeypatch, capture_fails=False):
        self.told = []
        self.error = RuntimeError("operation not permitted when stream is capturing") if capture_fails else None
        """Raised by the next capture."""
        self.now = "default"
        self.current = torch.device("cuda", 0)
        self.synchronised = []
        """The current devices that captures have synchronised."""
        self.generator_captures = False
        empty = torch.empty

        def roomy(*arguments, pin_memory=False, **more):
            return empty(*arguments, **more)

        fakes = {
            "Stream": functools.partial(FakeStream, self), "Event": functools.partial(FakeEvent, self),
            "CUDAGraph": lambda: FakeGraph(self), "graph": self.graph, "stream": self.stream,
            "device": self.device, "graph_pool_handle": object,
            "current_stream": lambda device=None: SimpleNamespace(name=self.now),
            "synchronize": lambda device=None: self.told.append(("synchronize device",)),
            "set_stream": lambda stream: setattr(self, "now", stream.name),
        }  # fmt: skip
        monkeypatch.setattr(cuda_lanes, "_encoders", {})
        monkeypatch.setattr(
            torch._C, "_cuda_endAllocateToPool", lambda device, pool: self.told.append(("let go", pool))
        )
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "empty", roomy)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: self.told.append(("lend", stream.name)))

    @contextmanager
    def device(self, device):
        before, self.current = self.current, device
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        self.told.append(("capture", stream.name, capture_error_mode))
        self.synchronised.append(self.current)
        self.generator_captures = True
        yield
        if self.error is not None:
            self.now = stream.name  # as torch does: a capture that cannot be ended leaves its stream the current one
            error, self.error = self.error, None
            raise error
        self.generator_captures = False

    @contextmanager
    def stream(self, chosen):
        before, self.now = self.now, chosen.name
        yield
        self.now = before


class FakeStream:
    def __init__(self, cuda, device=None, priority=0):
        self.cuda = cuda
        self.name = f"stream {sum(1 for entry in cuda.told if entry[0] == 'new')}"
        cuda.told.append(("new", self.name))

    def wait_event(self, event):
        self.cuda.told.append(("wait_event", self.name, event.number))

    def wait_stream(self, other):
        self.cuda.told.append(("wait_stream", self.name, other.name))

    def synchronize(self):
        self.cuda.told.append(("synchronize stream", self.name))


class FakeEvent:
    numbers = itertools.count(1)

    def __init__(self, cuda, enable_timing=False, blocking=False):
        self.cuda = cuda
        self.number = next(self.numbers)

    def record(self, stream=None):
        self.cuda.told.append(("record", getattr(stream, "name", "current"), self.number))

    def synchronize(self):
        self.cuda.told.append(("synchronize event", self.number))

    def elapsed_time(self, other):
        return 2.5


class FakeGraph:
    def __init__(self, cuda):
        self.cuda = cuda

    def replay(self):
        self.cuda.told.append(("replay", self.cuda.now))


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def card(device=CPU):
    network = load_network("squeezenet1_1", weights="random")
    config = EngineConfig(model="squeezenet1_1", input_size="64x64", backend="eager", device="cpu", cache="off")
    return GpuExplainer(network, config, table=heat_lut("inferno", 0.6), streams=CudaStreams)


def frame(number):
    return Frame(np.full((40, 60, 3), number, np.uint8), "a", number, 0.0)


def test_pipeline_uploads_runs_one_graph_downloads_and_never_synchronises_the_device(cuda):
    explainer = card()
    explainer.explain([frame(0)])
    cuda.told.clear()
    finish = explainer.submit([frame(1)])
    kinds = [entry[0] for entry in cuda.told]
    copy, compute, encode = "stream 0", "stream 1", "stream 2"
    assert kinds == ["record", "wait_event", "record", "replay", "record"]
    assert cuda.told[0][1] == copy
    assert cuda.told[1] == ("wait_event", compute, cuda.told[0][2])
    assert cuda.told[3] == ("replay", compute)
    cuda.told.clear()
    (explanation,) = finish()
    assert [entry[0] for entry in cuda.told] == ["synchronize event"]
    cuda.told.clear()
    stamp = ImagePatch(2, 3, np.zeros((4, 5, 4), np.uint8))
    jpeg, image = explainer.download(explanation, [stamp], jpeg_quality=80, as_array=True)
    assert jpeg.payload
    assert image.shape == (40, 60, 3)
    assert cuda.told[0] == ("wait_event", encode, explanation.drawn.done.number)
    assert ("lend", encode) in cuda.told
    assert not any(entry[0] in {"synchronize device", "synchronize stream"} for entry in cuda.told)


def test_graph_is_captured_on_the_compute_stream_while_other_threads_continue(cuda):
    explainer = card()
    explainer.explain([frame(0)])
    assert [entry for entry in cuda.told if entry[0] == "capture"] == [("capture", "stream 1", "thread_local")]


def test_capture_failure_runs_call_by_call_with_a_warning(monkeypatch, caplog):
    cuda = FakeCuda(monkeypatch, capture_fails=True)
    explainer = card()
    assert len(explainer.explain([frame(0)])) == 1
    assert "cannot be captured as a CUDA graph and runs call by call" in caplog.text
    assert not any(entry[0] == "replay" for entry in cuda.told)
    assert cuda.now == "default"
    assert [entry[0] for entry in cuda.told].count("let go") == 1


def test_capture_failure_ends_the_capture_mode_of_the_random_number_generator(monkeypatch):
    cuda = FakeCuda(monkeypatch, capture_fails=True)
    streams = CudaStreams(CPU)
    streams.capture_graph(lambda: (torch.zeros(1),), "a call that asks")
    assert len(streams.failed_captures) == 1
    assert not cuda.generator_captures
    assert cuda.now == "default"


def test_capture_out_of_memory_is_raised_and_not_run_call_by_call(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    cuda.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        CudaStreams(CPU).capture_graph(lambda: (torch.zeros(1),), "too large")
    assert cuda.now == "default"


def test_capture_synchronises_its_own_device_only(cuda):
    streams = CudaStreams(torch.device("cuda", 1))
    streams.capture_graph(lambda: (torch.zeros(1),), "on the second GPU")
    assert cuda.synchronised == [torch.device("cuda", 1)]
    assert cuda.current == torch.device("cuda", 0)


def test_explainers_of_a_process_share_the_jpeg_encoder_stream(cuda):
    first, other = CudaStreams(CPU), CudaStreams(CPU)
    seen = []
    for lanes in (first, other):
        cuda.told.clear()
        with lanes.encoder_stream():
            seen.append(cuda.now)
        encode = lanes._streams["encode"].name
        assert cuda.told == [("wait_stream", seen[-1], encode)]
    assert seen[0] == seen[1]
    assert seen[0] not in {stream.name for lanes in (first, other) for stream in lanes._streams.values()}


def test_gpu_clock_times_by_events_and_captures_off_the_default_stream(cuda):
    device = SimpleNamespace(type="cuda")
    settings = gpu_clock.Settings(device, small=True)
    assert gpu_clock.once(lambda number: None, 0, device) == 2.5e-3
    times = gpu_clock.timed({"one": lambda number: None}, settings, 4)
    assert times["one"]["p50_ms"] == 2.5
    called = []
    run = gpu_clock.captured(lambda images: called.append(1), torch.zeros(2, 3, 4, 4), settings)
    assert len(called) == 4
    run(torch.ones(2, 3, 4, 4))
    assert cuda.told[-1][0] == "replay"


def test_cuda_fake_accepts_only_what_cuda_accepts():
    graph = inspect.signature(REAL["graph"].__init__).parameters
    assert {"cuda_graph", "pool", "stream", "capture_error_mode"} <= set(graph)
    assert {"device", "priority"} <= set(inspect.signature(REAL["Stream"].__new__).parameters)
    assert {"enable_timing", "blocking"} <= set(inspect.signature(REAL["Event"].__new__).parameters)
    for name in ("CUDAGraph", "graph_pool_handle", "current_stream", "default_stream", "stream", "set_stream"):
        assert hasattr(torch.cuda, name)
    assert hasattr(torch._C, "_cuda_endAllocateToPool")


def test_cpu_streams_run_at_once():
    lanes = device_streams(CPU)
    assert isinstance(lanes, CpuStreams)
    assert LANES == ("copy", "compute", "encode")
    assert lanes.synchronize(lanes.record_event("copy")) is None

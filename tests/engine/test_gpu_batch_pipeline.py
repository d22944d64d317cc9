"""Frames on their way over a device: cut to buckets, ordered by marks, told in order; with the host's answers."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.explainers.gpu import GpuExplainer, RenderedExplanation
from engine.explainers.network import NetworkExplainer
from engine.gpu.batch_pipeline import SLOTS, BatchPipeline, buckets_up_to, split_into_buckets
from engine.gpu.streams import CpuStreams, device_streams
from engine.models.loader import load_network
from overlays.render.gpu_tables import heat_lut
from overlays.render.jpeg import decode_image
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig
from pipeline.frames import Frame
from tests.engine.reference import lively

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TABLE = heat_lut("inferno", 0.6)


class FakeLanes(CpuStreams):
    """Writes down who marks and who waits; what runs, runs at once."""

    def __init__(self, device=None):
        super().__init__(device)
        self.told = []
        self.marks = 0
        self.captures = []

    def stream(self, lane):
        self.told.append(("on", lane))
        return nullcontext()

    def record_event(self, lane):
        self.marks += 1
        self.told.append(("mark", lane, self.marks))
        return self.marks

    def wait_event(self, lane, mark):
        self.told.append(("follow", lane, mark))

    def synchronize(self, mark):
        self.told.append(("wait", mark))

    def encoder_stream(self):
        self.told.append(("encoding",))
        return nullcontext()

    def capture_graph(self, call, name):
        self.captures.append(name)
        return call


def doubling(size, bucket):
    """A journey whose answer tells which frames it saw."""
    frames = torch.zeros((bucket, *size, 3), dtype=torch.uint8)

    def call():
        first = frames[:, 0, 0, 0].float()
        return first[:, None] * 2, first[:, None].long(), first[:, None, None, None], frames.permute(0, 3, 1, 2)

    return frames, call


def image(value, size=(4, 6)):
    return np.full((*size, 3), value, np.uint8)


@given(st.integers(1, 300), st.lists(st.integers(1, 64), min_size=1, max_size=5))
def test_split_into_buckets_uses_compiled_sizes_and_loses_no_frame(count, others):
    buckets = sorted({1, *others})
    result = split_into_buckets(count, buckets)
    assert sum(frames for frames, _ in result) == count
    assert all(frames <= bucket and bucket in buckets for frames, bucket in result)
    assert all(frames == bucket for frames, bucket in result[:-1])


def test_buckets_grow_to_the_largest_batch():
    assert buckets_up_to(1) == (1,)
    assert buckets_up_to(6) == (1, 2, 4, 6)
    assert buckets_up_to(64) == (1, 2, 4, 8, 32, 64)


def test_frames_get_their_own_results_whatever_the_bucket_contained():
    flights = BatchPipeline(CpuStreams(), (1, 4), doubling)
    values = [7, 9, 11, 13, 15, 17, 19]
    launched = flights.submit([image(v) for v in values])
    assert [flight.count for flight in launched] == [4, 3]
    assert torch.cat([flight.outputs[0] for flight in launched]).flatten().tolist() == [2.0 * v for v in values]
    images = [image for flight in launched for image in flight.images]
    assert [int(image[0, 0, 0]) for image in images] == values
    assert all(image.untyped_storage().nbytes() == image.nbytes for image in images)


def test_batch_keeps_its_results_when_the_graph_runs_again():
    flights = BatchPipeline(CpuStreams(), (1,), doubling)
    (first,), _, _, _ = (flights.submit([image(v)]) for v in (5, 6, 7, 8))
    assert first.outputs[0].item() == 10.0
    assert int(first.images[0][0, 0, 0]) == 5


def test_graph_is_captured_once_per_size_and_bucket():
    lanes = FakeLanes()
    flights = BatchPipeline(lanes, (1, 2), doubling)
    for _ in range(2):
        for count, size in ((1, (4, 6)), (2, (4, 6)), (1, (8, 6))):
            flights.submit([image(1, size)] * count)
    assert lanes.captures == ["1 frames of 6x4", "2 frames of 6x4", "1 frames of 6x8"]


def test_pipeline_overwrites_no_unread_memory_and_waits_for_nothing_else():
    lanes = FakeLanes()
    flights = BatchPipeline(lanes, (1,), doubling)
    flights.warm_up((4, 6), 1)
    flights._next_slot((4, 6))
    marks = []
    for launch in range(2 * SLOTS):
        lanes.told.clear()
        (flight,) = flights.submit([image(launch)])
        uploaded, consumed, done = (entry[2] for entry in lanes.told if entry[0] == "mark")
        before = marks[launch - SLOTS] if launch >= SLOTS else (None, None, None)
        assert lanes.told == [
            ("wait", before[0]),  # the slot's host memory was uploaded: it may be filled
            ("follow", "copy", before[1]),  # its device memory was consumed: it may be overwritten
            ("on", "copy"), ("mark", "copy", uploaded),
            ("follow", "compute", uploaded),
            ("on", "compute"), ("mark", "compute", consumed),
            ("mark", "compute", done),
        ]  # fmt: skip
        assert flight.done == done
        marks.append((uploaded, consumed, done))


def test_memory_is_made_by_the_lane_that_writes_there_first():
    lanes = FakeLanes()
    BatchPipeline(lanes, (1,), doubling).submit([image(1)])
    assert [entry for entry in lanes.told if entry[0] == "on"] == [
        ("on", "compute"), ("on", "copy"), ("on", "copy"), ("on", "compute"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    network = load_network("squeezenet1_1", weights="random")
    lively(network.module, (64, 64))
    return network


def options(**more):
    return EngineConfig(model="squeezenet1_1", input_size="64x64", cache="off", backend="eager", **more)


def frame(seed, size=(60, 90), camera="a"):
    return Frame(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8), camera, seed, 100.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_gpu_explainer_equals_the_host(network, device, fit):
    frames = [frame(1), frame(2, (48, 48)), frame(3), frame(4), frame(5)]
    host = NetworkExplainer(network, options(device="cpu", fit=fit))
    card = GpuExplainer(network, options(device=device, fit=fit, batch=2), table=TABLE)
    finish = card.submit(frames)
    again = card.submit(frames[:2])
    result = finish()
    for expected, explanation in zip(host.explain(frames), result, strict=True):
        assert isinstance(explanation, RenderedExplanation)
        assert explanation.frame is expected.frame
        assert explanation.region == expected.region
        assert explanation.first.score == pytest.approx(expected.first.score, abs=5e-3)
        if explanation.first.class_index != expected.first.class_index:
            continue  # one level of 255 may decide between two classes nearly alike
        assert np.abs(explanation.first.heat - expected.first.heat).mean() < 0.05
        drawing = HeatRenderer(clock=lambda: 100.02)
        image_wanted = HeatRenderer(clock=lambda: 100.02).render(explanation).image.astype(int)
        jpeg, array = card.download(explanation, drawing.render_legend(explanation), jpeg_quality=90, as_array=True)
        assert np.abs(array.astype(int) - image_wanted).max() <= 2
        assert not array.flags.writeable
        assert jpeg.quality == 90
        assert decode_image(jpeg.payload).shape == array.shape
    assert [explanation.frame.index for explanation in again()] == [1, 2]
    assert card.explain([]) == []


def test_download_copies_only_the_requested_forms(network):
    card = GpuExplainer(network, options(device="cpu"), table=TABLE)
    (explanation,) = card.explain([frame(1)])
    assert card.download(explanation, None, jpeg_quality=None, as_array=False) == (None, None)
    jpeg, array = card.download(explanation, None, jpeg_quality=50, as_array=False)
    assert jpeg.payload[:2] == b"\xff\xd8"
    assert array is None
    (plain,) = NetworkExplainer(network, options(device="cpu")).explain([frame(1)])
    assert card.download(plain, None, jpeg_quality=50, as_array=True) == (None, None)


def test_encode_stream_waits_for_rendering_and_rendering_for_nothing(network):
    lanes = FakeLanes()
    card = GpuExplainer(network, options(device="cpu"), table=TABLE, streams=lambda device: lanes)
    (explanation,) = card.explain([frame(1)])
    lanes.told.clear()
    card.download(explanation, None, jpeg_quality=50, as_array=False)
    assert lanes.told == [("follow", "encode", explanation.drawn.done), ("on", "encode"), ("encoding",)]


@pytest.mark.gpu
def test_gpu_pipeline_is_one_graph_off_the_default_stream(network, caplog):
    card = GpuExplainer(network, options(device="cuda", precision="fp16"), table=TABLE)
    assert len(card.explain([frame(1)])) == 1
    assert "runs call by call" not in caplog.text
    lanes = device_streams(torch.device("cuda", 0))
    with lanes.stream("compute"):
        assert torch.cuda.current_stream() != torch.cuda.default_stream()


@pytest.mark.gpu
@pytest.mark.slow
def test_gpu_memory_is_constant_over_a_thousand_frames(network):
    card = GpuExplainer(network, options(device="cuda", precision="fp16", batch=4), table=TABLE)

    def carry(count):
        for number in range(count):
            for explanation in card.explain([frame(number % 7) for _ in range(1 + number % 4)]):
                card.download(explanation, None, jpeg_quality=80, as_array=True)
        torch.cuda.synchronize()

    carry(50)
    before = torch.cuda.memory_reserved()
    carry(250)
    assert torch.cuda.memory_reserved() <= before + (64 << 20)


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("backend", [
    "tensorrt", pytest.param("inductor", marks=pytest.mark.slow), pytest.param("auto", marks=pytest.mark.slow),
])  # fmt: skip
def test_gpu_backends_agree_with_eager(network, backend):
    from engine.backends.registry import BACKENDS

    if backend in BACKENDS and (lacking := BACKENDS[backend].load().missing("cuda")):
        pytest.skip(lacking)
    config = options(device="cuda", precision="fp16").model_copy(update={"backend": backend})
    card = GpuExplainer(network, config, table=TABLE)
    (expected,) = NetworkExplainer(network, options(device="cpu")).explain([frame(1)])
    (explanation,) = card.explain([frame(1)])
    assert explanation.first.score == pytest.approx(expected.first.score, abs=2e-2)

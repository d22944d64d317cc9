"""Frames on their way over a device: cut to buckets, ordered by marks, told in order; with the host's answers."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.explainers import gpu as gpu_explainer
from engine.explainers.gpu import GpuExplainer, RenderedExplanation
from engine.explainers.network import NetworkExplainer
from engine.gpu import batch_pipeline
from engine.gpu.batch_pipeline import SLOTS, BatchPipeline, buckets_up_to, split_into_buckets
from engine.gpu.streams import CpuStreams, device_streams
from engine.models.loader import load_network
from overlays.render.gpu_tables import heat_lut
from overlays.render.jpeg import decode_image
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig
from pipeline.frames import Frame
from pipeline.input_area import InputArea
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


def doubling(frames, _area):
    """A journey whose answer tells which frames it saw."""

    def call():
        first = frames[:, 0, 0, 0].float()
        return first[:, None] * 2, first[:, None].long(), first[:, None, None, None], frames.permute(0, 3, 1, 2)

    return call


def image(value, size=(4, 6)):
    return np.full((*size, 3), value, np.uint8)


@given(st.integers(1, 300), st.lists(st.integers(1, 64), min_size=1, max_size=5))
def test_split_into_buckets_uses_compiled_sizes_and_loses_no_frame(count, others):
    buckets = tuple(sorted({1, *others}))
    result = split_into_buckets(count, buckets)
    assert sum(frames for frames, _ in result) == count
    assert all(frames <= bucket and bucket in buckets for frames, bucket in result)
    assert all(frames == bucket for frames, bucket in result[:-1])


@pytest.mark.parametrize("most", [6, 32, 96])
def test_split_into_buckets_computes_less_than_twice_the_frames(most):
    buckets = buckets_up_to(most)
    for count in range(1, 2 * most):
        computed = sum(bucket for _, bucket in split_into_buckets(count, buckets))
        assert computed < 2 * count
    assert [bucket for _, bucket in split_into_buckets(33, buckets_up_to(96))] == [32, 1]
    assert split_into_buckets(95, buckets_up_to(96)) == ((95, 96),), "one launch is faster than eight"


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
    assert lanes.captures == ["1 frames of 6x4", "2 frames of 6x4", "1 frames of 6x8", "2 frames of 6x8"]


def test_graphs_of_all_buckets_are_captured_at_the_first_frame_of_a_size():
    lanes = FakeLanes()
    flights = BatchPipeline(lanes, (1, 2, 4), doubling)
    flights.submit([image(1)])
    assert len(lanes.captures) == 3
    lanes.captures.clear()
    flights.submit([image(1)] * 7)
    assert lanes.captures == []


def test_host_memory_of_results_is_reused_after_its_release():
    lanes = FakeLanes()
    flights = BatchPipeline(lanes, (1,), doubling)
    memory = []
    for value in range(5):
        (flight,) = flights.submit([image(value)])
        assert flight.outputs[0].item() == 2.0 * value
        memory.append(flight.memory[0].data_ptr())
        flights.release(flight)
    assert len(set(memory)) == 1


def test_all_frame_sizes_share_one_ring():
    flights = BatchPipeline(CpuStreams(), (1, 2), doubling)
    slots = set()
    for size in ((4, 6), (8, 6), (2, 2)):
        for _ in range(SLOTS):
            flights.submit([image(3, size)] * 2)
            slots.add(id(slot := flights._next_slot(1)))
            assert slot.host.nbytes <= 2 * 8 * 6 * 3
    assert len(slots) == SLOTS


def test_areas_have_graphs_of_their_own_for_one_frame():
    seen = []

    def recording(frames, area):
        seen.append((len(frames), area))
        return doubling(frames, area)

    area = InputArea((0, 0, 2, 2), ((0, 0), (2, 0), (2, 2), (0, 2)))
    flights = BatchPipeline(CpuStreams(), (1, 4), recording)
    flights.submit([image(1)])
    assert [flight.bucket for flight in flights.submit([image(1), image(2)], area)] == [1, 1]
    assert seen == [(1, None), (4, None), (1, area)]


def test_sizes_used_least_recently_are_released(monkeypatch):
    lanes = FakeLanes()
    frame_bytes = 4 * 6 * 3
    monkeypatch.setattr(batch_pipeline, "MAX_GRAPH_BYTES", 4 * frame_bytes)
    flights = BatchPipeline(lanes, (1,), doubling)
    for size in ((4, 6), (6, 4), (4, 6), (3, 8)):
        flights.submit([image(1, size)])
    assert [size for size, _ in flights._sizes] == [(4, 6), (3, 8)]
    flights.submit([image(1, (6, 4))])
    assert lanes.captures.count("1 frames of 4x6") == 2


def test_large_frames_use_the_buckets_that_fit_a_slot(monkeypatch):
    monkeypatch.setattr(batch_pipeline, "MAX_SLOT_BYTES", 5 * 4 * 6 * 3)
    flights = BatchPipeline(CpuStreams(), (1, 2, 4, 8), doubling)
    assert [flight.bucket for flight in flights.submit([image(1)] * 8)] == [4, 4]
    assert [flight.bucket for flight in flights.submit([image(1, (40, 60))])] == [1]


class SmallMemory(FakeLanes):
    """A device on which the graphs of a size with more than ``most`` frames do not fit."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def capture_graph(self, call, name):
        if int(name.split()[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().capture_graph(call, name)


def test_out_of_memory_reduces_the_batches_and_says_so(caplog):
    flights = BatchPipeline(SmallMemory(2), (1, 2, 4, 8), doubling)
    values = [3, 5, 7, 9, 11]
    launched = flights.submit([image(value) for value in values])
    assert {flight.bucket for flight in launched} <= {1, 2}
    assert torch.cat([flight.outputs[0] for flight in launched]).flatten().tolist() == [2.0 * v for v in values]
    assert "no memory for 4 frames of 6x4 at once: batches of at most 2 are used; a smaller --batch" in caplog.text


def test_out_of_memory_releases_other_sizes_first():
    lanes = SmallMemory(8)
    flights = BatchPipeline(lanes, (1, 2), doubling)
    flights.submit([image(1)])
    lanes.most, honest = 1, lanes.capture_graph

    def roomy_once_released(call, name):
        lanes.most = 1 if flights._sizes else 2
        return honest(call, name)

    lanes.capture_graph = roomy_once_released
    assert [flight.bucket for flight in flights.submit([image(1, (8, 6))] * 2)] == [2]
    assert [size for size, _ in flights._sizes] == [(8, 6)]


def test_out_of_memory_for_one_frame_is_raised():
    with pytest.raises(torch.OutOfMemoryError):
        BatchPipeline(SmallMemory(0), (1, 2), doubling).submit([image(1)])


def test_pipeline_overwrites_no_unread_memory_and_waits_for_nothing_else():
    lanes = FakeLanes()
    flights = BatchPipeline(lanes, (1,), doubling)
    flights.prepare((4, 6))
    for _ in range(SLOTS):
        flights._next_slot(4 * 6 * 3)
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
        ("on", "compute"), ("on", "compute"), ("on", "copy"), ("on", "copy"), ("on", "compute"),
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
        jpeg, array = card.download(explanation, drawing.render_patches(explanation), jpeg_quality=90, as_array=True)
        assert np.abs(array.astype(int) - image_wanted).max() <= 2
        assert not array.flags.writeable
        assert jpeg.quality == 90
        assert decode_image(jpeg.payload).shape == array.shape
    assert [explanation.frame.index for explanation in again()] == [1, 2]
    assert card.explain([]) == []


def test_download_copies_only_the_requested_forms(network):
    card = GpuExplainer(network, options(device="cpu"), table=TABLE)
    (explanation,) = card.explain([frame(1)])
    assert card.download(explanation, (), jpeg_quality=None, as_array=False) == (None, None)
    jpeg, array = card.download(explanation, (), jpeg_quality=50, as_array=False)
    assert jpeg.payload[:2] == b"\xff\xd8"
    assert array is None
    (plain,) = NetworkExplainer(network, options(device="cpu")).explain([frame(1)])
    assert card.download(plain, (), jpeg_quality=50, as_array=True) == (None, None)


def test_encode_stream_waits_for_rendering_and_rendering_for_nothing(network):
    lanes = FakeLanes()
    card = GpuExplainer(network, options(device="cpu"), table=TABLE, streams=lambda device: lanes)
    (explanation,) = card.explain([frame(1)])
    lanes.told.clear()
    card.download(explanation, (), jpeg_quality=50, as_array=False)
    assert lanes.told == [("follow", "encode", explanation.drawn.done), ("on", "encode"), ("encoding",)]


def test_jpeg_is_encoded_on_the_host_after_the_encoder_of_the_gpu_failed(network, monkeypatch, caplog):
    lanes, attempts = FakeLanes(), []
    card = GpuExplainer(network, options(device="cpu"), table=TABLE, streams=lambda device: lanes)
    honest = gpu_explainer.encode_jpeg

    def failing(images, quality):
        attempts.append(lanes.told[-1])
        if attempts[-1] == ("encoding",) and len(attempts) == 1:
            raise RuntimeError("nvjpeg: unsupported")
        return honest(images, quality)

    monkeypatch.setattr(gpu_explainer, "encode_jpeg", failing)
    for number in range(3):
        (explanation,) = card.explain([frame(number)])
        jpeg, _ = card.download(explanation, (), jpeg_quality=80, as_array=False)
        assert decode_image(jpeg.payload).shape == (60, 90, 3)
    assert caplog.text.count("JPEG encoder fails (nvjpeg: unsupported); images are encoded on the host") == 1
    assert lanes.told.count(("encoding",)) == 1


def test_results_of_a_batch_are_released_once_they_are_read(network):
    card = GpuExplainer(network, options(device="cpu", batch=2), table=TABLE)
    first = card.explain([frame(1), frame(2)])
    kept = [explanation.first.heat.copy() for explanation in first]
    for number in range(3, 6):
        card.explain([frame(number), frame(number + 1)])
    assert len(card._batches._answers[2]) == 1
    assert all(np.array_equal(e.first.heat, heat) for e, heat in zip(first, kept, strict=True))


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
                card.download(explanation, (), jpeg_quality=80, as_array=True)
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

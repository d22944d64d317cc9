"""Frames on a device: divided into buckets, ordered by events, returned in order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.gpu import batch_pipeline
from engine.gpu.batch_pipeline import SLOTS, BatchPipeline, FrameKind, buckets_up_to, split_into_buckets
from engine.gpu.streams import CpuStreams
from overlays.render.gpu_tables import heat_lut
from pipeline.device_image import YuvColours
from pipeline.input_area import InputArea
from tests.support.gpu_streams import RecordingStreams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TABLE = heat_lut("inferno", 0.6)


def doubling(frames, _kind):
    """A pipeline whose results identify the frames."""

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
    lanes = RecordingStreams()
    flights = BatchPipeline(lanes, (1, 2), doubling)
    for _ in range(2):
        for count, size in ((1, (4, 6)), (2, (4, 6)), (1, (8, 6))):
            flights.submit([image(1, size)] * count)
    assert lanes.captures == ["1 frames of 6x4", "2 frames of 6x4", "1 frames of 6x8", "2 frames of 6x8"]


def test_graphs_of_all_buckets_are_captured_at_the_first_frame_of_a_size():
    lanes = RecordingStreams()
    flights = BatchPipeline(lanes, (1, 2, 4), doubling)
    flights.submit([image(1)])
    assert len(lanes.captures) == 3
    lanes.captures.clear()
    flights.submit([image(1)] * 7)
    assert lanes.captures == []


def test_host_memory_of_results_is_reused_after_its_release():
    lanes = RecordingStreams()
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

    def recording(frames, kind):
        seen.append((len(frames), kind.area))
        return doubling(frames, kind)

    area = InputArea((0, 0, 2, 2), ((0, 0), (2, 0), (2, 2), (0, 2)))
    flights = BatchPipeline(CpuStreams(), (1, 4), recording)
    flights.submit([image(1)])
    assert [flight.bucket for flight in flights.submit([image(1), image(2)], area)] == [1, 1]
    assert seen == [(1, None), (4, None), (1, area)]


def test_sizes_used_least_recently_are_released(monkeypatch):
    lanes = RecordingStreams()
    frame_bytes = 4 * 6 * 3
    monkeypatch.setattr(batch_pipeline, "MAX_GRAPH_BYTES", 4 * frame_bytes)
    flights = BatchPipeline(lanes, (1,), doubling)
    for size in ((4, 6), (6, 4), (4, 6), (3, 8)):
        flights.submit([image(1, size)])
    assert [kind.size for kind in flights._sizes] == [(4, 6), (3, 8)]
    flights.submit([image(1, (6, 4))])
    assert lanes.captures.count("1 frames of 4x6") == 2


def test_graphs_of_decoded_frames_count_their_rgb_images():
    colours = YuvColours(0.299, 0.114, full_range=False)
    captured = BatchPipeline(CpuStreams(), (1, 4), doubling).prepare(FrameKind((4, 6), None, colours))
    assert captured.nbytes == 4 * (6 * 6) + (1 + 4) * (4 * 6 * 3)


def test_large_frames_use_the_buckets_that_fit_a_slot(monkeypatch):
    monkeypatch.setattr(batch_pipeline, "MAX_SLOT_BYTES", 5 * 4 * 6 * 3)
    flights = BatchPipeline(CpuStreams(), (1, 2, 4, 8), doubling)
    assert [flight.bucket for flight in flights.submit([image(1)] * 8)] == [4, 4]
    assert [flight.bucket for flight in flights.submit([image(1, (40, 60))])] == [1]


class SmallMemory(RecordingStreams):
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
    assert "too little memory for 4 frames of 6x4: batches have at most 2 frames; a smaller --batch" in caplog.text


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
    assert [kind.size for kind in flights._sizes] == [(8, 6)]


def test_out_of_memory_for_one_frame_is_raised():
    with pytest.raises(torch.OutOfMemoryError):
        BatchPipeline(SmallMemory(0), (1, 2), doubling).submit([image(1)])


def test_pipeline_overwrites_no_unread_memory_and_waits_for_nothing_else():
    lanes = RecordingStreams()
    flights = BatchPipeline(lanes, (1,), doubling)
    flights.prepare(FrameKind((4, 6)))
    for _ in range(SLOTS):
        flights._next_slot(4 * 6 * 3)
    marks = []
    for launch in range(2 * SLOTS):
        lanes.calls.clear()
        (flight,) = flights.submit([image(launch)])
        uploaded, consumed, done = (entry[2] for entry in lanes.calls if entry[0] == "mark")
        before = marks[launch - SLOTS] if launch >= SLOTS else (None, None, None)
        assert lanes.calls == [
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
    lanes = RecordingStreams()
    BatchPipeline(lanes, (1,), doubling).submit([image(1)])
    assert [entry for entry in lanes.calls if entry[0] == "on"] == [
        ("on", "compute"), ("on", "compute"), ("on", "copy"), ("on", "copy"), ("on", "compute"),
    ]  # fmt: skip

"""The explainer on a device returns the host's results, and copies and encodes only what is requested."""

import numpy as np
import pytest
import torch

from engine.explainers import gpu as gpu_explainer
from engine.explainers.gpu import GpuExplainer, RenderedExplanation
from engine.explainers.network import NetworkExplainer
from engine.gpu.streams import device_streams
from overlays.render.gpu_tables import heat_lut
from overlays.render.jpeg import decode_image
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig
from pipeline.frames import Frame
from tests.support.gpu_streams import RecordingStreams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TABLE = heat_lut("inferno", 0.6)


@pytest.fixture(scope="module")
def network(lively_squeezenet):
    return lively_squeezenet


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
    lanes = RecordingStreams()
    card = GpuExplainer(network, options(device="cpu"), table=TABLE, streams=lambda device: lanes)
    (explanation,) = card.explain([frame(1)])
    lanes.calls.clear()
    card.download(explanation, (), jpeg_quality=50, as_array=False)
    assert lanes.calls == [("follow", "encode", explanation.drawn.done), ("on", "encode"), ("encoding",)]


def test_jpeg_is_encoded_on_the_host_after_the_encoder_of_the_gpu_failed(network, monkeypatch, caplog):
    lanes, attempts = RecordingStreams(), []
    card = GpuExplainer(network, options(device="cpu"), table=TABLE, streams=lambda device: lanes)
    honest = gpu_explainer.encode_jpeg

    def failing(images, quality):
        attempts.append(lanes.calls[-1])
        if attempts[-1] == ("encoding",) and len(attempts) == 1:
            raise RuntimeError("nvjpeg: unsupported")
        return honest(images, quality)

    monkeypatch.setattr(gpu_explainer, "encode_jpeg", failing)
    for number in range(3):
        (explanation,) = card.explain([frame(number)])
        jpeg, _ = card.download(explanation, (), jpeg_quality=80, as_array=False)
        assert decode_image(jpeg.payload).shape == (60, 90, 3)
    assert caplog.text.count("JPEG encoder fails (nvjpeg: unsupported); images are encoded on the host") == 1
    assert lanes.calls.count(("encoding",)) == 1


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

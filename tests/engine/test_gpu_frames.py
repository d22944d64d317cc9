"""Frames that a GPU decoder leaves in device memory: same results as frames from the host, and no download."""

import platform

import av
import numpy as np
import pytest
import torch

from commands.wiring.gpu import GpuRenderer
from engine.explainers.gpu import GpuExplainer
from engine.gpu.decoded import DecodedPlanes, plane_copier
from engine.gpu.image_ops import Nv12ToRgb
from overlays.render.gpu_tables import heat_lut
from overlays.render.renderer import HeatRenderer
from overlays.wire.message import encode
from pipeline.config import EngineConfig
from pipeline.device_image import DeviceImage, YuvColours
from pipeline.fair_queue import FairQueue
from pipeline.frames import Frame, Overlay
from pipeline.queries import RecentFrames
from stream.convert import RgbConverter
from stream.gpu_frames import _LUMA_WEIGHTS, FrameConverter

CPU = torch.device("cpu")
EXACT = 0 if platform.machine() in {"x86_64", "AMD64"} else 2
"""Levels by which the device's colours may differ from those of FFmpeg on this processor."""


def decoded(size=(60, 90), *, seed=0, colorspace=6, color_range=1, layout="nv12"):
    """Return a decoded frame as FFmpeg downloads it from a GPU, with random levels."""
    height, width = size
    rows = np.random.default_rng(seed).integers(0, 256, (height * 3 // 2, width), np.uint8)
    frame = av.VideoFrame.from_ndarray(rows, format="nv12")
    frame.colorspace, frame.color_range = colorspace, color_range
    return frame if layout == "nv12" else frame.reformat(format=layout)


def on_device(**form):
    return FrameConverter(plane_copier(CPU)).convert(decoded(**form))


def frames_of(pixels, camera="a"):
    return [Frame(each, camera, number, 100.0) for number, each in enumerate(pixels)]


@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize("colorspace", sorted(_LUMA_WEIGHTS))
def test_nv12_has_the_colours_of_the_host(colorspace, color_range):
    frame = decoded((64, 256), colorspace=colorspace, color_range=color_range)
    image = FrameConverter(plane_copier(CPU)).convert(frame)
    assert isinstance(image, DeviceImage)
    expected = RgbConverter().convert(frame).astype(int)
    on_gpu = Nv12ToRgb(image.colours)(image.planes.data[None])[0].numpy()
    assert np.abs(on_gpu - expected).max() <= EXACT
    assert np.ptp(expected) == 255
    assert np.array_equal(image.download(), expected)


@pytest.mark.parametrize("size", [(2, 2), (82, 144), (62, 90), (720, 1282)])
def test_nv12_of_any_even_size_has_the_colours_of_the_host(size):
    # At the end of a row that is no multiple of its vectors, FFmpeg uses other arithmetic.
    frame = decoded(size)
    image = FrameConverter(plane_copier(CPU)).convert(frame)
    on_gpu = Nv12ToRgb(image.colours)(image.planes.data[None])[0].numpy().astype(int)
    assert image.shape == (*size, 3)
    assert np.abs(on_gpu - RgbConverter().convert(frame)).max() <= 2


def test_frames_on_the_device_give_the_results_of_frames_from_the_host(lively_squeezenet):
    options = EngineConfig(
        model="squeezenet1_1", input_size="64x64", cache="off", backend="eager", device="cpu", batch=2
    )
    explainer = GpuExplainer(lively_squeezenet, options, table=heat_lut("inferno", 0.6))
    device = [on_device(seed=1), on_device(seed=2), on_device(seed=3, colorspace=1)]
    host = [RgbConverter().convert(decoded(seed=1)), RgbConverter().convert(decoded(seed=2))]
    host.append(RgbConverter().convert(decoded(seed=3, colorspace=1)))
    mixed = [device[0], host[1], device[2], host[2], host[0], device[1]]
    result = explainer.explain(frames_of(mixed))
    assert not any(image.is_downloaded for image in device)
    for ours, theirs in ((result[0], result[4]), (result[5], result[1]), (result[2], result[3])):
        images = [explainer.download(each, (), jpeg_quality=None, as_array=True)[1] for each in (ours, theirs)]
        assert np.abs(images[0].astype(int) - images[1]).max() <= EXACT
        assert ours.first.score == pytest.approx(theirs.first.score, abs=1e-6 if EXACT == 0 else 5e-3)
        if EXACT == 0:
            assert np.array_equal(ours.first.heat, theirs.first.heat)
    assert not any(image.is_downloaded for image in device)


class JpegTaker:
    uri = "test"

    def __init__(self, quality):
        self.accepted_jpeg_quality = quality

    def needs_image(self, camera):
        return True


@pytest.mark.parametrize("quality", [80, None])
def test_delivery_as_jpeg_or_array_downloads_no_frame(lively_squeezenet, quality):
    options = EngineConfig(model="squeezenet1_1", input_size="64x64", cache="off", backend="eager", device="cpu")
    explainer = GpuExplainer(lively_squeezenet, options, table=heat_lut("inferno", 0.6))
    image = on_device()
    [explanation] = explainer.explain(frames_of([image]))
    overlay = GpuRenderer(HeatRenderer(), explainer, [JpegTaker(quality)]).render(explanation)
    jpeg = None if overlay.jpeg is None else overlay.jpeg.payload
    assert (jpeg is None) == (quality is None)
    assert explanation.drawn is not None
    assert overlay.explanation.drawn is None, "a sink that keeps the overlay would keep memory of the GPU"
    assert overlay.explanation.frame is explanation.frame
    encode(overlay, sent_at_unix=1.0, now_monotonic=101.0, jpeg_quality=80, jpeg=jpeg)
    assert not image.is_downloaded


def test_device_frame_reaches_a_consumer_on_the_host_as_an_array():
    image = on_device()
    frame = Frame(image, "a", 0, 1.0)
    assert (frame.height, frame.width) == (60, 90)
    kept = RecentFrames()
    kept.add(frame)
    overlay = Overlay(frame.pixels, None)
    assert not image.is_downloaded
    assert np.array_equal(frame.image, RgbConverter().convert(decoded()))
    assert overlay.image is frame.image
    assert not frame.image.flags.writeable


def test_memory_limits_hold_for_images_that_are_downloaded_while_they_are_kept():
    images = [on_device(seed=seed) for seed in range(8)]
    assert images[0].nbytes == 60 * 90 * 3 // 2 + 60 * 90 * 3
    kept = RecentFrames(max_bytes=2 * images[0].nbytes, clock=lambda: 0.0)
    queue = FairQueue(depth=8, size_of=lambda frame: frame.pixels.nbytes, max_bytes=2 * images[0].nbytes)
    for frame in frames_of(images):
        kept.add(frame)
        assert queue.has_room(frame) == (len(queue) < 2)
        if not queue.has_room(frame):
            queue.take()
        queue.add(frame)
        assert frame.image is images[frame.index].download()
    assert [frame.index for _, frame in kept._recent] == [6, 7]


@pytest.mark.parametrize(
    "form",
    [{"layout": "yuv420p"}, {"layout": "p010le"}, {"layout": "rgb24"}, {"layout": "gray"}],
)
def test_other_formats_are_converted_on_the_host(form):
    image = on_device(**form)
    assert np.array_equal(image, RgbConverter().convert(decoded(**form)))


def test_frames_without_room_on_the_device_are_converted_on_the_host(monkeypatch, caplog):
    converter = FrameConverter(plane_copier(CPU))
    with monkeypatch.context() as full:
        full.setattr(torch, "empty", out_of_memory)
        images = [converter.convert(decoded(seed=seed)) for seed in (1, 2)]
    for seed, image in enumerate(images, start=1):
        assert np.array_equal(image, RgbConverter().convert(decoded(seed=seed)))
    assert caplog.text.count("device_frames: false to use less") == 1
    assert isinstance(converter.convert(decoded()), DeviceImage)


def out_of_memory(*_shape, **_options):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_stretched_pixels_are_converted_on_the_host():
    image = FrameConverter(plane_copier(CPU)).convert(decoded(), aspect=2)
    assert image.shape == (60, 180, 3)


class Plane:
    """A plane as PyAV exports it from a GPU: it refuses a stream."""

    def __init__(self, values):
        self.values = torch.from_numpy(values)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __dlpack__(self, *, stream=None):
        assert stream is None
        return self.values.__dlpack__()


def test_planes_with_padded_rows_are_copied_without_a_stream():
    rows = np.random.default_rng(0).integers(0, 256, (12, 64), np.uint8)
    luma, chroma = rows[:8, :10], rows[8:, :10].reshape(4, 5, 2)
    planes = plane_copier(CPU)(Plane(luma), Plane(chroma))
    expected = np.concatenate([luma, chroma.reshape(4, 10)])
    rows[:] = 0
    assert isinstance(planes, DecodedPlanes)
    assert planes.size == (8, 10)
    assert np.array_equal(planes.download(), expected)


def test_full_range_of_grey_is_kept():
    colours = YuvColours(0.299, 0.114, full_range=True)
    rows = torch.full((1, 3, 2), 128, dtype=torch.uint8)
    for level in (0, 1, 128, 255):
        rows[:, :2] = level
        assert set(Nv12ToRgb(colours)(rows).flatten().tolist()) <= {level, level - 1}

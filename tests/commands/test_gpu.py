"""Frames drawn by the engine reach the sinks as JPEG or as arrays, whichever a sink accepts; on the CPU."""

import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest

from commands.wiring.gpu import GpuRenderer, build_gpu_explainer, make_renderer, renders_on_gpu, warn_of_downloads
from commands.wiring.kinds import load_config
from commands.wiring.run import make_network
from overlays.render.jpeg import decode_image, reusable_jpeg
from overlays.render.renderer import HeatRenderer
from overlays.sinks.settings import ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from pipeline.errors import ConfigError
from pipeline.frames import Frame, Region, SignalLoss
from pipeline.guards.state import GuardState
from pipeline.loop import Pipeline
from pipeline.result import RunLimits
from tests.pipeline.test_loop import FakeSink
from tests.support.fakes import FakeSource


class Taker(FakeSink):
    """Takes JPEG, and keeps what it gets."""

    accepted_jpeg_quality = 80

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.overlays = []

    def put(self, overlay):
        super().put(overlay)
        self.overlays.append(overlay)


class Keeper(Taker):
    accepted_jpeg_quality = None


@pytest.fixture(scope="module")
def config():
    return load_config(
        {}, "test", {"engine": {"model": "line_net", "backend": "eager", "device": "cpu", "cache": "off"}}
    )


@pytest.fixture(scope="module")
def card(config):
    return build_gpu_explainer(config, make_network(config), batch_size=2)


def frame(number=0):
    noise = np.random.default_rng(number).integers(0, 255, (120, 160, 3), np.uint8)
    return Frame(cv2.GaussianBlur(noise, (0, 0), 4), "fake", number, 100.0)


def rendered(card, sinks, number=0):
    renderer = make_renderer(HeatRenderer(clock=lambda: 100.02), card, sinks)
    assert isinstance(renderer, GpuRenderer)
    (explanation,) = card.explain([frame(number)])
    return renderer.render(explanation), HeatRenderer(clock=lambda: 100.02).render(explanation)


def test_gpu_renderer_gives_jpeg_without_an_array_to_sinks_that_accept_it(card):
    result, expected = rendered(card, [Taker()])
    assert result.image is result.explanation.frame.image
    assert result.jpeg.quality == 80
    shown = decode_image(reusable_jpeg(result, 80)).astype(int)
    assert np.abs(shown - expected.image.astype(int)).mean() < 3
    assert reusable_jpeg(result, 90) is None


def test_gpu_renderer_gives_arrays_within_two_levels_to_windows_and_recorders(card):
    result, expected = rendered(card, [Keeper()])
    assert result.jpeg is None
    assert np.abs(result.image.astype(int) - expected.image.astype(int)).max() <= 2


def test_gpu_renderer_makes_only_the_forms_that_sinks_need(card):
    both, expected = rendered(card, [Taker(), Keeper()])
    assert both.jpeg is not None
    assert np.abs(both.image.astype(int) - expected.image.astype(int)).max() <= 2
    nobody, _ = rendered(card, [Taker(looks=False), Keeper(looks=False)])
    assert nobody.jpeg is None
    assert nobody.image is nobody.explanation.frame.image


def test_gpu_renderer_gives_an_array_to_a_sink_of_another_quality(card):
    other = Taker()
    other.accepted_jpeg_quality = 50
    result, _ = rendered(card, [Taker(), Taker(), other])
    assert result.jpeg.quality == 80
    assert result.image is not result.explanation.frame.image


def test_gpu_renderer_draws_a_stale_image_on_the_host(card):
    (explanation,) = card.explain([frame()])
    renderer = GpuRenderer(HeatRenderer(), card, [Taker()])
    assert renderer.render_stale(explanation, SignalLoss(3.0)).signal_loss is not None


def test_gpu_run_gives_every_frame_its_image(card):
    taker, keeper = Taker(), Keeper()
    outcome = Pipeline(
        [(FakeSource(9), "wait")], card, GpuRenderer(HeatRenderer(), card, [taker, keeper]), [taker, keeper],
        limits=RunLimits(batch_size=2), stop=threading.Event(),
    ).run()  # fmt: skip
    assert outcome.explained == 9
    assert taker.got == keeper.got == list(range(9))
    assert all(overlay.jpeg is not None for overlay in taker.overlays)


def test_zeromq_sink_accepts_jpeg_only_at_its_own_size():
    assert ZeroMqSink(ZeroMqSettings(uri="ipc:///tmp/none", quality=70)).accepted_jpeg_quality == 70
    assert ZeroMqSink(ZeroMqSettings(uri="ipc:///tmp/none", scale=0.5)).accepted_jpeg_quality is None


@pytest.mark.parametrize("option", [{"contour": True}, {"hottest_box": True}, {"smoothing_seconds": 0.5}])
def test_renders_on_gpu_is_false_for_options_of_the_host(option):
    assert renders_on_gpu(load_config({}, "test"), "cuda")
    assert not renders_on_gpu(load_config({}, "test"), "cpu")
    assert not renders_on_gpu(load_config({}, "test", {"overlay": option}), "cuda")


DEVICE = {"uri": "rtsp://127.0.0.1:1/live", "device_frames": True}


@pytest.mark.parametrize(
    ("settings", "on_gpu", "reason"),
    [
        ({"sources": [DEVICE]}, True, None),
        ({"sources": [DEVICE | {"device_frames": False}]}, False, None),
        ({"sources": ["line:"]}, False, None),
        ({"sources": ["line:", DEVICE]}, False, "the engine reads images on the host"),
        (
            {"sources": [DEVICE], "models": [{"model": "resnet18"}]},
            True,
            "the network on trial reads images on the host",
        ),
    ],
)
def test_frames_kept_on_the_gpu_for_a_network_on_the_host_are_reported(card, caplog, settings, on_gpu, reason):
    warn_of_downloads(load_config(settings, "test"), card if on_gpu else None)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (reason is not None)
    assert all(reason in message for message in messages)


def test_guards_and_regions_are_drawn_on_the_gpu():
    regions = [{"name": "bin", "polygon": [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]}]
    config = load_config({"guards": {"regions": regions, "rules": [{"name": "jam", "rule": "score > 0.5"}]}}, "test")
    assert config.guards.rules
    assert renders_on_gpu(config, "cuda")


def test_gpu_renderer_draws_regions_and_alarms(card):
    region = Region("bin", ((10.0, 10.0), (150.0, 20.0), (80.0, 110.0)))
    state = GuardState("jam", True, 1.0, "score > 0", 1)
    drawing = HeatRenderer(clock=lambda: 100.02)
    for number in range(2):
        (explanation,) = card.explain([frame(number)])
        explanation = replace(explanation, regions=(region,), guards=(state,))
        result = make_renderer(drawing, card, [Keeper()]).render(explanation)
        expected = HeatRenderer(clock=lambda: 100.02).render(explanation)
        # A rounding of the heat's colours, and one of a line's.
        assert np.abs(result.image.astype(int) - expected.image.astype(int))[:60].max() <= 3
    tiles = [patch for patch in card._tiles if patch.reusable]
    assert len(tiles) == 5, "the outline and the frame's four sides stay on the device"


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1"])
def test_device_names_are_accepted(name):
    assert load_config({}, "test", {"engine": {"device": name}}).engine.device == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA"])
def test_other_device_names_are_refused_with_the_remedy(name):
    with pytest.raises(ConfigError, match="should be auto, cpu, cuda or cuda:N"):
        load_config({}, "test", {"engine": {"device": name}})

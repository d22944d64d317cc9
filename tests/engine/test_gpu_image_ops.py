"""Images on a device equal those of the host: the input within one level, the overlay within two."""

import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from engine.gpu.image_ops import FramePreprocessor, HeatmapBlender, axis_weights, blend_patches, encode_jpeg
from engine.models.preprocess import Preprocessing, fit_geometry
from overlays.render.colormaps import COLORMAPS, palette
from overlays.render.gpu_tables import heat_lut, legend_patch
from overlays.render.heatmap import heat_levels, paint_heat
from overlays.render.renderer import HeatRenderer
from overlays.render.text import TextLine
from pipeline.frames import Box, Explanation, Finding, Frame, Region
from pipeline.guards.state import GuardState

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pixels(height, width, seed=0):
    """Smooth, with edges and noise: what a camera gives, and what rounding shows on."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 7, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + random.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


SIZES = [(720, 1280), (1080, 1920), (97, 61), (224, 224), (100, 300)]
RESIZES = [
    *((fit, size, False) for fit in ("stretch", "letterbox", "crop") for size in SIZES),
    # On a CPU half-precision products are slow: each size but the largest once.
    *(("stretch", size, True) for size in SIZES if size != (1080, 1920)),
    ("letterbox", (97, 61), True), ("crop", (100, 300), True),
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("fit", "size", "by_products"), RESIZES)
def test_gpu_input_equals_the_hosts_within_one_level(fit, size, device, by_products):
    preprocessing = Preprocessing((224, 224), MEAN, STD, fit)
    seeds = (1,) if by_products and device == "cpu" else (1, 2)
    frames = [Frame(pixels(*size, seed), "a", seed, 0.0) for seed in seeds]
    fitter = FramePreprocessor(preprocessing, size, by_products=by_products).to(device)
    stacked = torch.from_numpy(np.stack([frame.image for frame in frames])).to(device)
    expected = preprocessing.pixels(frames).float()
    result = fitter.levels(stacked).cpu()
    assert float((result - expected).abs().max()) <= 1.0
    assert abs(float((result - expected).mean())) < 0.05
    normalised = preprocessing.normalised(preprocessing.pixels(frames))
    steps = (fitter(stacked).cpu() - normalised) * torch.tensor(STD)[:, None, None]
    assert float(steps.abs().max()) <= 1.0 / 255.0 + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    near=st.floats(-300, 300), extent=st.floats(1, 900), cells=st.integers(1, 30), pixels=st.integers(1, 400),
)  # fmt: skip
def test_heat_is_spread_as_the_renderer_spreads_it(near, extent, cells, pixels):
    heat = np.random.default_rng(cells).random((1, cells), np.float32)
    expected = heat_levels(heat, Box(near, 0, near + extent, 1), 1, pixels)[0].astype(float)
    lower, upper, lower_weight, upper_weight = (
        part.numpy() for part in axis_weights(near, near + extent, cells, pixels)
    )
    result = (255.0 * (heat[0, lower] * lower_weight + heat[0, upper] * upper_weight)).round()
    assert np.abs(result - expected).max() <= 1.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize(("size", "grid"), [((180, 320), (7, 7)), ((97, 61), (14, 9)), ((40, 40), (1, 3))])
def test_gpu_overlay_equals_the_renderers_within_two_levels(fit, size, grid, device):
    region = fit_geometry(size, (224, 224), fit).region
    images = np.stack([pixels(*size, seed) for seed in range(2)])
    heat = np.random.default_rng(3).random((2, *grid)).astype(np.float32)
    painter = HeatmapBlender(heat_lut("inferno", 0.6), region, grid, size).to(device)
    result = painter(torch.from_numpy(images).to(device), torch.from_numpy(heat).to(device)).cpu()
    assert result.shape == (2, 3, *size)
    assert result.is_contiguous()
    for n in range(2):
        expected = paint_heat(images[n], heat[n], region, palette("inferno", 0.6)).astype(int)
        assert np.abs(result[n].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


class EmulatedTf32(TorchDispatchMode):
    """Rounds the factors of float32 matrix products to TF32's 10 bits, as tensor cores do."""

    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in {"mm", "bmm", "addmm", "baddbmm"}:
            self.products += 1
            args = tuple(self.rounded(part) if isinstance(part, torch.Tensor) else part for part in args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(tensor):
        bits = tensor.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("opacity", [0.6, 1.0])
def test_gpu_overlay_keeps_its_accuracy_where_products_use_tf32(opacity):
    size, grid, region = (90, 160), (7, 7), Box(0, 0, 160, 90)
    image, heat = pixels(*size), np.random.default_rng(5).random(grid).astype(np.float32)
    painter = HeatmapBlender(heat_lut("inferno", opacity), region, grid, size)
    with EmulatedTf32() as tf32:
        assert float((torch.full((2, 2), 1 / 3) @ torch.eye(2) - 1 / 3).abs().max()) > 1e-5, "the emulation rounds"
        result = painter(torch.from_numpy(image)[None], torch.from_numpy(heat)[None])[0]
    expected = paint_heat(image, heat, region, palette("inferno", opacity)).astype(int)
    assert np.abs(result.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
    assert tf32.products == 1, "only that of the check above"


def test_gpu_overlay_of_heat_beyond_its_range_uses_the_last_level():
    image, region = pixels(8, 8), Box(0, 0, 8, 8)
    painter = HeatmapBlender(heat_lut("inferno", 1.0), region, (2, 2), (8, 8))
    hottest, beyond = (painter(torch.from_numpy(image)[None], torch.full((1, 2, 2), value)) for value in (1.0, 9.0))
    assert torch.equal(hottest, beyond)
    painter.across_lower_weight.mul_(1.01)  # rounding of a device: a sum of weights above 1
    assert torch.equal(painter(torch.from_numpy(image)[None], torch.ones(1, 2, 2)), hottest)


@pytest.mark.parametrize("colormap", COLORMAPS)
@pytest.mark.parametrize("opacity", [0.0, 0.35, 1.0])
def test_gpu_overlay_equals_the_renderers_for_every_colormap(colormap, opacity):
    image, heat = pixels(64, 96), np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    region = Box(0, 0, 96, 64)
    painter = HeatmapBlender(heat_lut(colormap, opacity), region, (6, 8), (64, 96))
    result = (
        painter(torch.from_numpy(image)[None], torch.from_numpy(heat)[None])[0].permute(1, 2, 0).numpy().astype(int)
    )
    assert np.abs(result - paint_heat(image, heat, region, palette(colormap, opacity)).astype(int)).max() <= 2


def test_gpu_overlay_leaves_frames_without_heat_unchanged():
    image = pixels(50, 70)
    painter = HeatmapBlender(heat_lut("turbo", 1.0), Box(10, 10, 40, 40), (3, 3), (50, 70))
    expected = painter(torch.from_numpy(image)[None], torch.zeros(1, 3, 3))
    assert np.array_equal(expected[0].permute(1, 2, 0).numpy(), image)


def test_level_table_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"uint8 \(256, 4\)"):
        HeatmapBlender(np.zeros((256, 3), np.uint8), Box(0, 0, 9, 9), (3, 3), (9, 9))


def explained(image, heat):
    frame = Frame(image, "belt 1", 4, 100.0)
    return Explanation(frame, (Finding("a scratch", 0.93, heat), Finding("a dent", 0.05, heat)), "m", "l")


@pytest.mark.parametrize("size", [(720, 1280), (180, 320), (60, 40)])
def test_heat_and_legend_together_are_the_renderers_within_two_levels(size):
    heat = np.random.default_rng(5).random((7, 7)).astype(np.float32)
    explanation = explained(pixels(*size), heat)
    whole, parts = (HeatRenderer(clock=lambda: 100.02) for _ in range(2))
    expected = whole.render(explanation).image.astype(int)
    painter = HeatmapBlender(heat_lut("inferno", 0.6), explanation.region, (7, 7), size)
    result = painter(torch.from_numpy(explanation.frame.image.copy())[None], torch.from_numpy(heat.copy())[None])[0]
    (stamp,) = parts.render_patches(explanation)
    before = result.clone()
    told_with = blend_patches(result, [(torch.from_numpy(stamp.tile), stamp)])
    assert torch.equal(result, before)
    assert np.abs(told_with.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_legend_patch_is_none_without_legend_or_room():
    explanation = explained(pixels(60, 90), np.zeros((2, 2), np.float32))
    assert HeatRenderer(legend=False).render_patches(explanation) == []
    assert legend_patch(8, 8, [TextLine("words")]) is None


def test_jpeg_says_the_picture():
    image = cv2.GaussianBlur(pixels(120, 160), (0, 0), 3)
    planar = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    first, second = encode_jpeg([planar, planar], 90)
    assert first == second
    result = cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(result.astype(int) - image.astype(int)).mean() < 3
    assert io.BytesIO(first).read(2) == b"\xff\xd8"


@pytest.mark.parametrize("firing", [False, True])
@pytest.mark.parametrize("size", [(180, 320), (61, 97)])
def test_guard_patches_equal_what_the_renderer_draws_within_two_levels(size, firing):
    height, width = size
    regions = (
        Region("bin", ((20.5, 8.0), (0.8 * width, 12.0), (0.7 * width, 0.9 * height))),
        Region("beyond", ((-50.0, -50.0), (width + 50.0, -50.0), (width / 2, height + 90.0))),
    )
    states = (GuardState("jam", firing, 2.0, "heat(bin) 0.7 > 0.5", 1),)
    explanation = explained(pixels(*size), np.random.default_rng(2).random((7, 7)).astype(np.float32))
    explanation = replace(explanation, guards=states, regions=regions)
    plain = replace(explanation, guards=(), regions=())
    expected = HeatRenderer(clock=lambda: 100.02).render(explanation).image.astype(int)
    base = HeatRenderer(clock=lambda: 100.02, legend=False).render(plain).image
    patches = HeatRenderer(clock=lambda: 100.02).render_patches(explanation)
    planar = torch.from_numpy(base.copy()).permute(2, 0, 1)
    stamped = blend_patches(planar, [(torch.from_numpy(patch.tile), patch) for patch in patches])
    found = stamped.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 2
    assert (found != base).any(axis=2).mean() > 0.05
    again = HeatRenderer(clock=lambda: 100.02).render_patches(explanation)
    assert [patch is other for patch, other in zip(patches, again, strict=True)] == [p.reusable for p in patches]

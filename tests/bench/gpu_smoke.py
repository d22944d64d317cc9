"""Runs every part once, at its smallest, to find what does not work on a machine before long measurements."""

from __future__ import annotations

import copy
import importlib.util
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from engine.backends.registry import BACKENDS, first_line
from engine.explainers.gpu import GpuExplainer
from engine.gpu.decoded import decoded_planes, plane_copier
from engine.gpu.image_ops import Nv12ToRgb
from engine.gpu.streams import DeviceStreams, device_streams
from engine.methods.dense import DensePlan
from engine.methods.recipro import Target, plan_for
from engine.models.loader import load_network
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import SplitModel, split_network
from overlays.render.gpu_tables import heat_lut
from overlays.render.jpeg import decode_image
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig
from pipeline.device_image import DeviceImage
from pipeline.frames import Frame
from tests.bench.gpu_clock import Settings
from tests.bench.gpu_frames import clip_of, make_images
from tests.engine.reference import lively

SIZE = (72, 128)


class AbsentError(Exception):
    """A part that is not installed; this is no failure."""


def pieces(settings: Settings) -> dict[str, Callable[[], str]]:
    """Return the checks in order; each returns its result as text, or raises."""
    return {
        "OpenCV text": opencv_text,
        "upload": lambda: upload(settings),
        "graph capture": lambda: capture(settings),
        "a capture that fails": lambda: failed_capture(settings),
        "a graph on its own device": lambda: own_device(settings),
        "frame to overlay and JPEG": lambda: overlay(settings),
        "inner layer, local and dense": lambda: inner(settings),
        "photos and weights": lambda: sent(settings),
        "video": video,
        "decoded frame that stays on the GPU": lambda: device_frame(settings),
        "TensorRT": lambda: compiled("tensorrt", settings),
        "peers": peers,
        "inductor": lambda: compiled("inductor", settings),
    }


def measure(settings: Settings, *, whole: bool = True) -> Iterator[dict[str, object]]:
    """Give one record for each piece. A backend that fails here is not tried again in this run.

    ``whole``: inductor too, which compiles for a while; it has a row of its own in the benchmark.
    """
    for piece, try_it in pieces(settings).items():
        if piece == "inductor" and not whole:
            continue
        started_at, record = time.monotonic(), {"piece": piece}
        try:
            record |= {"state": "ok     ", "told": try_it()}
        except AbsentError as reason:
            record |= {"state": "absent ", "skipped": str(reason)}
        except Exception as reason:  # noqa: BLE001 - each for itself
            record |= {"state": "FAILED ", "error": f"{type(reason).__name__}: {first_line(reason)}"}
        if record["state"] != "ok     " and piece in {"TensorRT", "inductor"}:
            settings.without[piece.lower()] = f"smoke check: {record.get('error') or record.get('skipped')}"
        yield {**record, "seconds": round(time.monotonic() - started_at, 2)}


def need(holds: object, what: str) -> None:
    """Raise if a condition is false."""
    if not holds:
        raise AssertionError(what)


def given_up(lanes: DeviceStreams) -> int:
    """Return the number of failed captures on these streams."""
    return len(lanes.failed_captures)


def opencv_text() -> str:
    """The legend's font, which OpenCV has from version 5 on."""
    need(hasattr(cv2, "FontFace"), f"OpenCV {cv2.__version__} has no FontFace: send opencv-python-headless 5 along")
    tile = np.zeros((24, 64), np.uint8)
    cv2.putText(tile, "text", (0, 18), (255,), cv2.FontFace("sans"), 16, 500, 0, (0, 1 << 20))
    need(tile.any(), f"OpenCV {cv2.__version__} draws no text: its fonts are missing")
    return f"OpenCV {cv2.__version__}"


def own_device(settings: Settings) -> str:
    """A capture leaves the current device as it was, and opens no other."""
    if settings.device.type != "cuda":
        return "a CPU has one device"
    before, others = torch.cuda.current_device(), range(torch.cuda.device_count())
    lanes = device_streams(settings.device)
    with torch.inference_mode(), lanes.stream("compute"):
        value = torch.ones(4, device=settings.device)
        lanes.capture_graph(lambda: (value + 1,), "on its own device")
    need(torch.cuda.current_device() == before, "the current device is another one")
    reserved = [number for number in others if torch.cuda.memory_reserved(number)]
    need(reserved == [settings.device.index], f"memory is reserved on {reserved}")
    return f"{settings.device} only, of {len(others)}"


def upload(settings: Settings) -> str:
    """Uploads pinned memory on one stream and downloads on another."""
    lanes = device_streams(settings.device)
    host = lanes.pinned_empty((1 << 20,), torch.uint8)
    host.copy_(torch.randint(0, 256, host.shape, dtype=torch.uint8))
    with lanes.stream("copy"):
        there = host.to(settings.device, non_blocking=True)
    lanes.wait_event("compute", lanes.record_event("copy"))
    with lanes.stream("compute"):
        back = lanes.pinned_empty(tuple(host.shape), torch.uint8).copy_(there, non_blocking=True)
        lanes.synchronize(lanes.record_event("compute"))
    need(torch.equal(back, host), "what came back is not what went up")
    return f"{host.numel() >> 10} KiB there and back, pinned: {host.is_pinned()}"


def capture(settings: Settings) -> str:
    """A convolution as a graph computes the current content of its input."""
    lanes = device_streams(settings.device)
    with torch.inference_mode(), lanes.stream("compute"):
        layer = nn.Conv2d(3, 8, 3).to(settings.device, settings.dtype).to(memory_format=torch.channels_last)
        images = torch.zeros((2, 3, 16, 16), device=settings.device, dtype=settings.dtype)
        run = lanes.capture_graph(lambda: (layer(images),), "a convolution")
        images.normal_()
        (answer,) = run()
        error = float((answer - layer(images)).abs().max())
        lanes.synchronize(lanes.record_event("compute"))
    need(not given_up(lanes), "the capture failed")
    need(error < 1e-2, f"its replay differs by {error:.3g}")
    return f"replay differs from a call by {error:.1e}"


def failed_capture(settings: Settings) -> str:
    """A call that synchronises with the host runs call by call, and the next capture works."""
    lanes = device_streams(settings.device)
    with torch.inference_mode():
        with lanes.stream("compute"):
            value = torch.ones(4, device=settings.device)
        run = lanes.capture_graph(lambda: (value * float(value.sum().item()),), "one that asks")
        with lanes.stream("compute"):
            need(float(run()[0].sum()) == 16.0, "it tells something else")
        again = lanes.capture_graph(lambda: (value + 1,), "one that does not")
        with lanes.stream("compute"):
            need(float(again()[0].sum()) == 8.0, "the next one tells something else")
    expected = int(settings.device.type == "cuda")
    need(given_up(lanes) == expected, f"{given_up(lanes)} captures failed, not {expected}")
    return f"{given_up(lanes)} given up, the next one fine"


def overlay(settings: Settings) -> str:
    """Frames through two explainers: the renderer's picture within two levels, and a JPEG that shows it."""
    told_by = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = load_network("squeezenet1_1", weights="random")
        lively(network.module, (64, 64))
        config = EngineConfig(
            model="squeezenet1_1", input_size=(64, 64), cache="off", backend="eager", device=str(settings.device),
            precision=settings.precision, batch=2,
        )  # fmt: skip
        told_by.append(GpuExplainer(network, config, table=heat_lut("inferno", 0.6)))
    worst = 0.0
    for number, image in enumerate(make_images(SIZE)):
        card, drawing = told_by[number % 2], HeatRenderer(clock=lambda: 0.02)
        (explanation,) = card.explain([Frame(image, "smoke", number, 0.0)])
        expected = HeatRenderer(clock=lambda: 0.02).render(explanation).image.astype(int)
        jpeg, array = card.download(explanation, drawing.render_patches(explanation), jpeg_quality=95, as_array=True)
        assert jpeg is not None
        assert array is not None
        levels = int(np.abs(array.astype(int) - expected).max())
        need(levels <= 2, f"the overlay is {levels} levels off")
        worst = max(worst, float(np.abs(decode_image(jpeg.payload).astype(int) - array).mean()))
    need(worst < 12.0, f"the JPEG is {worst:.1f} levels off in the mean: it shows something else")
    failed = sum(given_up(card._streams) for card in told_by)
    need(not failed, f"{failed} graphs could not be captured")
    return f"{len(jpeg.payload)} bytes, {worst:.1f} levels off in the mean"


def small_net() -> SplitModel:
    """A few convolutions, cut after the first."""
    torch.manual_seed(2)
    body: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        body += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    return split_network(net, "1", (24, 24))


def inner(settings: Settings) -> str:
    """Computing windows and the definition say the same there as on the host, both captured."""
    split = small_net()
    with torch.inference_mode():
        features = split.head(torch.randn(1, 3, 24, 24))
    plans = [plan_for(split, features, "point", 1 << 28), DensePlan(split.tail, "point", "smoke", 1 << 28)]
    lanes = device_streams(settings.device)
    for plan in plans:
        with torch.inference_mode():
            expected = plan(features)[1]
            there, placed = features.to(settings.device), copy.deepcopy(plan).to(settings.device)
            if settings.device.type == "cuda":
                torch.cuda.synchronize()
            run = lanes.capture_graph(lambda placed=placed, there=there: placed(there), plan.info.name)
            with lanes.stream("compute"):
                error = float((run()[1].cpu() - expected).abs().max())
        need(error <= 1e-2 * float(expected.abs().max()), f"the {plan.info.name} plan differs by {error:.3g}")
    need(not given_up(lanes), f"{given_up(lanes)} of two plans could not be captured")
    return " and ".join(plan.info.name for plan in plans)


def compiled(backend: str, settings: Settings) -> str:
    """A backend compiles a small network and passes its own comparison."""
    if lacking := BACKENDS[backend].load().missing(settings.device.type):
        raise AbsentError(lacking)
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    split = split_network(lively(net, (32, 32)), "3", (32, 32))
    runner = Runner(split, CompileConfig(Target(), "point", backend, settings.precision, settings.device, 1 << 28))
    return f"{backend} in {settings.precision}, {runner.plan.info.name} plan"


def sent(settings: Settings) -> str:
    """Return the input of the agreement."""
    if settings.photos is None or settings.weights is None:
        raise AbsentError("no photos or weights: give --photos FILE.npz and --weights FOLDER")
    names = sorted(path.name for path in Path(settings.weights).glob("*.pt"))
    return f"{len(np.load(settings.photos)['images'])} photos, {', '.join(names) or 'no weights'}"


def video() -> str:
    """A clip is written as the cameras of the benchmark decode it."""
    if importlib.util.find_spec("av") is None:
        raise AbsentError("PyAV is not here")
    return f"{len(clip_of(make_images(SIZE, 2), 4))} bytes of H.264"


def device_frame(settings: Settings) -> str:
    """A frame that NVDEC leaves in the GPU's memory has the colours of the CPU's decoder."""
    import av

    from stream.cuda_context import primary_context
    from stream.gpu_frames import FrameConverter
    from stream.hwaccel import HardwareDecoderUnavailableError, cuda_hwaccel

    clip = clip_of(make_images((240, 320)), 4)
    with av.open(io.BytesIO(clip)) as container:
        expected = FrameConverter().convert(next(container.decode(video=0)))
    try:
        accelerated = cuda_hwaccel(0, keep_frames=True)
    except HardwareDecoderUnavailableError as reason:
        raise AbsentError(str(reason)) from None
    with primary_context(0), av.open(io.BytesIO(clip), hwaccel=accelerated) as container:
        frame = next(container.decode(video=0))
        image = FrameConverter(plane_copier(settings.device)).convert(frame)
    need(isinstance(image, DeviceImage), f"the decoder gives {frame.format.name}, not a frame on the GPU")
    rows = decoded_planes(image)[None]
    levels = Nv12ToRgb(image.colours)(rows)[0].cpu().numpy()
    off = int(np.abs(levels.astype(int) - expected).max())
    need(off <= 2, f"{off} levels off the CPU's decoder")
    need(np.abs(image.download().astype(int) - expected).max() <= 1, "downloaded, it is another image")
    return f"stays on {rows.device}, {off} levels off the CPU's decoder"


def peers() -> str:
    """Comparable packages run."""
    lacking = [name for name in ("pytorch_grad_cam", "torchcam") if importlib.util.find_spec(name) is None]
    if lacking:
        raise AbsentError(f"not here: {', '.join(lacking)}")
    return "grad-cam and torch-cam"

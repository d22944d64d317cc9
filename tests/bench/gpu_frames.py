"""Frames in host memory to overlay JPEG in host memory: latency, full load, the share of each stage, and cameras."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
import torch

from commands.wiring.gpu import GpuRenderer
from engine.backends.registry import first_line
from engine.explainers.gpu import GpuExplainer
from engine.gpu.batch_pipeline import kind_of
from engine.gpu.decoded import plane_copier
from engine.gpu.image_ops import FramePreprocessor, HeatmapBlender, blend_patches, encode_jpeg
from engine.models.loader import load_network
from overlays.render.gpu_tables import heat_lut
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig
from pipeline.errors import BackendError
from pipeline.frames import Frame, Image
from pipeline.loop import Pipeline
from pipeline.ports import Health, Sink, Source
from pipeline.result import RunLimits
from pipeline.workers.queue import QueueWorker
from tests.bench.figures import quantiles
from tests.bench.gpu_clock import Settings, settle

QUALITY = 80
TABLE = heat_lut("inferno", 0.6)


def make_images(size: tuple[int, int], count: int = 6) -> list[Image]:
    """Return different pictures that compress as a camera's do: soft shapes and a little noise."""
    random = np.random.default_rng(3)
    results = []
    for _ in range(count):
        coarse = random.integers(0, 256, (9, 16, 3), np.uint8)
        smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        results.append(np.clip(smooth + random.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8))
    return results


def explainer(settings: Settings, batch: int) -> GpuExplainer:
    """Return the fastest way that is here: TensorRT where it runs, else eager in half precision."""
    model, size = ("squeezenet1_1", (64, 64)) if settings.small else ("resnet50", None)
    options: dict[str, Any] = {"model": model, "device": str(settings.device), "precision": settings.precision}
    options["cache"] = str(settings.cache.folder)
    if size:
        options["input_size"] = size
    torch.manual_seed(0)
    network = load_network(model, weights="random")
    for backend in ("tensorrt", "eager"):
        if settings.lacking(backend):
            continue
        try:
            return GpuExplainer(network, EngineConfig(**options, backend=backend, batch=batch), table=TABLE)
        except Exception as reason:  # noqa: BLE001 - the next one may do
            settings.without[backend] = f"it did not run before: {type(reason).__name__}: {first_line(reason)}"
    raise BackendError(f"neither TensorRT nor eager runs here: {settings.without}")


def measure(settings: Settings) -> Iterator[dict[str, object]]:
    """Give the records of both frame sizes: one at a time, and at full load."""
    sizes = {"tiny": (72, 128)} if settings.small else {"720p": (720, 1280), "1080p": (1080, 1920)}
    batch = 2 if settings.small else 8
    card = explainer(settings, batch)
    about = {"backend": card.info.backend, "precision": card.info.precision, "model": card.info.model}
    for name, size in sizes.items():
        frames = [Frame(image, "bench", number, 0.0) for number, image in enumerate(make_images(size))]
        try:
            yield {**about, "frames": name, "batch": 1, **_one_at_a_time(card, frames, settings)}
            yield {**about, "frames": name, "batch": batch, "full_load": _full_load(card, frames, settings, batch)}
            yield {**about, "frames": name, "batch": 1, "stages_ms": _stages(card, frames, settings)}
        except Exception as reason:  # noqa: BLE001 - one size must not cost the other
            yield {**about, "frames": name, "error": f"{type(reason).__name__}: {first_line(reason)}"}


def _one_at_a_time(card: GpuExplainer, frames: list[Frame], settings: Settings) -> dict[str, object]:
    drawing, durations, size = HeatRenderer(), [], 0
    for number in range(12 if settings.small else 320):
        started_at = time.perf_counter()
        (explanation,) = card.explain([frames[number % len(frames)]])
        jpeg, _ = card.download(explanation, drawing.render_patches(explanation), jpeg_quality=QUALITY, as_array=False)
        durations.append(time.perf_counter() - started_at)
        size = 0 if jpeg is None else len(jpeg.payload)
    return {**quantiles(durations[4 if settings.small else 20 :]), "jpeg_bytes": size}


def _full_load(card: GpuExplainer, frames: list[Frame], settings: Settings, batch: int) -> dict[str, object]:
    """Carry batches as the pipeline does: one thread begins, one finishes, one stamps and encodes."""
    drawing, delivered = HeatRenderer(), 0

    def draw(explanation: Any) -> None:
        nonlocal delivered
        legend = drawing.render_patches(explanation)
        delivered += card.download(explanation, legend, jpeg_quality=QUALITY, as_array=False)[0] is not None

    def carried(seconds: float) -> float:
        started_at, number = time.perf_counter(), 0
        with (
            QueueWorker("encode", draw, depth=4 * batch) as encode,
            QueueWorker("finish", _hand_to(encode), depth=1) as finish,
        ):
            while time.perf_counter() < started_at + seconds:
                group = [frames[(number + k) % len(frames)] for k in range(batch)]
                finish.put(card.submit(group), "wait")
                number += batch
        if error := encode.error or finish.error:
            raise error
        return time.perf_counter() - started_at

    carried(0.1 if settings.small else 1.0)
    delivered = 0
    durations = carried(0.3 if settings.small else 4.0)
    return {"frames_per_second": round(delivered / durations, 1), "frames": delivered}


def _hand_to(encode: QueueWorker[Any]) -> Any:
    def finish(call: Any) -> None:
        for explanation in call():
            encode.put(explanation, "wait")

    return finish


def _stages(card: GpuExplainer, frames: list[Frame], settings: Settings) -> dict[str, float]:
    """Time each stage by itself, from an idle device to an idle device; together they overlap."""
    frame = frames[0]
    journey = card._batches.prepare(kind_of(frame.pixels))
    part = journey.frames[:1]
    slot = card._batches._next_slot(part.nbytes)
    (explanation,) = card.explain([frame])
    drawing = HeatRenderer()
    (stamp,) = drawing.render_patches(explanation)
    tile = torch.from_numpy(stamp.tile).to(settings.device)
    image = explanation.drawn.image

    def encode(image: torch.Tensor) -> None:
        with card._streams.encoder_stream():
            encode_jpeg([image], QUALITY)

    region, fit = explanation.region, card._preprocessing
    size, by_products = (frame.height, frame.width), settings.device.type == "cuda"
    resize = FramePreprocessor(fit, size, by_products=by_products).to(settings.device)
    paint = HeatmapBlender(TABLE, region, card.info.grid, (frame.height, frame.width)).to(settings.device)
    with torch.inference_mode(), card._streams.stream("compute"):
        answers = journey.graphs[1]()[:3]  # before the clock: only their way to the host is timed
    stages = {
        "fill pinned memory": lambda: np.copyto(slot.host[: part.nbytes].view(part.shape).numpy()[0], frame.image),
        "upload": lambda: slot.device[: part.nbytes].copy_(slot.host[: part.nbytes], non_blocking=True),
        "graph: preprocess, network, explanation, heat, blend": journey.graphs[1],
        "of that, resize and normalise, call by call": lambda: resize(part),
        "of that, paint, call by call": lambda: paint(part, answers[2][:, 0]),
        "answers to host": lambda: [answer.cpu() for answer in answers],
        "legend on the host": lambda: drawing.render_patches(explanation),
        "stamp": lambda: blend_patches(image, [(tile, stamp)]),
        "JPEG and its way to the host": lambda: encode(image),
    }
    told_ms = {}
    with torch.inference_mode(), card._streams.stream("compute"):
        for name, call in stages.items():
            durations = []
            for _ in range(6 if settings.small else 60):
                settle(settings.device)
                started_at = time.perf_counter()
                call()
                settle(settings.device)
                durations.append(time.perf_counter() - started_at)
            told_ms[name] = quantiles(durations[2:])["p50_ms"]
    return told_ms


Decode = bool | str
DECODES: tuple[Decode, ...] = (False, True, "cuda", "cuda, kept")
"""Not; by the CPU; by the GPU, frames downloaded; by the GPU, frames stay in its memory."""


class PacedSource(Source):
    """A camera of 30 frames a second: prepared pictures, or a clip that is decoded again and again."""

    live, rate = True, 30.0

    def __init__(
        self, camera: str, images: list[Image] | None, clip: bytes | None, seconds: float, *, decode: Decode = False
    ) -> None:
        self.camera = self.uri = camera
        self.health = Health("live")
        self.late = 0
        self._images, self._clip, self._seconds, self._decode = images, clip, seconds, decode

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        started_at = time.monotonic() + (hash(self.camera) % 30) / 900
        for number, image in enumerate(self._pictures()):
            due = started_at + number / 30.0
            if due - started_at > self._seconds or stop.wait(max(0.0, due - time.monotonic())):
                return
            self.late += time.monotonic() - due > 1 / 30
            yield Frame(image() if callable(image) else image, self.camera, number, time.monotonic())

    def _pictures(self) -> Iterator[Any]:
        if self._clip is None:
            while True:
                yield from self._images or []
        import av

        from stream.cuda_context import primary_context
        from stream.gpu_frames import FrameConverter
        from stream.hwaccel import cuda_hwaccel

        keep, on_gpu = self._decode == "cuda, kept", self._decode not in {False, True}
        rgb = FrameConverter(plane_copier(torch.device("cuda", 0)) if keep else None)
        accelerated = cuda_hwaccel(0, keep_frames=keep) if on_gpu else None
        with primary_context(0) if on_gpu else nullcontext():
            opened = av.open(io.BytesIO(self._clip), hwaccel=accelerated)
        with opened as container:
            while True:
                for image in container.decode(video=0):
                    yield lambda image=image: rgb.convert(image)
                container.seek(0)


class Viewer(Sink):
    """A sink that takes JPEG and notes how old each frame is."""

    uri, lossless, accepted_jpeg_quality = "viewer", True, QUALITY

    def __init__(self) -> None:
        self.ages: list[float] = []
        self.bytes = 0

    def needs_image(self, camera: str) -> bool:
        return True

    def put(self, overlay: Any) -> None:
        self.ages.append(overlay.explanation.frame.age_seconds())
        self.bytes += len(overlay.jpeg.payload)


def clip_of(images: list[Image], frames: int) -> bytes:
    """Return an H.264 clip of a camera's kind."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "bf": "0", "g": "30"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            image = np.roll(images[number // 30 % len(images)], 4 * (number % 30), axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return target.getvalue()


def cameras(settings: Settings, deadline: float) -> Iterator[dict[str, object]]:
    """Give, for prepared frames and for decoded ones, how many cameras keep their p99 age below 100 ms."""
    size = (72, 128) if settings.small else (720, 1280)
    images = make_images(size)
    batch = 2 if settings.small else 32
    card = explainer(settings, batch)
    warm = card.explain([Frame(images[0], "warm", 0, 0.0)])
    card.download(warm[0], (), jpeg_quality=QUALITY, as_array=False)
    for decoded in DECODES:
        case = {"cameras_of": "720p30" if not settings.small else "tiny", "decode": decoded, "batch": batch}
        try:
            clip = clip_of(images, 60) if decoded else None
            if decoded not in {False, True}:
                _check_card(clip, keep=decoded == "cuda, kept")
        except Exception as reason:  # noqa: BLE001 - PyAV may be missing there
            yield {**case, "skipped": f"{type(reason).__name__}: {first_line(reason)}"}
            continue
        tried: dict[int, dict[str, object]] = {}
        for count in (1, 2) if settings.small else (8, 16, 24, 32, 48, 64, 96):
            if time.monotonic() > deadline:
                break
            tried[count] = _carried(card, images, clip, count, settings, batch, decode=decoded)
            if not tried[count]["held"]:
                break
        if not tried:
            yield {**case, "skipped": "out of time"}
            continue
        held = [count for count, result in tried.items() if result["held"]]
        yield {**case, "cameras": max(held, default=0), "tried": {str(count): r for count, r in tried.items()}}


def _check_card(clip: bytes, *, keep: bool) -> None:
    """Check that frames were decoded on the GPU and not on the CPU."""
    import av

    from stream.cuda_context import primary_context
    from stream.hwaccel import HardwareDecoderUnavailableError, cuda_hwaccel

    accelerated = cuda_hwaccel(0, keep_frames=keep)
    with primary_context(0), av.open(io.BytesIO(clip), hwaccel=accelerated) as container:
        next(container.decode(video=0))
        if container.streams.video[0].codec_context.pix_fmt != "cuda":
            raise HardwareDecoderUnavailableError(
                "the card does not take H.264; in a container its driver's video part may be missing"
            )


def _carried(
    card: GpuExplainer, images: list[Image], clip: bytes | None, count: int, settings: Settings, batch: int, *,
    decode: Decode = False,
) -> dict[str, object]:  # fmt: skip
    seconds, viewer = (0.6 if settings.small else 5.0), Viewer()
    sources = [PacedSource(f"camera {k}", images, clip, seconds, decode=decode) for k in range(count)]
    limits = RunLimits(batch_size=batch, batch_window_seconds=0.004, queue_frames=2, sink_queue_frames=64)
    outcome = Pipeline(
        [(source, "drop-oldest") for source in sources], card, GpuRenderer(HeatRenderer(), card, [viewer]), [viewer],
        limits=limits, stop=threading.Event(),
    ).run()  # fmt: skip
    settled = viewer.ages[len(viewer.ages) // 5 :] or [float("inf")]
    ages = quantiles(settled)
    lost = outcome.received - len(viewer.ages)
    late = sum(source.late for source in sources)
    expected = count * 30 * seconds
    held = ages["p99_ms"] < 100 and lost <= 0.01 * max(outcome.received, 1) and outcome.received >= 0.97 * expected
    return {"held": bool(held), "age": ages, "taken": outcome.received, "lost": lost, "late": late,
            "frames_per_second": round(len(viewer.ages) / seconds, 1), "errors": outcome.errors[:3]}  # fmt: skip

"""The explainer that also renders frames on the GPU.

Frames are uploaded as uint8; preprocessing, network, explanation and blending run on the GPU. Only the heat maps on the
layer's grid and the JPEG image are downloaded. A ``RenderedExplanation`` has its image in device memory; ``download``
returns it as JPEG or array.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.backends.registry import first_line
from engine.explainers.network import NetworkExplainer
from engine.gpu.batch_pipeline import BatchPipeline, FrameKind, InFlightBatch, buckets_up_to, kind_of
from engine.gpu.image_ops import FramePreprocessor, HeatmapBlender, LevelTable, Nv12ToRgb, blend_patches, encode_jpeg
from engine.gpu.jpeg import open_encoder
from engine.gpu.streams import DeviceStreams, Outputs, device_streams
from engine.models.loader import LoadedModel
from pipeline.config import EngineConfig
from pipeline.frames import Explanation, Finding, Frame, Image, Jpeg
from pipeline.image_patch import ImagePatch
from pipeline.ports import MaskingOptions

log = logging.getLogger(__name__)

_MAX_TILE_BYTES = 256 << 20
"""Maximum memory of cached tiles on the device, in bytes: outlines of regions."""


class DeviceImage(NamedTuple):
    """A rendered image in device memory."""

    image: Tensor
    """The rendered image, uint8 (3, H, W)."""
    done: object
    """Event recorded after the rendering."""


@dataclass(frozen=True, slots=True, eq=False)
class RenderedExplanation(Explanation):
    """An explanation with its rendered image in device memory."""

    drawn: DeviceImage | None = None


class GpuExplainer(NetworkExplainer):
    """Explains and renders frames on one device without intermediate downloads.

    ``submit`` starts a batch and returns; ``explain`` waits for it. ``download`` may be called from another thread.
    """

    asynchronous = True

    def __init__(
        self,
        network: LoadedModel,
        config: EngineConfig,
        *,
        table: LevelTable,
        together: int = 1,
        streams: Callable[[torch.device], DeviceStreams] = device_streams,
    ) -> None:
        """Compile the network for every batch size; CUDA graphs are captured at the first frame of each frame size.

        Args:
            network: the model.
            config: the engine's settings.
            table: lookup table of the heat map's colours and weights by level.
            together: largest number of frames per batch; ``config.batch`` has priority.
            streams: returns the CUDA streams of a device.
        """
        buckets = buckets_up_to(config.batch or together)
        super().__init__(network, config, batch_size=buckets[-1], batch_sizes=buckets)
        self._heat_lut = table
        self._streams = streams(self._runner.config.device)
        self._batches = BatchPipeline(self._streams, buckets, self._to_capture)
        self._encodes_on_device = True
        self._jpeg_encoder = open_encoder(self._streams.device)
        self._tiles: dict[ImagePatch, Tensor] = {}
        """Tiles of reusable patches on the device, in order of last use."""
        # Held while the network is used: one thread submits batches, another runs deletion checks.
        self._network_lock = threading.Lock()

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Explanation]]:
        """Start a batch; the returned function waits for it and returns one explanation per frame, in order."""
        started_at = time.perf_counter()
        alike: dict[FrameKind, list[int]] = {}
        for number, frame in enumerate(frames):
            alike.setdefault(kind_of(frame.pixels, frame.area), []).append(number)
        with torch.inference_mode(), self._network_lock:
            submitted = [
                (numbers, self._batches.submit([frames[number].pixels for number in numbers], kind.area))
                for kind, numbers in alike.items()
            ]
        launched = time.perf_counter() - started_at

        def finish() -> list[Explanation]:
            explanations: dict[int, Explanation] = {}
            for numbers, batches in submitted:
                remaining = iter(numbers)
                for batch in batches:
                    self._streams.synchronize(batch.done)
                    timings = {"preprocess": launched, "explain": time.perf_counter() - started_at - launched}
                    for index in range(batch.count):
                        number = next(remaining)
                        explanations[number] = self._explanation(frames[number], batch, index, timings)
                    self._batches.release(batch)
            return [explanations[number] for number in range(len(frames))]

        return finish

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Return one explanation per frame, in order; frames may have different sizes and cameras."""
        return self.submit(frames)()

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the softmax score of the finding's class after masking the hottest area of the frame."""
        with torch.inference_mode(), self._network_lock, self._streams.stream("compute"):
            return super().score_when_masked(explanation, finding, masking)

    def download(
        self, explanation: Explanation, patches: Sequence[ImagePatch], *, jpeg_quality: int | None, as_array: bool
    ) -> tuple[Jpeg | None, Image | None]:
        """Download a rendered image as JPEG, as an array, or both.

        Args:
            explanation: the explanation.
            patches: image patches to blend onto the image first, in order, such as text.
            jpeg_quality: quality of the JPEG image; None = no JPEG image.
            as_array: whether to return an array, uint8 (H, W, 3).

        Returns:
            The JPEG image and the array; both None if the explanation has no image in device memory.
        """
        drawn = explanation.drawn if isinstance(explanation, RenderedExplanation) else None
        if drawn is None:
            return None, None
        streams = self._streams
        jpeg = image = None
        streams.wait_event("encode", drawn.done)
        with torch.inference_mode(), streams.stream("encode"):
            rendered = drawn.image
            streams.record_stream(rendered, "encode")
            if patches:
                rendered = blend_patches(rendered, [(self._tile(patch), patch) for patch in patches])
            if jpeg_quality is not None:
                jpeg = Jpeg(self._encode(rendered, jpeg_quality), jpeg_quality)
            if as_array:
                rows = rendered.permute(1, 2, 0).contiguous()
                host = streams.pinned_empty(tuple(rows.shape), torch.uint8).copy_(rows, non_blocking=True)
                streams.synchronize(streams.record_event("encode"))
                image = host.numpy()
                image.flags.writeable = False
        return jpeg, image

    def _tile(self, patch: ImagePatch) -> Tensor:
        """Return a patch's tile on the device; tiles of reusable patches are cached there."""
        tile = self._tiles.pop(patch, None)
        if tile is None:
            pixels = torch.from_numpy(patch.tile)
            host = self._streams.pinned_empty(tuple(pixels.shape), torch.uint8).copy_(pixels)
            tile = host.to(self._streams.device, non_blocking=True)
        if patch.reusable:
            self._tiles[patch] = tile
            while sum(other.nbytes for other in self._tiles.values()) > _MAX_TILE_BYTES and len(self._tiles) > 1:
                del self._tiles[next(iter(self._tiles))]
        return tile

    def _encode(self, image: Tensor, quality: int) -> bytes:
        """Encode an image (3, H, W) on the device; on the host after the device's encoder failed."""
        if self._encodes_on_device:
            try:
                with self._streams.encoder_stream():
                    if self._jpeg_encoder is not None:
                        return self._jpeg_encoder.encode([image.contiguous()], quality)[0]
                    return encode_jpeg([image], quality)[0]
            except RuntimeError as reason:  # both libraries raise nothing more specific
                log.warning("the GPU's JPEG encoder fails (%s); images are encoded on the host", first_line(reason))
                self._encodes_on_device = False
        return encode_jpeg([image.cpu()], quality)[0]

    def _to_capture(self, frames: Tensor, kind: FrameKind) -> Callable[[], Outputs]:
        """Return the function of one CUDA graph: RGB, preprocess, network, explanation, colour map, blend."""
        build, device = self._runner.config, self._streams.device
        to_rgb = None if kind.colours is None else Nv12ToRgb(kind.colours)
        to_input = FramePreprocessor(self._preprocessing, kind.size, kind.area, by_products=device.type == "cuda").to(
            device
        )
        region = to_input.placement.region
        paint = HeatmapBlender(self._heat_lut, region, self.info.grid, kind.size).to(device)
        images = torch.zeros((len(frames), 3, *self._preprocessing.input_size), dtype=build.dtype, device=device)
        # Resizing may change the memory format, but the network was compiled for this one.
        images = images.contiguous(memory_format=torch.channels_last)

        def call() -> Outputs:
            shown = frames if to_rgb is None else to_rgb(frames)
            images.copy_(to_input(shown))
            scores, classes, heat = self._runner(images)
            return scores, classes, heat, paint(shown, heat[:, 0])

        return call

    def _explanation(self, frame: Frame, batch: InFlightBatch, index: int, timings: dict[str, float]) -> Explanation:
        scores, classes, heat = (part[index].numpy() for part in batch.outputs)
        findings = self._findings(scores, classes, heat)
        return RenderedExplanation(
            frame=frame,
            findings=findings,
            method=self._method,
            layer=self.info.layer,
            timings=timings,
            model=self.info.model,
            heat_region=self._preprocessing.region(frame),
            next_classes=self._next_classes(scores, findings),
            drawn=DeviceImage(batch.images[index], batch.done),
        )

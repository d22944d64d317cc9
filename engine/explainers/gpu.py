"""Frames that stay on the card: up as uint8, explained and drawn there; JPEG and the coarse heat come back.

The one place where a handle to device memory flows beside the nouns: a ``RenderedExplanation`` carries its picture on
the device, which only this file reads. Whoever wants an array asks for one (``deliver``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.explainers.network import NetworkExplainer
from engine.gpu.batch_pipeline import BatchPipeline, InFlightBatch, buckets_up_to
from engine.gpu.image_ops import FramePreprocessor, HeatmapBlender, LevelTable, blend_patch, encode_jpeg
from engine.gpu.streams import DeviceStreams, Outputs, device_streams
from engine.models.loader import LoadedModel
from engine.models.preprocess import fit_geometry
from pipeline.config import EngineConfig
from pipeline.frames import Explanation, Finding, Frame, Image, ImagePatch, Jpeg
from pipeline.ports import MaskingOptions


class DeviceImage(NamedTuple):
    """A drawn picture on the device."""

    image: Tensor
    """uint8, (3, H, W)."""
    done: object
    """Reached when it is drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class RenderedExplanation(Explanation):
    """An explanation whose picture has been drawn already and waits on the device."""

    drawn: DeviceImage | None = None


class GpuExplainer(NetworkExplainer):
    """Explains and draws frames on one device, without bringing them back in between.

    ``begin`` starts and returns; ``explain`` waits. ``deliver`` may be called from another thread than those.
    """

    def __init__(
        self,
        network: LoadedModel,
        config: EngineConfig,
        *,
        table: LevelTable,
        together: int = 1,
        streams: Callable[[torch.device], DeviceStreams] = device_streams,
    ) -> None:
        """Cut, plan, compile and prove, for every batch bucket; graphs are captured at the first frame of each size.

        Args:
            network: what to run.
            config: how.
            table: what each heat level does to a pixel, uint8 (256, 4).
            together: how many frames come at once at the most; ``config.batch`` wins.
            streams: makes the lanes of a device.
        """
        buckets = buckets_up_to(config.batch or together)
        super().__init__(network, config, batch_size=buckets[-1], batch_sizes=buckets)
        self._heat_lut = table
        self._streams = streams(self._runner.config.device)
        self._batches = BatchPipeline(self._streams, buckets, self._capture_graph)
        # Held while the network is given work: batches are begun in one thread, checks made in another.
        self._turn = threading.Lock()

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Explanation]]:
        """Send frames on their way; what is returned waits for them and gives one explanation per frame, in order."""
        started_at = time.perf_counter()
        sizes: dict[tuple[int, int], list[int]] = {}
        for number, frame in enumerate(frames):
            sizes.setdefault((frame.height, frame.width), []).append(number)
        with torch.inference_mode(), self._turn:
            under_way = [
                (numbers, self._batches.submit([frames[number].image for number in numbers]))
                for numbers in sizes.values()
            ]
        launched = time.perf_counter() - started_at

        def finish() -> list[Explanation]:
            told: dict[int, Explanation] = {}
            for numbers, flights in under_way:
                waiting = iter(numbers)
                for batch in flights:
                    self._streams.synchronize(batch.done)
                    timings = {"preprocess": launched, "explain": time.perf_counter() - started_at - launched}
                    for place_in_flight in range(batch.count):
                        number = next(waiting)
                        told[number] = self._explanation(frames[number], batch, place_in_flight, timings)
            return [told[number] for number in range(len(frames))]

        return finish

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Explain a batch: one explanation per frame, in order; frames may differ in size and camera."""
        return self.submit(frames)()

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the finding's class's score when the frame's hottest area is masked: one more pass, in its turn."""
        with torch.inference_mode(), self._turn, self._streams.stream("compute"):
            return super().score_when_masked(explanation, finding, masking)

    def download(
        self, explanation: Explanation, patch: ImagePatch | None, *, jpeg_quality: int | None, as_array: bool
    ) -> tuple[Jpeg | None, Image | None]:
        """Bring a drawn picture to the host, with a stamp on it: as JPEG of a quality, as an array, or both.

        Both None where the explanation holds no picture on the device.
        """
        drawn = explanation.drawn if isinstance(explanation, RenderedExplanation) else None
        if drawn is None:
            return None, None
        streams = self._streams
        jpeg = image = None
        streams.wait_event("encode", drawn.done)
        with torch.inference_mode(), streams.stream("encode"):
            picture = drawn.image
            streams.record_stream(picture, "encode")
            if patch is not None:
                tile = streams.pinned_empty(patch.tile.shape, torch.uint8).copy_(torch.from_numpy(patch.tile))
                picture = blend_patch(picture, tile.to(streams.device, non_blocking=True), patch)
            if jpeg_quality is not None:
                with streams.encoder_stream():
                    jpeg = Jpeg(encode_jpeg([picture], jpeg_quality)[0], jpeg_quality)
            if as_array:
                rows = picture.permute(1, 2, 0).contiguous()
                host = streams.pinned_empty(tuple(rows.shape), torch.uint8).copy_(rows, non_blocking=True)
                streams.synchronize(streams.record_event("encode"))
                image = host.numpy()
                image.flags.writeable = False
        return jpeg, image

    def _capture_graph(self, size: tuple[int, int], bucket: int) -> tuple[Tensor, Callable[[], Outputs]]:
        """Return the input of one graph, and what it does: preprocess, head, explanation, resize, colour map, blend."""
        build, device = self._runner.config, self._streams.device
        region = fit_geometry(size, self._preprocessing.input_size, self._preprocessing.fit).region
        to_input = FramePreprocessor(self._preprocessing, size).to(device)
        paint = HeatmapBlender(self._heat_lut, region, self.info.grid, size).to(device)
        frames = torch.zeros((bucket, *size, 3), dtype=torch.uint8, device=device)
        images = torch.zeros((bucket, 3, *self._preprocessing.input_size), dtype=build.dtype, device=device)
        # Exactly the layout the network was compiled for, whatever resizing leaves.
        images = images.contiguous(memory_format=torch.channels_last)

        def call() -> Outputs:
            images.copy_(to_input(frames))
            scores, classes, heat = self._runner(images)
            return scores, classes, heat, paint(frames, heat[:, 0])

        return frames, call

    def _explanation(
        self, frame: Frame, batch: InFlightBatch, place_in_flight: int, timings: dict[str, float]
    ) -> Explanation:
        scores, classes, heat = (part[place_in_flight].numpy() for part in batch.outputs)
        return RenderedExplanation(
            frame=frame,
            findings=self._findings(scores, classes, heat),
            method=self._method,
            layer=self.info.layer,
            timings=timings,
            model=self.info.model,
            heat_region=self._preprocessing.region(frame),
            drawn=DeviceImage(batch.images[place_in_flight], batch.done),
        )

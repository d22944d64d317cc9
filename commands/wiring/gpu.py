"""Renders on the GPU: adds text and guards, and downloads JPEG data or arrays for the sinks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.frames import Explanation, Overlay, SignalLoss
from pipeline.ports import Renderer, Sink

if TYPE_CHECKING:
    from engine.explainers.base import EngineExplainer
    from engine.explainers.gpu import GpuExplainer
    from engine.models.loader import LoadedModel
    from overlays.render.renderer import HeatRenderer

log = logging.getLogger("recipro-stream")


class GpuRenderer(Renderer):
    """Adds text and guards to images that the engine has rendered on the GPU, and downloads them."""

    def __init__(self, drawing: HeatRenderer, explainer: GpuExplainer, sinks: Sequence[Sink]) -> None:
        """Create a renderer.

        Args:
            drawing: draws text and guards.
            explainer: stores the rendered images on the GPU.
            sinks: the sinks; each accepts JPEG data of one quality, or arrays.
        """
        self._drawing = drawing
        self._explainer = explainer
        self._sinks = tuple(sinks)
        # Serializes downloads: each camera is rendered in its own thread, and all share one CUDA stream.
        self._turn = threading.Lock()
        qualities = [quality for quality in (sink.accepted_jpeg_quality for sink in self._sinks) if quality is not None]
        self.quality = max(set(qualities), key=qualities.count) if qualities else None
        """The only JPEG quality (1 to 100) that the GPU encodes; sinks with another quality receive an array."""

    def render(self, explanation: Explanation) -> Overlay:
        """Add text and guards to the rendered image, and download it as JPEG, as an array, or both, for the sinks."""
        from engine.explainers.gpu import RenderedExplanation

        if not isinstance(explanation, RenderedExplanation):
            return self._drawing.render(explanation)
        camera = explanation.frame.camera
        looking = {sink.accepted_jpeg_quality for sink in self._sinks if sink.needs_image(camera)}
        quality = self.quality if self.quality in looking else None
        array = None in looking or bool(looking - {quality})
        patches = self._drawing.render_patches(explanation)
        with self._turn:
            jpeg, image = self._explainer.download(explanation, patches, jpeg_quality=quality, as_array=array)
        # A slow sink, or one that keeps frames, then holds no memory of the GPU.
        explanation = replace(explanation, drawn=None)
        return Overlay(explanation.frame.pixels if image is None else image, explanation, jpeg=jpeg)

    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Render a camera's last frame as stale, on the host."""
        return self._drawing.render_stale(explanation, signal_loss)


def renders_on_gpu(config: Config, device: str) -> bool:
    """Return whether frames are rendered on the GPU: ``device`` is ``cuda`` and no overlay option requires the CPU."""
    overlay = config.overlay
    obstacles = {
        "contour": overlay.contour, "hottest_box": overlay.hottest_box, "smoothing": overlay.smoothing_seconds > 0,
    }  # fmt: skip
    only_host = [name for name, on in obstacles.items() if on]
    if device == "cuda" and only_host:
        log.info("frames are rendered on the CPU, because the GPU cannot draw: %s", ", ".join(only_host))
    return device == "cuda" and not only_host


def build_gpu_explainer(config: Config, network: LoadedModel, *, batch_size: int) -> GpuExplainer:
    """Return an explainer that explains and renders frames on the configured GPU.

    Args:
        config: the configuration of the run.
        network: the loaded classifier.
        batch_size: maximum number of frames per batch.
    """
    from engine.explainers.gpu import GpuExplainer
    from overlays.render.gpu_tables import heat_lut

    overlay = config.overlay
    return GpuExplainer(network, config.engine, table=heat_lut(overlay.colormap, overlay.opacity), together=batch_size)


def warn_of_downloads(config: Config, explainer: EngineExplainer) -> None:
    """Log a warning if frames stay on the GPU although a network reads them on the host.

    Args:
        config: the configuration of the run.
        explainer: the explainer of the run.
    """
    from engine.explainers.gpu import GpuExplainer

    if not any(getattr(source, "device_frames", False) for source in config.sources):
        return
    reason = "the network on trial reads" if config.models else ""
    if not isinstance(explainer, GpuExplainer):
        reason = "with this network or these overlay options, the engine reads"
    if reason:
        log.warning(
            "device_frames: %s images on the host, so the engine's thread downloads each frame that the GPU decoded; "
            "set device_frames: false, which is faster in this case", reason,
        )  # fmt: skip


def make_renderer(drawing: HeatRenderer, explainer: EngineExplainer, sinks: Sequence[Sink]) -> Renderer:
    """Return a ``GpuRenderer`` if the explainer renders on the GPU, else ``drawing``.

    Args:
        drawing: renders on the CPU.
        explainer: the explainer of the run.
        sinks: the sinks of the run.
    """
    from engine.explainers.gpu import GpuExplainer

    return GpuRenderer(drawing, explainer, sinks) if isinstance(explainer, GpuExplainer) else drawing

"""The engine's own drawing joined to the sinks: who gets JPEG made on the card, who needs an array after all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.frames import Explanation, Overlay, SignalLoss
from pipeline.ports import Renderer, Sink

if TYPE_CHECKING:
    from engine.explainers.base import BaseExplainer
    from engine.explainers.gpu import GpuExplainer
    from engine.models.loader import LoadedModel
    from overlays.render.renderer import HeatRenderer

log = logging.getLogger("recipro-stream")


class GpuRenderer(Renderer):
    """A renderer of frames that the engine has drawn already: it adds the words and brings them to the host."""

    def __init__(self, drawing: HeatRenderer, explainer: GpuExplainer, sinks: Sequence[Sink]) -> None:
        """Take who knows the words, who holds the pictures, and who wants them."""
        self._drawing = drawing
        self._explainer = explainer
        self._sinks = tuple(sinks)
        # Held while the card hands over a picture: cameras are drawn in threads of their own, and share its stream.
        self._turn = threading.Lock()
        wanted = [quality for quality in (sink.accepted_jpeg_quality for sink in self._sinks) if quality is not None]
        self.quality = max(set(wanted), key=wanted.count) if wanted else None
        """The one quality that the card encodes at; sinks of another get an array."""

    def render(self, explanation: Explanation) -> Overlay:
        """Write on the drawn picture and bring it to the host in the forms that are looked at now."""
        from engine.explainers.gpu import RenderedExplanation

        if not isinstance(explanation, RenderedExplanation):
            return self._drawing.render(explanation)
        camera = explanation.frame.camera
        looking = {sink.accepted_jpeg_quality for sink in self._sinks if sink.needs_image(camera)}
        quality = self.quality if self.quality in looking else None
        array = None in looking or bool(looking - {quality})
        stamp = self._drawing.render_legend(explanation)
        with self._turn:
            jpeg, image = self._explainer.download(explanation, stamp, jpeg_quality=quality, as_array=array)
        return Overlay(explanation.frame.image if image is None else image, explanation, jpeg=jpeg)

    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Draw a camera's last frame so that nobody takes it for live: on the host."""
        return self._drawing.render_stale(explanation, signal_loss)


def renders_on_gpu(config: Config, device: str) -> bool:
    """Say whether frames are drawn where they are explained: on a GPU, unless what is asked only the host draws."""
    overlay = config.overlay
    asked = {
        "contour": overlay.contour, "hottest_box": overlay.hottest_box, "smoothing": overlay.smoothing_seconds > 0,
        "guards": bool(config.guards.rules or config.guards.regions),
    }  # fmt: skip
    only_host = [name for name, on in asked.items() if on]
    if device == "cuda" and only_host:
        log.info("pictures are drawn on the CPU: only there is drawn: %s", ", ".join(only_host))
    return device == "cuda" and not only_host


def build_gpu_explainer(config: Config, network: LoadedModel, *, batch_size: int) -> GpuExplainer:
    """Return what explains and draws on the configuration's GPU."""
    from engine.explainers.gpu import GpuExplainer
    from overlays.render.gpu_tables import heat_lut

    overlay = config.overlay
    return GpuExplainer(network, config.engine, table=heat_lut(overlay.colormap, overlay.opacity), together=batch_size)


def make_renderer(drawing: HeatRenderer, explainer: BaseExplainer, sinks: Sequence[Sink]) -> Renderer:
    """Return what draws: the host's renderer, or one that fetches what the explainer has drawn."""
    from engine.explainers.gpu import GpuExplainer

    return GpuRenderer(drawing, explainer, sinks) if isinstance(explainer, GpuExplainer) else drawing

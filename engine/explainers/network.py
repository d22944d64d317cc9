"""The explainer of any supported network: splits, plans and compiles it, then runs batches of frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.backends.registry import AUTOMATIC, check_backend
from engine.explainers.base import BaseExplainer, EngineInfo
from engine.explainers.class_heat import ClassAnswers
from engine.methods.kernels import check_kernel
from engine.models.labels import parse_target
from engine.models.loader import LoadedModel, class_names
from engine.runtime.compile_cache import CompileCache
from engine.runtime.devices import choose_device, gpu_metrics, set_product_precision, warn_if_slow
from engine.runtime.runner import CompileConfig, Runner, select_fastest, select_first_working
from engine.runtime.verification import ModelOutputs
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.frames import Explanation, Finding, Frame
from pipeline.ports import MetricSample
from pipeline.queries import PlaceQueries

log = logging.getLogger(__name__)


class NetworkExplainer(BaseExplainer):
    """Explains frames with one network on one device."""

    def __init__(
        self, network: LoadedModel, config: EngineConfig, *, batch_size: int = 1, batch_sizes: tuple[int, ...] = ()
    ) -> None:
        """Split the network, choose a plan, compile, and verify against eager float32.

        Args:
            network: the model.
            config: the engine's settings.
            batch_size: usual number of frames per batch; ``config.batch`` has priority.
            batch_sizes: further batch sizes to compile for.

        Raises:
            LayerError, EngineError: the network cannot be split at this layer, or does not accept this input size.
            ConfigError: the backend, kernel or a class is unknown.
            BackendError: the device or backend is not available, or its outputs differ from eager float32.
        """
        started_at = time.perf_counter()
        if config.threads:
            torch.set_num_threads(config.threads)
        device = choose_device(config.device)
        backend = check_backend(config.backend)
        warn_if_slow(config.precision, device)
        set_product_precision(config.precision, device)
        preprocessing = network.preprocessing(config)
        size = preprocessing.input_size
        split = split_network(network.module, config.layer or network.layer, size)
        labels = class_names(network, split.classes)
        target = parse_target(config.target, labels)
        kernel = check_kernel(config.kernel)
        candidates = AUTOMATIC[device.type] if backend == "auto" else (backend,)
        cache = None if config.cache in {None, "off"} else CompileCache(Path(config.cache or ""))
        budget = config.memory_budget_mib << 20
        batch_size = config.batch or batch_size
        build = CompileConfig(
            target, kernel, candidates[0], config.precision, device, budget, cache, batch_size, batch_sizes
        )
        choose = select_fastest if device.type == "cpu" else select_first_working
        self._runner = Runner(split, build) if len(candidates) == 1 else choose(split, build, candidates)
        backend = self._runner.config.backend
        plan, seconds = self._runner.plan.info, time.perf_counter() - started_at
        info = EngineInfo(
            network.name, split.layer, split.grid, size, plan, backend, config.precision, str(device), seconds
        )
        super().__init__(labels, f"{split.method}/{kernel}", preprocessing, info)
        self._answers: ClassAnswers | None = None

    def accept(self, queries: PlaceQueries) -> None:
        """Answer viewers' questions for class heat maps, unless batches run asynchronously."""
        if not self.asynchronous:
            self._answers = ClassAnswers(queries, self.labels, self._class_finding)

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Return one explanation per frame, in order; frames may have different sizes and cameras."""
        if self._answers is not None:
            self._answers.remember(frames)
        return super().explain(frames)

    def after_batch(self) -> None:
        """Answer the next question if one is due."""
        if self._answers is not None:
            self._answers.answer()

    def idle(self) -> None:
        """Answer the next question if one is due."""
        self.after_batch()

    def forget_camera(self, camera: str) -> None:
        """Delete the camera's frame that is stored for questions."""
        if self._answers is not None:
            self._answers.forget_camera(camera)

    def _class_finding(self, frame: Frame, class_index: int) -> Finding:
        """Return the finding of a class in a frame: its score and heat map."""
        images = self._images(self._preprocessing.pixels([frame]))
        scores, heat = self._runner.class_heat(images, class_index)
        score = float(scores[0, class_index])
        return Finding(self.labels[class_index], score, heat[0].cpu().numpy().copy(), class_index)

    def metrics(self) -> list[MetricSample]:
        """Return metrics of the engine, the device, the build time and the compile cache."""
        build = self._runner.config
        samples = [
            *super().metrics(),
            *gpu_metrics(build.device),
            MetricSample("engine_build_seconds", self.info.build_seconds, "Time to split, compile and verify."),
        ]
        if build.cache is not None:
            counts = {"taken": build.cache.hits, "written": build.cache.writes}
            text = "Cache entries read and written when the engine was built."
            samples += [
                MetricSample("engine_cache_entries", count, text, labels=(("how", how),))
                for how, count in counts.items()
            ]
        return samples

    def _images(self, pixels: Tensor) -> Tensor:
        build = self._runner.config
        return self._preprocessing.normalised(pixels.to(build.device), build.dtype)

    def _scores(self, images: Tensor) -> Tensor:
        return self._runner.scores(images)

    def _outputs(self, images: Tensor) -> ModelOutputs:
        return self._runner(images)

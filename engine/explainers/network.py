"""The path of a batch: up -> head -> method -> down. Implements the Explainer port for any network of the table."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from engine.backends.registry import AUTOMATIC, check_backend
from engine.explainers.base import EngineFacts, FrameExplainer
from engine.methods.kernels import check_kernel
from engine.models.labels import choose_target
from engine.models.loader import Network, class_names
from engine.runtime.compile_cache import Cache
from engine.runtime.devices import choose_device, figures_of, keep_arithmetic, warn_if_slow
from engine.runtime.runner import Build, Runner, fastest, first_that_runs
from engine.runtime.verification import Answers
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.ports import Figure

log = logging.getLogger(__name__)


class NetworkExplainer(FrameExplainer):
    """Explains frames with one network on one device."""

    def __init__(
        self, network: Network, config: EngineConfig, *, together: int = 1, buckets: tuple[int, ...] = ()
    ) -> None:
        """Cut, plan, compile and prove; then every batch only runs.

        Args:
            network: what to run.
            config: how.
            together: how many frames usually come at once; ``config.batch`` wins.
            buckets: further batch sizes to compile for.

        Raises:
            LayerError, EngineError: the network cannot be cut at this layer, or takes no input of this size.
            ConfigError: an unknown backend, kernel or class.
            BackendError: the device or backend is missing here, or disagrees with eager float32.
        """
        begun = time.perf_counter()
        if config.threads:
            torch.set_num_threads(config.threads)
        device = choose_device(config.device)
        backend = check_backend(config.backend)
        warn_if_slow(config.precision, device)
        keep_arithmetic(config.precision, device)
        preprocessing = network.preprocessing(config)
        size = preprocessing.input_size
        split = split_network(network.net, config.layer or network.layer, size)
        labels = class_names(network, split.classes)
        target = choose_target(config.target, labels)
        kernel = check_kernel(config.kernel)
        candidates = AUTOMATIC[device.type] if backend == "auto" else (backend,)
        cache = None if config.cache in {None, "off"} else Cache(Path(config.cache or ""))
        budget = config.memory_budget_mib << 20
        together = config.batch or together
        build = Build(target, kernel, candidates[0], config.precision, device, budget, cache, together, buckets)
        choose = fastest if device.type == "cpu" else first_that_runs
        self._runner = Runner(split, build) if len(candidates) == 1 else choose(split, build, candidates)
        backend = self._runner.build.backend
        plan, seconds = self._runner.plan.facts, time.perf_counter() - begun
        facts = EngineFacts(
            network.name, split.layer, split.grid, size, plan, backend, config.precision, str(device), seconds
        )
        super().__init__(labels, f"{split.method}/{kernel}", preprocessing, facts)

    def figures(self) -> list[Figure]:
        """Return what runs and what it takes, how the device does, and what building it took."""
        build = self._runner.build
        told = [
            *super().figures(),
            *figures_of(build.device),
            Figure("engine_build_seconds", self.facts.build_seconds, "What cutting, compiling and proving took."),
        ]
        if build.cache is not None:
            taken = {"taken": build.cache.found, "written": build.cache.kept}
            says = "Compiled results taken from the cache, and written to it, when the engine was built."
            told += [
                Figure("engine_cache_entries", count, says, labels=(("how", how),)) for how, count in taken.items()
            ]
        return told

    def _images(self, pixels: Tensor) -> Tensor:
        build = self._runner.build
        return self._preprocessing.normalised(pixels.to(build.device), build.dtype)

    def _scores(self, images: Tensor) -> Tensor:
        return self._runner.scores(images)

    def _answers(self, images: Tensor) -> Answers:
        return self._runner(images)

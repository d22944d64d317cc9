"""The path of a batch: up -> head -> method -> down. Implements the Explainer port for any network of the table."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.backends.table import AUTOMATIC, check_backend
from engine.build import Build, Runner, fastest
from engine.cache import Cache
from engine.devices import choose_device, warn_if_slow
from engine.methods.kernels import check_kernel
from engine.methods.plan import PlanFacts
from engine.networks import Network, choose_target, class_names
from engine.preprocess import Preprocessing
from engine.split import split_network
from pipeline.config import EngineConfig
from pipeline.frames import Explanation, Finding, Frame

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What runs, for the log and for people."""

    model: str
    layer: str
    grid: tuple[int, int]
    input_size: tuple[int, int]
    plan: PlanFacts
    backend: str
    precision: str
    device: str
    build_seconds: float

    def __str__(self) -> str:
        rows, columns = self.grid
        height, width = self.input_size
        return (
            f"{self.model} at {height}x{width}, layer {self.layer} ({rows}x{columns} cells), {self.plan.name} plan "
            f"({self.plan.why}), {self.backend} {self.precision} on {self.device}, built in {self.build_seconds:.1f} s"
        )


class NetworkExplainer:
    """Explains frames with one network on one device."""

    def __init__(self, network: Network, config: EngineConfig) -> None:
        """Cut, plan, compile and prove; then every batch only runs.

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
        size = config.input_size or network.input_size
        self._preprocessing = Preprocessing(size, config.mean or network.mean, config.std or network.std, config.fit)
        split = split_network(network.net, config.layer or network.layer, size)
        self.labels = class_names(network, split.classes)
        target = choose_target(config.target, self.labels)
        kernel = check_kernel(config.kernel)
        candidates = AUTOMATIC[device.type] if backend == "auto" else (backend,)
        cache = None if config.cache in {None, "off"} else Cache(Path(config.cache or ""))
        build = Build(target, kernel, candidates[0], config.precision, device, config.memory_budget_mib << 20, cache)
        self._runner = Runner(split, build) if len(candidates) == 1 else fastest(split, build, candidates)
        backend = self._runner.build.backend
        self._method = f"recipro-cam/{kernel}"
        plan, seconds = self._runner.plan.facts, time.perf_counter() - begun
        self.facts = EngineFacts(
            network.name, split.layer, split.grid, size, plan, backend, config.precision, str(device), seconds
        )

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Explain a batch: one explanation per frame, in order; frames may differ in size and camera."""
        if not frames:
            return []
        begun = time.perf_counter()
        images = self._images(frames)
        ready = time.perf_counter()
        scores, classes, heat = (part.cpu().numpy() for part in self._runner(images))
        timings = {"preprocess": ready - begun, "explain": time.perf_counter() - ready}
        return [
            Explanation(
                frame=frame,
                findings=tuple(
                    Finding(self.labels[c], float(scores[n, c]), np.ascontiguousarray(heat[n, t]), int(c))
                    for t, c in enumerate(classes[n])
                ),
                method=self._method,
                layer=self.facts.layer,
                timings=timings,
                model=self.facts.model,
                heat_region=self._preprocessing.region(frame),
            )
            for n, frame in enumerate(frames)
        ]

    def _images(self, frames: Sequence[Frame]) -> Tensor:
        build = self._runner.build
        pixels = self._preprocessing.pixels(frames).to(build.device)
        return self._preprocessing.normalised(pixels, build.dtype)

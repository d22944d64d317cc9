"""From a cut network to something that runs: plan, precision, device, backend, and the proof that it still agrees."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.agreement import HEAT_TOLERANCE, SCORE_TOLERANCE, Answers, disagreement
from engine.backends.table import BACKENDS, Compiled
from engine.cache import Cache
from engine.devices import DTYPES
from engine.methods.kernels import Kernel
from engine.methods.recipro import ExplainedNetwork, Target, plan_for
from engine.split import Split
from pipeline.errors import BackendError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Build:
    """How a cut network is to run."""

    target: Target
    kernel: Kernel
    backend: str
    precision: str
    device: torch.device
    budget_bytes: int
    cache: Cache | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's inputs and of the module a backend is given."""
        return torch.float32 if BACKENDS[self.backend].lowers_precision else DTYPES[self.precision]


class Runner:
    """Runs the explained network on batches of any size up to a limit."""

    def __init__(self, split: Split, build: Build) -> None:
        """Plan, compile for one image, and prove.

        Raises:
            BackendError: the backend is missing here, cannot compile this network, or disagrees with eager float32.
        """
        self.split = split
        self.build = build
        backend = BACKENDS[build.backend].load()
        if lacking := backend.missing(build.device.type):
            raise BackendError(f"backend {build.backend!r}: {lacking}")
        probe = self._probe(1)
        with torch.inference_mode():
            features = split.head(probe)
        self.plan = plan_for(split, features, build.kernel, build.budget_bytes)
        reference = ExplainedNetwork(split.head, self.plan, build.target, split.grid)
        truth = _answers(reference, probe)
        self._module = _placed(reference, build)
        self._compiled: dict[int, Compiled] = {}
        self._compile(1)
        example = probe.to(build.device, build.dtype).contiguous(memory_format=torch.channels_last)
        try:
            _compare(truth, self(example), build)
        except BackendError as reason:
            if build.cache is None or not build.cache.found:
                raise
            log.warning("%s; that was a compiled result of an earlier run: built anew", reason)
            build.cache.distrust()
            self._compiled.clear()
            _compare(truth, self(example), build)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (N, K), explained classes (N, T) and heat (N, T, h, w) for normalised images (N, 3, H, W)."""
        count = len(images)
        size = count if BACKENDS[self.build.backend].any_batch else 1 << (count - 1).bit_length()
        if size > count:
            images = torch.cat((images, images[-1:].expand(size - count, -1, -1, -1)))
        with torch.inference_mode():
            scores, classes, heat = self._compile(size)(images)
        return scores[:count], classes[:count], heat[:count]

    def seconds_per_image(self, rounds: int = 7) -> float:
        """Return the median time of one image, after two to warm up."""
        images = self._probe(1).to(self.build.device, self.build.dtype)
        taken = []
        for _ in range(rounds + 2):
            begun = time.perf_counter()
            self(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken[2:])

    def _compile(self, count: int) -> Compiled:
        key = 0 if BACKENDS[self.build.backend].any_batch else count
        if key not in self._compiled:
            backend = BACKENDS[self.build.backend].load()
            example = self._probe(count).to(self.build.device, self.build.dtype)
            example = example.contiguous(memory_format=torch.channels_last)
            if self.plan.facts.one_module:
                self._compiled[key] = backend.compile(self._module, example, self.build.precision, self.build.cache)
            else:
                head = backend.compile(self._module.head, example, self.build.precision, self.build.cache)
                # The plan drives the tail itself, chunk by chunk.
                self._compiled[key] = ExplainedNetwork(head, self._module.plan, self.build.target, self.split.grid)
        return self._compiled[key]

    def _probe(self, count: int) -> Tensor:
        """Draw smooth random pictures: noise alone looks the same everywhere to a deep network."""
        generator = torch.Generator().manual_seed(count)
        coarse = torch.randn((count, 3, 7, 7), generator=generator)
        fine = torch.randn((count, 3, *self.split.image_size), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=self.split.image_size, mode="bicubic")
        return (smooth + 0.3 * fine).contiguous(memory_format=torch.channels_last)


def _placed(module: ExplainedNetwork, build: Build) -> ExplainedNetwork:
    """Return the module on its device: the head in its precision, and a plan that is one module in float32."""
    if build.dtype == torch.float32 and build.device.type == "cpu":
        return module.to(memory_format=torch.channels_last)
    placed = copy.deepcopy(module).to(build.device).to(memory_format=torch.channels_last)
    placed.head.to(build.dtype)
    if not placed.plan.facts.one_module:
        placed.plan.to(build.dtype)
    return placed


def _answers(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode():
        scores, classes, heat = module(images)
    return scores, classes, heat


def _compare(truth: Answers, told: Answers, build: Build) -> None:
    """Refuse a backend whose answers to the probe are too far from eager float32's."""
    differs = disagreement(truth, told, SCORE_TOLERANCE[build.precision], HEAT_TOLERANCE[build.precision])
    if differs:
        raise BackendError(
            f"backend {build.backend!r} in {build.precision} disagrees with eager float32 on a probe image: {differs}; "
            "use --precision fp32 or another --backend"
        )


def fastest(split: Split, build: Build, backends: Sequence[str]) -> Runner:
    """Build with each of some backends, and return the one that answers soonest here.

    A backend that is missing or refuses is passed over, and said so.

    Raises:
        BackendError: none of them runs.
    """
    timed: list[tuple[float, Runner]] = []
    refused: list[str] = []
    for name in backends:
        try:
            runner = Runner(split, replace(build, backend=name))
        except BackendError as reason:
            refused.append(str(reason))
            log.info("passed over: %s", reason)
        else:
            timed.append((runner.seconds_per_image(), runner))
    if not timed:
        raise BackendError("; ".join(refused))
    seconds, best = min(timed, key=lambda pair: pair[0])
    others = ", ".join(f"{runner.build.backend} {1e3 * t:.1f} ms" for t, runner in timed if runner is not best)
    log.info("backend %s: %.1f ms an image here%s", best.build.backend, 1e3 * seconds, others and f" ({others})")
    return best

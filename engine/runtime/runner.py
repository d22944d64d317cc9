"""Runs a split network with its explanation: chooses the plan, compiles, and verifies the outputs."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.backends.registry import BACKENDS, Compiled, first_line
from engine.gpu.plan_timing import select_by_timing
from engine.methods.dense import DensePlan
from engine.methods.kernels import Kernel
from engine.methods.plan import Plan, SampledPlan, probe_cells
from engine.methods.recipro import ExplainedNetwork, Target, heatmaps_from_logits, plan_for
from engine.runtime.choice import fastest
from engine.runtime.compile_cache import CompileCache
from engine.runtime.devices import DTYPES, channels_last
from engine.runtime.verification import (
    HEAT_TOLERANCE,
    SCORE_TOLERANCE,
    ModelOutputs,
    output_mismatch,
    rounding_error_bound,
    similarity,
    similarity_shortfall,
)
from engine.split.network import SplitModel
from pipeline.errors import BackendError, LayerError, ReciproStreamError

log = logging.getLogger(__name__)

_ORDER_PROBES = 4
_TIMED_CELLS = 8
_LONG_SECONDS = 2.0
"""If an image takes more than this time, only some cells are verified."""
_SAMPLED_CELLS = 16
_TIMED_SECONDS = 5.0
"""Maximum time of a time measurement, which then ends with the finished rounds."""


@dataclass(frozen=True)
class CompileConfig:
    """Settings for running a split network."""

    target: Target
    kernel: Kernel
    backend: str
    precision: str
    device: torch.device
    budget_bytes: int
    cache: CompileCache | None = None
    batch_size: int = 1
    """Usual number of images per batch. A backend with fixed batch sizes compiles for this size and for 1; other
    batches are split into these sizes."""
    batch_sizes: tuple[int, ...] = ()
    """Further batch sizes to compile for."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's inputs and of the module that a backend compiles."""
        return torch.float32 if BACKENDS[self.backend].lowers_precision else DTYPES[self.precision]


class Runner:
    """Runs a network with its explanation on batches of any size; all compilation happens in the constructor."""

    def __init__(self, split: SplitModel, config: CompileConfig) -> None:
        """Choose a plan, compile, and verify.

        Args:
            split: the split network.
            config: the settings.

        Raises:
            LayerError: the tail cannot run on masked maps.
            BackendError: the backend is not available, cannot compile this network, or its outputs differ from eager
                float32.
        """
        self.split = split
        self.config = config
        self.plan: Plan
        self._cells: Tensor | None = None
        backend = BACKENDS[config.backend].load()
        if lacking := backend.missing(config.device.type):
            raise BackendError(f"backend {config.backend!r}: {lacking}")
        probe = self._probe(1)
        features = self._choose_plan(probe)
        if config.device.type == "cuda":
            placed = features.to(config.device, config.dtype)
            self.plan = select_by_timing(self.plan, split.tail, config.kernel, placed, config.budget_bytes)
        reference = ExplainedNetwork(split.head, self.plan, config.target, split.grid)
        compared = self._sampled(reference)
        expected = _run(compared, probe)
        with torch.inference_mode():
            rounding = rounding_error_bound(compared.plan(features)[1], expected[1])
        self._module = _placed(reference, config)
        self._compiled: dict[int, Compiled] = {}
        self._tails: dict[tuple[int, ...], Compiled] = {}
        self._prepare()
        example = probe.to(config.device, config.dtype).contiguous(memory_format=torch.channels_last)
        try:
            _check_outputs(expected, self._sampled_outputs(example), config, rounding)
        except BackendError as reason:
            if config.cache is None or not config.cache.hits:
                raise
            log.warning("the network is compiled again, because a result from the cache is wrong: %s", reason)
            config.cache.disable_reads()
            self._compiled.clear()
            self._tails.clear()
            self._prepare()
            _check_outputs(expected, self._sampled_outputs(example), config, rounding)
        if BACKENDS[config.backend].keeps_order:
            self._check_similarity(compared)

    def _choose_plan(self, probe: Tensor) -> Tensor:
        """Choose the plan and the cells to verify; return the probe's feature map.

        Raises:
            LayerError: the tail cannot run on masked maps.
        """
        split, config = self.split, self.config
        try:
            with torch.inference_mode():
                features: Tensor = split.head(probe)
                self.plan = plan_for(split, features, config.kernel, config.budget_bytes)
                self._cells = self._cells_to_verify(features)
        except ReciproStreamError:
            raise
        except Exception as reason:  # the network's own code may raise anything
            raise LayerError(
                f"layer {split.layer!r}: the layers after it fail on masked maps ({first_line(reason)}); choose "
                "another --layer"
            ) from reason
        return features

    def _cells_to_verify(self, features: Tensor) -> Tensor | None:
        """Return the cells to verify, and log the time if all cells take long; None: all cells."""
        rows, columns = self.split.grid
        if (
            self.plan.info.one_module
            or self.plan.info.name not in {"dense", "local"}
            or rows * columns <= _SAMPLED_CELLS
        ):
            return None
        cells = probe_cells((rows, columns))
        cells = cells[torch.linspace(0, len(cells) - 1, _SAMPLED_CELLS).round().long()]
        timed = cells[:_TIMED_CELLS]
        self.plan.probe(features, timed)
        started_at = time.perf_counter()
        self.plan.probe(features, timed)
        seconds = (time.perf_counter() - started_at) / len(timed) * rows * columns
        if seconds < _LONG_SECONDS:
            return None
        log.log(
            logging.INFO if self.plan.slow_warning_logged else logging.WARNING,
            "layer %s: %d x %d cells, with the %s plan (%s): about %.0f s per image in PyTorch on this CPU; a later "
            "--layer has fewer cells and is faster", self.split.layer, rows, columns, self.plan.info.name,
            self.plan.info.reason, seconds,
        )  # fmt: skip
        self.plan.slow_warning_logged = True
        return cells

    def _sampled(self, module: ExplainedNetwork) -> ExplainedNetwork:
        """Return the module, restricted to the cells to verify."""
        if self._cells is None:
            return module
        plan = SampledPlan(module.plan, self._cells)
        sampled = ExplainedNetwork(module.head, plan, self.config.target, (1, len(self._cells)))
        return sampled.to(self._cells.device)

    def _sampled_outputs(self, images: Tensor) -> ModelOutputs:
        """Return the compiled network's outputs, restricted to the cells to verify."""
        compiled = self._compiled.get(0) or self._compiled[1]
        if self._cells is None or not isinstance(compiled, ExplainedNetwork):
            return self(images)
        return _run(self._sampled(compiled), images)

    def _check_similarity(self, reference: ExplainedNetwork) -> None:
        """Raise BackendError if the backend ranks classes or cells differently from eager float32."""
        probes = self._probe(_ORDER_PROBES)
        expected = _run(reference, probes)
        placed = probes.to(self.config.device, self.config.dtype).contiguous(memory_format=torch.channels_last)
        module = self._sampled(self._module)
        runs: tuple[Callable[[Tensor], ModelOutputs], ...] = (
            self._sampled_outputs,
            lambda images: _run(module, images),
        )
        measured, eager = (similarity(expected, _run_separately(run, placed)) for run in runs)
        log.info("backend %s in %s against eager float32: %s", self.config.backend, self.config.precision, measured)
        if differs := similarity_shortfall(measured, self.config.precision, eager):
            raise BackendError(
                f"backend {self.config.backend!r} in {self.config.precision} differs from eager float32 on "
                f"{_ORDER_PROBES} probe images: {differs}; use --precision fp32 or another --backend"
            )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (N, K), explained classes (N, T) and heat maps (N, T, h, w).

        Args:
            images: normalised, (N, 3, H, W), on the runner's device and in its dtype.
        """
        with torch.inference_mode():
            if 0 in self._compiled:
                scores, classes, heat = self._compiled[0](images)
                return scores, classes, heat
            outputs = [self._compiled[len(part)](part) for part in self._split_batch(images)]
            if len(outputs) == 1:
                return outputs[0][0], outputs[0][1], outputs[0][2]
            scores, classes, heat = (torch.cat(parts) for parts in zip(*outputs, strict=True))
            return scores, classes, heat

    def scores(self, images: Tensor) -> Tensor:
        """Return softmax scores (N, K); without the explanation, if the plan is a separate module."""
        explained = self._compiled.get(0) or self._compiled[1]
        tail = getattr(self._module.plan, "tail", None)
        if self.plan.info.one_module or tail is None or not isinstance(explained, ExplainedNetwork):
            return self(images)[0]
        with torch.inference_mode():
            return torch.softmax(tail(explained.head(images)).float(), dim=1)

    def class_heat(self, images: Tensor, class_index: int) -> tuple[Tensor, Tensor]:
        """Return scores (N, K) and heat maps (N, h, w) of any class, not only of the target.

        A graph that was compiled as a whole computes only its target; other classes are computed in PyTorch.
        """
        explained = self._compiled.get(0) or self._compiled[1]
        module = explained if isinstance(explained, ExplainedNetwork) else self._module
        with torch.inference_mode():
            logits, cell_logits = module.logits(images)
            chosen = torch.full((len(images), 1), class_index, device=logits.device)
            return torch.softmax(logits, dim=1), heatmaps_from_logits(cell_logits, chosen, self.split.grid)[:, 0]

    def _split_batch(self, images: Tensor) -> list[Tensor]:
        """Split a batch into compiled sizes: the largest as often as possible, then single images."""
        if len(images) in self._compiled:
            return [images]
        largest = max(self._compiled)
        full = len(images) // largest * largest
        starts = [*range(0, full, largest), *range(full, len(images))]
        ends = [*starts[1:], len(images)]
        return [images[start:end] for start, end in zip(starts, ends, strict=True)]

    def _prepare(self) -> None:
        """Compile for every batch size before the first frame, so that no frame waits for a compiler."""
        for count in sorted({1, self.config.batch_size, *self.config.batch_sizes}):
            self._compile(count)

    def seconds_per_image(self, rounds: int = 7) -> float:
        """Return the median seconds per image after warm-up; estimated from some cells if it is long."""
        images = self._probe(1).to(self.config.device, self.config.dtype)
        times: list[float] = []
        while len(times) < rounds + 2 and (len(times) < 2 or sum(times) < _TIMED_SECONDS):
            started_at = time.perf_counter()
            self._sampled_outputs(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started_at)
        cells = self.split.grid[0] * self.split.grid[1]
        return statistics.median(times[2:] or times[1:]) * (1 if self._cells is None else cells / len(self._cells))

    def _compile(self, count: int) -> None:
        key = 0 if BACKENDS[self.config.backend].any_batch else count
        if key in self._compiled:
            return
        backend = BACKENDS[self.config.backend].load()
        example = self._probe(count).to(self.config.device, self.config.dtype)
        example = example.contiguous(memory_format=torch.channels_last)
        if self.plan.info.one_module:
            self._compiled[key] = backend.compile(self._module, example, self.config.precision, self.config.cache)
        else:
            head = backend.compile(self._module.head, example, self.config.precision, self.config.cache)
            # The plan itself runs the tail, in chunks.
            plan = self._with_tail(head, example)
            self._compiled[key] = ExplainedNetwork(head, plan, self.config.target, self.split.grid)

    def _with_tail(self, head: Compiled, example: Tensor) -> Plan:
        """Return the plan, with a compiled tail if it is dense."""
        plan, config = self._module.plan, self.config
        if not isinstance(plan, DensePlan) or BACKENDS[config.backend].any_batch:
            return plan
        try:
            with torch.inference_mode():
                return plan.compiled(head(example), self._tail_for)
        except BackendError as reason:
            log.warning(
                "backend %r cannot compile the layers that run on masked maps (%s); they run in eager PyTorch",
                config.backend,
                first_line(reason),
            )
            return plan

    def _tail_for(self, tail: nn.Module, maps: Tensor) -> Compiled:
        """Return the tail compiled for maps of a shape; equal shapes share one compiled tail."""
        shape = tuple(maps.shape)
        if shape not in self._tails:
            backend = BACKENDS[self.config.backend].load()
            self._tails[shape] = backend.compile(tail, maps, self.config.precision, self.config.cache)
        return self._tails[shape]

    def _probe(self, count: int) -> Tensor:
        """Return smooth random images, because on pure noise a deep network's activations are uniform."""
        generator = torch.Generator().manual_seed(count)
        coarse = torch.randn((count, 3, 7, 7), generator=generator)
        fine = torch.randn((count, 3, *self.split.image_size), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=self.split.image_size, mode="bicubic")
        return (smooth + 0.3 * fine).contiguous(memory_format=torch.channels_last)


def _placed(module: ExplainedNetwork, config: CompileConfig) -> ExplainedNetwork:
    """Move the module to its device, the head in its precision, a plan of one module in float32."""
    if config.dtype == torch.float32 and config.device.type == "cpu":
        channels_last(module)
        return module
    placed = copy.deepcopy(module).to(config.device)
    channels_last(placed)
    placed.head.to(config.dtype)
    if not placed.plan.info.one_module:
        placed.plan.to(config.dtype)
    return placed


def _run(module: nn.Module, images: Tensor) -> ModelOutputs:
    with torch.inference_mode():
        scores, classes, heat = module(images)
    return scores, classes, heat


def _run_separately(run: Callable[[Tensor], ModelOutputs], images: Tensor) -> ModelOutputs:
    """Run a batch as single images."""
    scores, classes, heat = (torch.cat(parts) for parts in zip(*map(run, torch.split(images, 1)), strict=True))
    return scores, classes, heat


def _check_outputs(expected: ModelOutputs, outputs: ModelOutputs, config: CompileConfig, rounding: float = 0.0) -> None:
    """Raise BackendError if a backend's outputs for the probe differ too much from eager float32.

    ``rounding`` is the difference of heat maps that float32 rounding can cause (``rounding_error_bound``).
    """
    allowed = HEAT_TOLERANCE[config.precision] + rounding
    differs = output_mismatch(expected, outputs, SCORE_TOLERANCE[config.precision], allowed)
    if differs:
        raise BackendError(
            f"backend {config.backend!r} in {config.precision} differs from eager float32 on a probe image: {differs}; "
            "use --precision fp32 or another --backend"
        )


def select_fastest(split: SplitModel, config: CompileConfig, backends: Sequence[str]) -> Runner:
    """Return the runner of the fastest working backend on this machine.

    Raises:
        BackendError: no backend works.
    """
    return fastest(
        backends, lambda name: Runner(split, replace(config, backend=name)), Runner.seconds_per_image, "image"
    )


def select_first_working(split: SplitModel, config: CompileConfig, backends: Sequence[str]) -> Runner:
    """Return the runner of the first backend that passes verification; log the skipped backends.

    Raises:
        BackendError: no backend works.
    """
    refused: list[str] = []
    for name in backends:
        try:
            runner = Runner(split, replace(config, backend=name))
        except BackendError as reason:
            refused.append(str(reason))
            log.warning("backend %s is skipped: %s", name, reason)
        else:
            if refused:
                log.warning("backend %s in %s is used instead", name, config.precision)
            return runner
    raise BackendError("; ".join(refused))

"""From a cut network to something that runs: plan, precision, device, backend, and the proof that it still agrees."""

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
from engine.methods.recipro import ExplainedNetwork, Target, plan_for
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
"""An image that takes longer is compared at some cells when a backend is built; all of them would be asked often."""
_SAMPLED_CELLS = 16
_TIMED_SECONDS = 5.0
"""A measurement ends after so long, with the rounds that it has."""


@dataclass(frozen=True)
class CompileConfig:
    """How a cut network is to run."""

    target: Target
    kernel: Kernel
    backend: str
    precision: str
    device: torch.device
    budget_bytes: int
    cache: CompileCache | None = None
    batch_size: int = 1
    """How many images usually come at once. A backend that compiles for one batch size compiles for this one and for
    one image, ahead; a batch of another size goes through in these pieces."""
    batch_sizes: tuple[int, ...] = ()
    """Further batch sizes to compile for."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's inputs and of the module a backend is given."""
        return torch.float32 if BACKENDS[self.backend].lowers_precision else DTYPES[self.precision]


class Runner:
    """Runs the explained network on batches of any size; nothing is compiled once it is made."""

    def __init__(self, split: SplitModel, config: CompileConfig) -> None:
        """Plan, compile, and prove.

        Raises:
            BackendError: the backend is missing here, cannot compile this network, or disagrees with eager float32.
        """
        self.split = split
        self.config = config
        self.plan: Plan
        self._cells: Tensor | None = None
        backend = BACKENDS[config.backend].load()
        if lacking := backend.missing(config.device.type):
            raise BackendError(f"backend {config.backend!r}: {lacking}")
        probe = self._probe(1)
        features = self._planned(probe)
        if config.device.type == "cuda":
            placed = features.to(config.device, config.dtype)
            self.plan = select_by_timing(self.plan, split.tail, config.kernel, placed, config.budget_bytes)
        reference = ExplainedNetwork(split.head, self.plan, config.target, split.grid)
        compared = self._sampled(reference)
        truth = _answers(compared, probe)
        with torch.inference_mode():
            rounding = rounding_error_bound(compared.plan(features)[1], truth[1])
        self._module = _placed(reference, config)
        self._compiled: dict[int, Compiled] = {}
        self._tails: dict[tuple[int, ...], Compiled] = {}
        self._prepare()
        example = probe.to(config.device, config.dtype).contiguous(memory_format=torch.channels_last)
        try:
            _compare(truth, self._compared(example), config, rounding)
        except BackendError as reason:
            if config.cache is None or not config.cache.hits:
                raise
            log.warning("%s; that was a compiled result of an earlier run: built anew", reason)
            config.cache.disable_reads()
            self._compiled.clear()
            self._tails.clear()
            self._prepare()
            _compare(truth, self._compared(example), config, rounding)
        if BACKENDS[config.backend].keeps_order:
            self._keep_order(compared)

    def _planned(self, probe: Tensor) -> Tensor:
        """Choose the plan, and how many cells the proof looks at; return the probe's feature map.

        Raises:
            EngineError: what follows the layer does not take masked maps.
        """
        split, config = self.split, self.config
        try:
            with torch.inference_mode():
                features: Tensor = split.head(probe)
                self.plan = plan_for(split, features, config.kernel, config.budget_bytes)
                self._cells = self._few_cells(features)
        except ReciproStreamError:
            raise
        except Exception as reason:  # it is the network's own code, which may raise anything
            raise LayerError(
                f"layer {split.layer!r}: what follows it does not take masked maps ({first_line(reason)}); choose "
                "another --layer"
            ) from reason
        return features

    def _few_cells(self, features: Tensor) -> Tensor | None:
        """Return some cells where all of them would take long, and say so; None = all."""
        rows, columns = self.split.grid
        if (
            self.plan.info.one_module
            or self.plan.info.name not in {"dense", "local"}
            or rows * columns <= _SAMPLED_CELLS
        ):
            return None
        cells = probe_cells((rows, columns))
        cells = cells[torch.linspace(0, len(cells) - 1, _SAMPLED_CELLS).round().long()]
        some = cells[:_TIMED_CELLS]
        self.plan.probe(features, some)
        started_at = time.perf_counter()
        self.plan.probe(features, some)
        seconds = (time.perf_counter() - started_at) / len(some) * rows * columns
        if seconds < _LONG_SECONDS:
            return None
        told, self.plan.said_slow = self.plan.said_slow, True
        log.log(
            logging.INFO if told else logging.WARNING,
            "layer %s: %d x %d cells, by the %s plan (%s): about %.0f s an image in PyTorch on this processor; a later "
            "--layer has fewer cells, and costs less", self.split.layer, rows, columns, self.plan.info.name,
            self.plan.info.reason, seconds,
        )  # fmt: skip
        return cells

    def _sampled(self, module: ExplainedNetwork) -> ExplainedNetwork:
        """Return the module, for some cells alone where all of them would take long."""
        if self._cells is None:
            return module
        plan = SampledPlan(module.plan, self._cells)
        sampled = ExplainedNetwork(module.head, plan, self.config.target, (1, len(self._cells)))
        return sampled.to(self._cells.device)

    def _compared(self, images: Tensor) -> ModelOutputs:
        """Answer as it does when called; where all cells would take long, for one image and some cells."""
        whole = self._compiled.get(0) or self._compiled[1]
        if self._cells is None or not isinstance(whole, ExplainedNetwork):
            return self(images)
        return _answers(self._sampled(whole), images)

    def _keep_order(self, reference: ExplainedNetwork) -> None:
        """Refuse a backend that tells other classes or ranks cells otherwise than eager float32, on some probes."""
        probes = self._probe(_ORDER_PROBES)
        truth = _answers(reference, probes)
        placed = probes.to(self.config.device, self.config.dtype).contiguous(memory_format=torch.channels_last)
        module = self._sampled(self._module)
        ways: tuple[Callable[[Tensor], ModelOutputs], ...] = (self._compared, lambda images: _answers(module, images))
        told, eager = (similarity(truth, _one_by_one(way, placed)) for way in ways)
        log.info("backend %s in %s, beside eager float32: %s", self.config.backend, self.config.precision, told)
        if differs := similarity_shortfall(told, self.config.precision, eager):
            raise BackendError(
                f"backend {self.config.backend!r} in {self.config.precision} is not like eager float32 on "
                f"{_ORDER_PROBES} probe images: {differs}; use --precision fp32 or another --backend"
            )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (N, K), explained classes (N, T) and heat (N, T, h, w) for normalised images (N, 3, H, W)."""
        with torch.inference_mode():
            if 0 in self._compiled:
                scores, classes, heat = self._compiled[0](images)
                return scores, classes, heat
            told = [self._compiled[len(part)](part) for part in self._pieces(images)]
            if len(told) == 1:
                return told[0][0], told[0][1], told[0][2]
            scores, classes, heat = (torch.cat(parts) for parts in zip(*told, strict=True))
            return scores, classes, heat

    def scores(self, images: Tensor) -> Tensor:
        """Return the plain network's softmax scores (N, K); where that is one module with its reasons, of both."""
        explained = self._compiled.get(0) or self._compiled[1]
        tail = getattr(self._module.plan, "tail", None)
        if self.plan.info.one_module or tail is None or not isinstance(explained, ExplainedNetwork):
            return self(images)[0]
        with torch.inference_mode():
            return torch.softmax(tail(explained.head(images)).float(), dim=1)

    def _pieces(self, images: Tensor) -> list[Tensor]:
        """Cut a batch into sizes that are compiled: as many full ones as there are, then single images."""
        if len(images) in self._compiled:
            return [images]
        full = max(self._compiled)
        whole = len(images) // full * full
        starts = [*range(0, whole, full), *range(whole, len(images))]
        ends = [*starts[1:], len(images)]
        return [images[start:end] for start, end in zip(starts, ends, strict=True)]

    def _prepare(self) -> None:
        """Compile for every size that will come: a stream must not wait for a compiler."""
        for count in sorted({1, self.config.batch_size, *self.config.batch_sizes}):
            self._compile(count)

    def seconds_per_image(self, rounds: int = 7) -> float:
        """Return the median time of one image, after two to warm up; where that is long, of some cells of it."""
        images = self._probe(1).to(self.config.device, self.config.dtype)
        taken: list[float] = []
        while len(taken) < rounds + 2 and (len(taken) < 2 or sum(taken) < _TIMED_SECONDS):
            started_at = time.perf_counter()
            self._compared(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started_at)
        cells = self.split.grid[0] * self.split.grid[1]
        return statistics.median(taken[2:] or taken[1:]) * (1 if self._cells is None else cells / len(self._cells))

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
            # The plan drives the tail itself, chunk by chunk.
            plan = self._with_tail(head, example)
            self._compiled[key] = ExplainedNetwork(head, plan, self.config.target, self.split.grid)

    def _with_tail(self, head: Compiled, example: Tensor) -> Plan:
        """Return the plan; where it is the definition, with its tail compiled for what the head gives, too."""
        plan, config = self._module.plan, self.config
        if not isinstance(plan, DensePlan) or BACKENDS[config.backend].any_batch:
            return plan
        try:
            with torch.inference_mode():
                return plan.compiled(head(example), self._tail_for)
        except BackendError as reason:
            log.warning("backend %r: masked maps go through PyTorch (%s)", config.backend, first_line(reason))
            return plan

    def _tail_for(self, tail: nn.Module, maps: Tensor) -> Compiled:
        """Compile the tail for maps of a shape: chunks are alike whatever the number of images."""
        shape = tuple(maps.shape)
        if shape not in self._tails:
            backend = BACKENDS[self.config.backend].load()
            self._tails[shape] = backend.compile(tail, maps, self.config.precision, self.config.cache)
        return self._tails[shape]

    def _probe(self, count: int) -> Tensor:
        """Draw smooth random pictures: noise alone looks the same everywhere to a deep network."""
        generator = torch.Generator().manual_seed(count)
        coarse = torch.randn((count, 3, 7, 7), generator=generator)
        fine = torch.randn((count, 3, *self.split.image_size), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=self.split.image_size, mode="bicubic")
        return (smooth + 0.3 * fine).contiguous(memory_format=torch.channels_last)


def _placed(module: ExplainedNetwork, config: CompileConfig) -> ExplainedNetwork:
    """Return the module on its device: the head in its precision, and a plan that is one module in float32."""
    if config.dtype == torch.float32 and config.device.type == "cpu":
        channels_last(module)
        return module
    placed = copy.deepcopy(module).to(config.device)
    channels_last(placed)
    placed.head.to(config.dtype)
    if not placed.plan.info.one_module:
        placed.plan.to(config.dtype)
    return placed


def _answers(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode():
        scores, classes, heat = module(images)
    return scores, classes, heat


def _one_by_one(way: Callable[[Tensor], ModelOutputs], images: Tensor) -> ModelOutputs:
    scores, classes, heat = (torch.cat(parts) for parts in zip(*map(way, torch.split(images, 1)), strict=True))
    return scores, classes, heat


def _compare(truth: ModelOutputs, told: ModelOutputs, config: CompileConfig, rounding: float = 0.0) -> None:
    """Refuse a backend whose answers to the probe are too far from eager float32's.

    ``rounding``: how far apart the heat of two right answers may be, where a nearly flat map shows float32's steps.
    """
    allowed = HEAT_TOLERANCE[config.precision] + rounding
    differs = output_mismatch(truth, told, SCORE_TOLERANCE[config.precision], allowed)
    if differs:
        raise BackendError(
            f"backend {config.backend!r} in {config.precision} disagrees with "
            f"eager float32 on a probe image: {differs}; "
            "use --precision fp32 or another --backend"
        )


def select_fastest(split: SplitModel, config: CompileConfig, backends: Sequence[str]) -> Runner:
    """Build with each of some backends, and return the one that answers soonest here.

    A backend that is missing or refuses is passed over, and said so.

    Raises:
        BackendError: none of them runs.
    """
    timed: list[tuple[float, Runner]] = []
    refused: list[str] = []
    for name in backends:
        try:
            runner = Runner(split, replace(config, backend=name))
        except BackendError as reason:
            refused.append(str(reason))
            log.info("passed over: %s", reason)
        else:
            timed.append((runner.seconds_per_image(), runner))
    if not timed:
        raise BackendError("; ".join(refused))
    seconds, best = min(timed, key=lambda pair: pair[0])
    others = ", ".join(f"{runner.config.backend} {1e3 * t:.1f} ms" for t, runner in timed if runner is not best)
    log.info("backend %s: %.1f ms an image here%s", best.config.backend, 1e3 * seconds, others and f" ({others})")
    return best


def select_first_working(split: SplitModel, config: CompileConfig, backends: Sequence[str]) -> Runner:
    """Build with the first of some backends that is here and agrees; those passed over are named, with the reason.

    Raises:
        BackendError: none of them runs.
    """
    refused: list[str] = []
    for name in backends:
        try:
            runner = Runner(split, replace(config, backend=name))
        except BackendError as reason:
            refused.append(str(reason))
            log.warning("passed over: %s", reason)
        else:
            if refused:
                log.warning("backend %s in %s runs instead", name, config.precision)
            return runner
    raise BackendError("; ".join(refused))

"""What a plan is: a way to compute the tail's answers to all masked maps, exactly.

Each plan is a module from the feature map to two sets of class scores before the softmax: the plain network's, and
one per cell. What differs between plans is the cost. A plan is believed only after ``verify_plan`` has compared it with
the definition.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from engine.methods.kernels import Kernel, masks

Tail = TypeVar("Tail", bound=nn.Module)
Definition: TypeAlias = Callable[[Tail, Tensor, Kernel, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Gives float32 scores of some cells, of the whole map, and of the map without anything, by the method's definition."""

PROOF_FRACTION = 2e-3
"""How far a plan's answers may be from the definition's, as a share of what masking changes at all."""
PROOF_ROUNDING = 3e-6
"""What rounding may add to that, as a share of the largest class score (float32 carries 24 bits)."""
PROOF_CELLS = 48
"""How many cells are compared at the most: corners and edges always, the rest drawn."""
PROOF_CHUNK = 8
"""How many of them go through the tail at once."""
PROOF_SLACK = 2.0
"""In half precision: how many times further from float32 than the definition a plan may be."""


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """What a reader may want to know of a plan."""

    name: str
    """``pooled``, ``flat``, ``local``, ``tokens`` or ``dense``."""
    reason: str
    """One sentence: what about the tail made this plan the one."""
    one_module: bool
    """Whether head, tail and explanation are one graph that a backend compiles as a whole."""
    layer: str | None = None
    """The explained layer's qualified name, where it is known."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the masked grid, where it is known."""
    windows: tuple[tuple[str, int, int], ...] = ()
    """How many rows and columns of a later map one cell can change at the most, where these numbers grow."""
    multiply_adds: int | None = None
    """Of all cells of one image by this plan."""
    dense_multiply_adds: int | None = None
    """Of all cells of one image by the definition."""
    bytes: int | None = None
    """Memory this plan works in at the most, beside the network's own weights."""


class Plan(nn.Module):
    """From a feature map (N, C, h, w) to scores (N, K) and cell scores (N, h * w, K), both before the softmax.

    A vision transformer's plan takes tokens (N, T, C), and its cells are patches.
    """

    info: PlanInfo
    said_slow: bool = False
    """Whether its price was told already."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores and every cell's."""
        raise NotImplementedError

    def probe(self, features: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain scores and those of some cells only, (N, len(cells), K): for plans where all cost much."""
        plain, every = self(features)
        return plain, every[:, cells.to(every.device)]


class SampledPlan(Plan):
    """Answers for some cells of another plan: what a build compares where all cells would take minutes."""

    def __init__(self, plan: Plan, cells: Tensor) -> None:
        """Take the plan and the indices of cells, counted row by row."""
        super().__init__()
        self.plan = plan
        self.info = plan.info
        self.register_buffer("cells", cells)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and those cells' (N, len(cells), K)."""
        return self.plan.probe(features, self.get_buffer("cells"))


def reference_scores(tail: nn.Module, features: Tensor, kernel: Kernel, cells: Tensor) -> Tensor:
    """Return what the tail says to the masked maps of some cells: (N, len(cells), K), before the softmax.

    This is Recipro-CAM as it is written: for each cell, a map that keeps the cell's own vector, spread by the kernel,
    and is zero elsewhere, through the tail.
    """
    count, _, rows, columns = features.shape
    cells = cells.to(features.device)
    weights = masks(kernel, (rows, columns), cells).to(features)
    vectors = features.flatten(2).index_select(2, cells).transpose(1, 2)
    maps = vectors[:, :, :, None, None] * weights[None, :, None, :, :]
    scores: Tensor = tail(maps.flatten(0, 1))
    return scores.view(count, len(cells), -1)


def probe_cells(grid: tuple[int, int]) -> Tensor:
    """Return the cells a plan is proven on: all of a small grid, else the corners, edge middles and a random rest."""
    rows, columns = grid
    everything = rows * columns
    if everything <= PROOF_CELLS:
        return torch.arange(everything)
    some_rows = sorted({0, min(1, rows - 1), rows // 2, max(rows - 2, 0), rows - 1})
    some_columns = sorted({0, min(1, columns - 1), columns // 2, max(columns - 2, 0), columns - 1})
    fixed = {row * columns + column for row in some_rows for column in some_columns}
    drawn = torch.randperm(everything, generator=torch.Generator().manual_seed(1))[: PROOF_CELLS - len(fixed)]
    return torch.tensor(sorted(fixed | set(drawn.tolist())))


@dataclass(frozen=True, eq=False)
class ReferenceOutputs:
    """What the definition says to one random feature map; several plans may be held against it."""

    features: Tensor
    cells: Tensor
    scores: Tensor
    """(1, len(cells), K)."""
    plain: Tensor
    """(1, K): the whole map's scores."""
    blank: Tensor
    """(1, K): the all-zero map's scores."""
    slack: float = 0.0
    """How far the definition itself, run in the features' half precision, is from these float32 cell scores."""
    plain_slack: float = 0.0
    """The same for the plain scores."""


def reference_outputs(tail: nn.Module, features: Tensor, kernel: Kernel) -> ReferenceOutputs:
    """Ask the definition, on a map whose cells' vectors are so long that masks matter whatever the grid's size."""
    grid = (features.shape[2], features.shape[3])
    spread = max(float(features.float().std()), 1e-3) * (grid[0] * grid[1]) ** 0.5
    generator = torch.Generator().manual_seed(2)
    probe = (torch.randn(features.shape[1:], generator=generator) * spread)[None].to(features)
    cells = probe_cells(grid)
    return reference_outputs_at(_asked, tail, probe, kernel, cells)


def reference_outputs_at(
    asked: Definition[Tail], tail: Tail, probe: Tensor, kernel: Kernel, cells: Tensor
) -> ReferenceOutputs:
    """Ask a definition at some cells; in half precision in float32, too, and say how far both lie apart."""
    told = asked(tail, probe, kernel, cells)
    if probe.dtype not in {torch.bfloat16, torch.float16}:
        return ReferenceOutputs(probe, cells, *told)
    exact = asked(copy.deepcopy(tail).float(), probe.float(), kernel, cells)
    slack, plain_slack = (float((one - other).abs().max()) for one, other in zip(told[:2], exact[:2], strict=True))
    return ReferenceOutputs(probe, cells, *exact, slack, plain_slack)


def _asked(tail: nn.Module, probe: Tensor, kernel: Kernel, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the definition's float32 scores of some cells, of the whole map and of the all-zero map."""
    with torch.inference_mode():
        parts = [reference_scores(tail, probe, kernel, some) for some in torch.split(cells, PROOF_CHUNK)]
        return torch.cat(parts, dim=1).float(), tail(probe).float(), tail(torch.zeros_like(probe)).float()


def verify_plan(
    plan: Plan, tail: nn.Module, features: Tensor, kernel: Kernel, truth: ReferenceOutputs | None = None
) -> str:
    """Compare a plan with the definition on one feature map; return "" when they agree, else what differs.

    Tolerance: ``PROOF_FRACTION`` of what masking changes, plus ``PROOF_ROUNDING`` of the largest score. In half
        precision both are held against float32, and the plan may be ``PROOF_SLACK`` times as far from it as the
        definition is. ``truth`` is the definition's answer, where it is known already.
    """
    truth = truth or reference_outputs(tail, features, kernel)
    with torch.inference_mode():
        plain, told = plan.probe(truth.features, truth.cells)
    told, true = told.float(), truth.scores
    if told.shape != true.shape:
        return f"shapes differ: {tuple(told.shape)} and {tuple(true.shape)}"
    signal = float((true - truth.blank[:, None]).abs().max())
    allowed = PROOF_FRACTION * signal + PROOF_ROUNDING * float(true.abs().max()) + PROOF_SLACK * truth.slack
    error = float((told - true).abs().max())
    if not error <= allowed:
        return f"cell scores differ by {error:.3g} (allowed {allowed:.3g})"
    error = float((plain.float() - truth.plain).abs().max())
    allowed = 1e-4 * max(float(truth.plain.abs().max()), 1e-30) + PROOF_SLACK * truth.plain_slack
    if not error <= allowed:
        return f"plain scores differ by {error:.3g} (allowed {allowed:.3g})"
    return ""

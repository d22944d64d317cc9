"""Defines plans (exact ways to compute the logits of all masked maps) and their verification.

A plan is a module that computes class logits (scores before the softmax) from a feature map: the network's own, and
one per cell. Plans differ only in cost. A plan is used only after ``verify_plan`` has compared it with the definition,
``reference_scores``.
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
ReferenceFunction: TypeAlias = Callable[[Tail, Tensor, Kernel, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Computes float32 logits by the method's definition: of some cells, of the full map, and of the all-zero map."""

RELATIVE_TOLERANCE = 2e-3
"""Maximum difference from the definition, as a fraction of the largest change that masking causes."""
ROUNDING_TOLERANCE = 3e-6
"""Additional allowed difference by rounding, as a fraction of the largest logit (float32 has 24 bits)."""
MAX_VERIFIED_CELLS = 48
"""Maximum number of cells to compare: corners and edges, and random other cells."""
VERIFY_CHUNK = 8
"""Number of cells per pass through the tail."""
HALF_PRECISION_FACTOR = 2.0
"""In half precision, a plan may differ from float32 by this factor times the difference of the definition."""


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """Describes a plan."""

    name: str
    """Name of the plan: ``pooled``, ``flat``, ``local``, ``tokens`` or ``dense``."""
    reason: str
    """The property of the tail that selects this plan, one sentence."""
    one_module: bool
    """True if head, tail and explanation form one graph, which a backend compiles as a whole."""
    layer: str | None = None
    """Qualified name of the explained layer, if known."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the masked grid, if known."""
    windows: tuple[tuple[str, int, int], ...] = ()
    """Name, rows and columns of the window of a later map that one cell can change, for each map where it grows."""
    multiply_adds: int | None = None
    """Multiply-adds for all cells of one image with this plan."""
    dense_multiply_adds: int | None = None
    """Multiply-adds for all cells of one image with the dense plan."""
    bytes: int | None = None
    """Maximum working memory in bytes, without the network's weights."""


class Plan(nn.Module):
    """Computes logits (N, K) and cell logits (N, h * w, K) from a feature map (N, C, h, w).

    The plan of a vision transformer takes tokens (N, T, C); its cells are patches.
    """

    info: PlanInfo
    slow_warning_logged: bool = False

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits and the logits of all cells."""
        raise NotImplementedError

    def probe(self, features: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the logits of ``cells`` only, (N, len(cells), K).

        Plans whose cost grows with the number of cells override this method.
        """
        plain, cell_logits = self(features)
        return plain, cell_logits[:, cells.to(cell_logits.device)]


class SampledPlan(Plan):
    """Computes some cells of another plan, for verification if all cells take too long."""

    def __init__(self, plan: Plan, cells: Tensor) -> None:
        """Create it from a plan and int64 indices of cells, in row-major order."""
        super().__init__()
        self.plan = plan
        self.info = plan.info
        self.register_buffer("cells", cells)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the chosen cells' logits (N, len(cells), K)."""
        return self.plan.probe(features, self.get_buffer("cells"))


def reference_scores(tail: nn.Module, features: Tensor, kernel: Kernel, cells: Tensor) -> Tensor:
    """Return the tail's logits for the masked maps of some cells: (N, len(cells), K).

    This is the definition of Recipro-CAM (arXiv:2209.14074, section 3). With the mask m_p of cell p and its vector
    f_p, the logits are ``tail(m_p * f_p)``, where ``(m_p * f_p)[c, y, x] = m_p[y, x] f_p[c]``.

    Args:
        tail: computes logits (N, K) from maps (N, C, h, w).
        features: the feature map, (N, C, h, w).
        kernel: the shape of the masks.
        cells: int64 indices of cells in row-major order.
    """
    count, _, rows, columns = features.shape
    cells = cells.to(features.device)
    weights = masks(kernel, (rows, columns), cells).to(features)
    vectors = features.flatten(2).index_select(2, cells).transpose(1, 2)
    maps = vectors[:, :, :, None, None] * weights[None, :, None, :, :]
    scores: Tensor = tail(maps.flatten(0, 1))
    return scores.view(count, len(cells), -1)


def probe_cells(grid: tuple[int, int]) -> Tensor:
    """Return the cells for verification: all of a small grid, else corners, edges, centre, random ones."""
    rows, columns = grid
    count = rows * columns
    if count <= MAX_VERIFIED_CELLS:
        return torch.arange(count)
    some_rows = sorted({0, min(1, rows - 1), rows // 2, max(rows - 2, 0), rows - 1})
    some_columns = sorted({0, min(1, columns - 1), columns // 2, max(columns - 2, 0), columns - 1})
    fixed = {row * columns + column for row in some_rows for column in some_columns}
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: MAX_VERIFIED_CELLS - len(fixed)]
    return torch.tensor(sorted(fixed | set(drawn.tolist())))


@dataclass(frozen=True, eq=False)
class ReferenceOutputs:
    """The logits of the definition for one random feature map, with which plans are verified."""

    features: Tensor
    """The random feature map, (1, C, h, w)."""
    cells: Tensor
    scores: Tensor
    """Logits of the cells, (1, len(cells), K)."""
    plain: Tensor
    """Logits of the full map, (1, K)."""
    zero_response: Tensor
    """Logits of the all-zero map, (1, K)."""
    slack: float = 0.0
    """Maximum difference of the definition's cell logits between half precision and float32."""
    plain_slack: float = 0.0
    """Maximum difference of the definition's logits of the full map between half precision and float32."""


def reference_outputs(tail: nn.Module, features: Tensor, kernel: Kernel) -> ReferenceOutputs:
    """Evaluate the definition on a random map.

    The vectors of the map are scaled by the square root of the number of cells, so that one cell changes the logits
    measurably, whatever the size of the grid.
    """
    grid = (features.shape[2], features.shape[3])
    spread = max(float(features.float().std()), 1e-3) * (grid[0] * grid[1]) ** 0.5
    generator = torch.Generator().manual_seed(2)
    probe = (torch.randn(features.shape[1:], generator=generator) * spread)[None].to(features)
    cells = probe_cells(grid)
    return reference_outputs_at(_evaluate, tail, probe, kernel, cells)


def reference_outputs_at(
    evaluate: ReferenceFunction[Tail], tail: Tail, probe: Tensor, kernel: Kernel, cells: Tensor
) -> ReferenceOutputs:
    """Evaluate a definition at some cells; a half-precision probe is also evaluated in float32."""
    outputs = evaluate(tail, probe, kernel, cells)
    if probe.dtype not in {torch.bfloat16, torch.float16}:
        return ReferenceOutputs(probe, cells, *outputs)
    exact = evaluate(copy.deepcopy(tail).float(), probe.float(), kernel, cells)
    slack, plain_slack = (float((a - b).abs().max()) for a, b in zip(outputs[:2], exact[:2], strict=True))
    return ReferenceOutputs(probe, cells, *exact, slack, plain_slack)


def _evaluate(tail: nn.Module, probe: Tensor, kernel: Kernel, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the definition's float32 logits of some cells, of the full map and of the all-zero map."""
    with torch.inference_mode():
        parts = [reference_scores(tail, probe, kernel, chunk) for chunk in torch.split(cells, VERIFY_CHUNK)]
        return torch.cat(parts, dim=1).float(), tail(probe).float(), tail(torch.zeros_like(probe)).float()


def verify_plan(
    plan: Plan, tail: nn.Module, features: Tensor, kernel: Kernel, reference: ReferenceOutputs | None = None
) -> str:
    """Compare a plan with the definition on a random feature map.

    Let r be the reference logits of the cells and z those of the all-zero map. The plan's logits may differ by

        RELATIVE_TOLERANCE max|r - z| + ROUNDING_TOLERANCE max|r| + HALF_PRECISION_FACTOR slack

    where slack is 0 in float32.

    Args:
        plan: the plan to verify.
        tail: the tail that the plan computes.
        features: a feature map of the right shape, dtype and device; its standard deviation scales the random map.
        kernel: the shape of the masks.
        reference: the logits of the definition, if already computed.

    Returns:
        "" if the plan agrees with the definition, else a description of the difference.
    """
    reference = reference or reference_outputs(tail, features, kernel)
    with torch.inference_mode():
        plain, logits = plan.probe(reference.features, reference.cells)
    logits, expected = logits.float(), reference.scores
    if logits.shape != expected.shape:
        return f"shapes differ: {tuple(logits.shape)} and {tuple(expected.shape)}"
    signal = float((expected - reference.zero_response[:, None]).abs().max())
    rounding = ROUNDING_TOLERANCE * float(expected.abs().max())
    allowed = RELATIVE_TOLERANCE * signal + rounding + HALF_PRECISION_FACTOR * reference.slack
    error = float((logits - expected).abs().max())
    if not error <= allowed:
        return f"cell scores differ by {error:.3g} (allowed {allowed:.3g})"
    error = float((plain.float() - reference.plain).abs().max())
    scale = max(float(reference.plain.abs().max()), 1e-30)
    allowed = 1e-4 * scale + HALF_PRECISION_FACTOR * reference.plain_slack
    if not error <= allowed:
        return f"plain scores differ by {error:.3g} (allowed {allowed:.3g})"
    return ""

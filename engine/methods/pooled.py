"""Plan 1, pooled tails: cellwise layers, a mean over the grid, then layers on the mean vector.

A masked map need never exist. Let g be what stands before the mean (BN, ReLU, 1x1 convolutions: anything that treats
each cell alone and all alike). Then the mean of g over the masked map of cell p is

    mean g(0) + (g(f_p) - g(0)) / (h w)

because g of the masked map is g(0) everywhere but at p. The rest of the tail runs on these h w vectors as one batch,
together with the plain network's own mean vector, so its weights are read once for both. With the Gaussian kernel
each neighbour q of p holds a share k of f_p, and adds (g(k f_p) - g(0)) / (h w).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from engine.methods.kernels import STENCILS, Kernel
from engine.methods.plan import Plan, PlanInfo
from engine.split.fx_split import CHANNELS_FIRST, Permuted
from engine.split.fx_utils import shapes_of, subgraph


class PooledPlan(Plan):
    """One product for all cells; see the module's text for the algebra."""

    def __init__(self, before: nn.Module | None, after: nn.Module, kernel: Kernel, *, flat: bool) -> None:
        """Take the tail apart.

        Args:
            before: g, (N, C, h, w) to (N, C', h, w); None where the mean comes first.
            after: what follows the mean.
            kernel: the spread of a cell's own vector.
            flat: whether ``after`` takes (M, C') or (M, C', 1, 1).
        """
        super().__init__()
        self.before = before
        self.after = after
        self.kernel: Kernel = kernel
        self.flat = flat
        name = "a mean over the grid, then layers on vectors"
        self.info = PlanInfo("pooled", name if before is None else f"cellwise layers, {name}", one_module=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and every cell's (N, h * w, K), before the softmax."""
        count, _, rows, columns = features.shape
        means, vectors = self._means(features)
        every = torch.cat((means[:, None], vectors), dim=1).flatten(0, 1)
        scores = self.after(every if self.flat else every[:, :, None, None])
        scores = scores.view(count, 1 + rows * columns, -1)
        return scores[:, 0], scores[:, 1:]

    def _means(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain mean (N, C') and the masked maps' means (N, h * w, C')."""
        area = features.shape[2] * features.shape[3]
        if self.before is None and self.kernel == "point":
            vectors = features.flatten(2).transpose(1, 2) / area
            return vectors.sum(1), vectors
        if self.before is None:
            fractions = neighbours(features, self.kernel)
            weight = sum(fraction * count for fraction, count in fractions.items())
            return features.mean((2, 3)), (features * (weight / area)).flatten(2).transpose(1, 2)
        blank = self.before(torch.zeros_like(features[:1]))
        plain = self.before(features)
        changed = torch.zeros_like(plain)
        for fraction, count in neighbours(features, self.kernel).items():
            answer = plain if fraction == 1.0 else self.before(features * fraction)
            changed = changed + (answer - blank) * count
        masked = blank.mean((2, 3), keepdim=True) + changed / area
        return plain.mean((2, 3)), masked.flatten(2).transpose(1, 2)


def neighbours(features: Tensor, kernel: Kernel) -> dict[float, Tensor]:
    """Return, for each share a kernel deals out, how many cells of the grid receive it from each cell: (h, w)."""
    grid = features.shape[2:]
    if kernel == "point":
        # Nothing is copied to the device: a CUDA graph may be capturing.
        return {1.0: torch.ones((int(grid[0]), int(grid[1])), dtype=features.dtype, device=features.device)}
    weights = STENCILS[kernel]
    reach = len(weights) // 2
    ones = F.pad(torch.ones((int(grid[0]), int(grid[1])), dtype=features.dtype, device=features.device), (reach,) * 4)
    counts: dict[float, Tensor] = {}
    for down, row in enumerate(weights):
        for right, fraction in enumerate(row):
            # Whether this neighbour lies inside the grid, seen from each cell: the kernels are symmetric.
            inside = ones[down : down + int(grid[0]), right : right + int(grid[1])]
            counts[fraction] = counts[fraction] + inside if fraction in counts else inside
    return counts


def find_pooled(tail: nn.Module, features: Tensor, kernel: Kernel) -> PooledPlan | None:
    """Return a pooled plan if the tail's graph shows a mean over the whole grid that every path passes.

    What it returns still has to be proven: g is taken for cellwise, and is not when it holds a 3x3 convolution.
    """
    if not isinstance(tail, fx.GraphModule):
        return None
    shapes = shapes_of(tail, features[:1])
    entry = next(node for node in tail.graph.nodes if node.op == "placeholder")
    output = next(node for node in tail.graph.nodes if node.op == "output")
    for node in tail.graph.nodes:
        shape, source = shapes.get(node), node.all_input_nodes[0] if node.all_input_nodes else None
        if shape is None or source is None or len(node.all_input_nodes) != 1:
            continue
        before = shapes.get(source, ())
        order = _order_of(before, tuple(features.shape[2:]), shape)
        if order is None or not _is_mean(tail, source, node, before, order):
            continue
        after = subgraph(tail, node, output.all_input_nodes[0])
        g = None if source is entry else subgraph(tail, entry, source)
        if after is not None and (source is entry or g is not None):
            # A map with its channels last is turned round behind g, and its mean is flat.
            first = g if order == (2, 3) or g is None else nn.Sequential(g, Permuted(CHANNELS_FIRST))
            return PooledPlan(first, after, kernel, flat=len(shape) == 2)
    return None


def _order_of(before: tuple[int, ...], grid: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, int] | None:
    """Return which dimensions of a map are its rows and columns, if a step may have taken the mean over them."""
    if len(before) != 4 or after[:1] != before[:1]:
        return None
    if before[2:] == grid and after in {before[:2], (*before[:2], 1, 1)}:
        return (2, 3)
    if before[1:3] == grid and after == (before[0], before[3]):
        return (1, 2)
    return None


def _is_mean(
    tail: fx.GraphModule, source: fx.Node, node: fx.Node, shape: tuple[int, ...], order: tuple[int, int]
) -> bool:
    """Ask one node whether it takes the mean over the grid."""
    part = subgraph(tail, source, node)
    if part is None:
        return False
    weight = next((p for p in tail.parameters() if p.is_floating_point()), torch.empty(0))
    maps = torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(3)).to(weight)
    with torch.inference_mode():
        answer = part(maps)
    return bool(torch.allclose(answer.flatten().float(), maps.mean(order).flatten().float(), atol=1e-2, rtol=1e-2))

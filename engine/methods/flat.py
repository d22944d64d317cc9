"""Flat plan, for tails with a flattened map (VGG, AlexNet): a fixed pooling, flatten, then linear layers.

The first linear layer (weight A, bias b) multiplies each cell with its own column block A_p. Its output is

    b + A_p f_p              for the map that keeps only cell p
    b + sum over p of A_p f_p   for the full map

so all masked maps together cost one pass of that layer. Pooling before the flatten (adaptive, to any grid) is linear
in each channel and is folded into the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from engine.methods.kernels import Kernel, masks
from engine.methods.plan import Plan, PlanInfo
from engine.split.fx_utils import shapes_of, subgraph

MAX_BYTES = 2 << 30
"""Maximum size of the folded blocks in bytes; above it the plan is not built."""


class FlatPlan(Plan):
    """Computes all cells from weight blocks of the first linear layer, one per cell; see the module."""

    blocks: Tensor
    spread: Tensor | None
    bias: Tensor | None

    def __init__(
        self, blocks: Tensor, grid: tuple[int, int], bias: Tensor | None, after: nn.Module, kernel: Kernel
    ) -> None:
        """Create the plan.

        Args:
            blocks: the weight blocks of the first linear layer, (h * w, C, D).
            grid: rows and columns of the map.
            bias: the first linear layer's bias, (D,).
            after: the layers after the first linear layer, from (M, D) to logits (M, K).
            kernel: the shape of the masks.
        """
        super().__init__()
        self.register_buffer("blocks", blocks)
        self.register_buffer("bias", bias)
        self.register_buffer("spread", None)
        if kernel != "point":
            # The mask of cell p also puts f_p, weighted, on the neighbouring cells.
            weights = masks(kernel, grid, torch.arange(len(blocks))).flatten(1).to(blocks)
            self.spread = (weights @ blocks.flatten(1)).view_as(blocks)
        self.after = after
        self.info = PlanInfo("flat", "pooling, flatten, then linear layers", one_module=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the cells' logits (N, h * w, K)."""
        vectors = features.flatten(2).permute(2, 0, 1)
        products = torch.bmm(vectors, self.blocks)
        plain = products.sum(0)[:, None]
        cells = (products if self.spread is None else torch.bmm(vectors, self.spread)).transpose(0, 1)
        hidden = torch.cat((plain, cells), dim=1)
        if self.bias is not None:
            hidden = hidden + self.bias
        scores = self.after(hidden.flatten(0, 1)).view(features.shape[0], 1 + features.shape[2] * features.shape[3], -1)
        return scores[:, 0], scores[:, 1:]


@dataclass(frozen=True)
class FlatTail:
    """The parts of a flattened tail: pooling, one linear layer, and the layers after it."""

    pooling: Tensor | None
    """The pooling matrix (h * w, pooled cells), equal for all channels; None: no pooling."""
    layer: nn.Linear
    after: nn.Module


def find_flat(tail: nn.Module, features: Tensor, kernel: Kernel) -> FlatPlan | None:
    """Return a flat plan if the tail starts with a linear layer on the flattened map, else None.

    The caller must check the result with ``verify_plan``.
    """
    flat_tail = recognise_flat(tail, features)
    if flat_tail is None:
        return None
    layer, channels = flat_tail.layer, features.shape[1]
    weight = layer.weight.view(layer.out_features, channels, -1)
    blocks = (
        weight.permute(2, 1, 0) if flat_tail.pooling is None else torch.einsum("dcq,pq->pcd", weight, flat_tail.pooling)
    )
    bias = None if layer.bias is None else layer.bias.detach()
    grid = (features.shape[2], features.shape[3])
    return FlatPlan(blocks.detach().contiguous(), grid, bias, flat_tail.after, kernel)


def recognise_flat(tail: nn.Module, features: Tensor) -> FlatTail | None:
    """Return the parts of a tail whose first linear layer reads the flattened map; None for others."""
    if not isinstance(tail, fx.GraphModule):
        return None
    shapes = shapes_of(tail, features[:1])
    entry = next(node for node in tail.graph.nodes if node.op == "placeholder")
    output = next(node for node in tail.graph.nodes if node.op == "output")
    channels, rows, columns = features.shape[1:]
    for node in tail.graph.nodes:
        if node.op != "call_module" or not isinstance(layer := tail.get_submodule(str(node.target)), nn.Linear):
            continue
        source = node.all_input_nodes[0]
        width = shapes[source][-1]
        before = subgraph(tail, entry, source)
        after = subgraph(tail, node, output.all_input_nodes[0])
        if len(shapes[source]) != 2 or width % channels or before is None or after is None:
            return None
        if layer.out_features * channels * rows * columns * layer.weight.element_size() > MAX_BYTES:
            return None
        if next(before.parameters(), None) is not None:
            # Pooling has no weights, and running a convolution on all one-hot maps would be costly.
            return None
        pooling = _pooling(before, features[:1], width // channels)
        return FlatTail(pooling, layer, after) if _holds(pooling, before, features[:1]) else None
    return None


def _pooling(before: nn.Module, example: Tensor, cells_out: int) -> Tensor | None:
    """Return the matrix (h * w, cells_out) that ``before`` applies to each channel; None for the identity."""
    _, channels, rows, columns = example.shape
    one_hot = torch.eye(rows * columns, device=example.device, dtype=example.dtype).view(-1, 1, rows, columns)
    with torch.inference_mode():
        pooled = before(one_hot.expand(-1, channels, -1, -1)).view(rows * columns, channels, cells_out)[:, 0]
    matrix = pooled.clone()
    same = cells_out == rows * columns and torch.equal(matrix, torch.eye(cells_out).to(matrix))
    return None if same else matrix


def _holds(pooling: Tensor | None, before: nn.Module, example: Tensor) -> bool:
    """Return whether ``before`` equals the pooling matrix on an example map."""
    maps = example.flatten(2)
    expected = maps if pooling is None else maps @ pooling
    with torch.inference_mode():
        actual = before(example)
    return bool(torch.allclose(actual.flatten(), expected.flatten(), rtol=1e-3, atol=1e-3 * float(maps.abs().max())))

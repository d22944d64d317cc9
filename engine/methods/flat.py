"""Plan 1, flattened tails (VGG, AlexNet): a fixed pooling, flatten, then linear layers.

The first linear layer meets each cell with a column block of its own weight: for the map that keeps cell p alone its
answer is ``b + A_p f_p``. All blocks together are the layer's weight once, so all masked maps cost one dense pass of
that layer, and the plain network's answer is their sum. Pooling before the flatten (adaptive, any grid) is linear in
each channel and folded into the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from engine.methods.kernels import Kernel, masks
from engine.methods.plan import Plan, PlanInfo
from engine.split.fx_utils import shapes_of, subgraph

MAXIMUM_BYTES = 2 << 30
"""Above this the folded blocks are not made; the dense plan needs no such table."""


class FlatPlan(Plan):
    """One block of the first linear layer's weight per cell; see the module's text for the algebra."""

    blocks: Tensor
    spread: Tensor | None
    bias: Tensor | None

    def __init__(
        self, blocks: Tensor, grid: tuple[int, int], bias: Tensor | None, after: nn.Module, kernel: Kernel
    ) -> None:
        """Take blocks (h * w, C, D) of the first linear layer, its bias (D,), and what follows it."""
        super().__init__()
        self.register_buffer("blocks", blocks)
        self.register_buffer("bias", bias)
        self.register_buffer("spread", None)
        if kernel != "point":
            # Cell p's own vector also reaches its neighbours' blocks.
            weights = masks(kernel, grid, torch.arange(len(blocks))).flatten(1).to(blocks)
            self.spread = (weights @ blocks.flatten(1)).view_as(blocks)
        self.after = after
        self.info = PlanInfo("flat", "pooling, flatten, then linear layers", one_module=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and every cell's (N, h * w, K), before the softmax."""
        vectors = features.flatten(2).permute(2, 0, 1)
        answers = torch.bmm(vectors, self.blocks)
        plain = answers.sum(0)[:, None]
        cells = (answers if self.spread is None else torch.bmm(vectors, self.spread)).transpose(0, 1)
        hidden = torch.cat((plain, cells), dim=1)
        if self.bias is not None:
            hidden = hidden + self.bias
        scores = self.after(hidden.flatten(0, 1)).view(features.shape[0], 1 + features.shape[2] * features.shape[3], -1)
        return scores[:, 0], scores[:, 1:]


@dataclass(frozen=True)
class FlatTail:
    """What was recognised in a tail: pooling, one linear layer, and what follows it."""

    pooling: Tensor | None
    """(h * w, cells out), the same for every channel; None = none."""
    layer: nn.Linear
    after: nn.Module


def find_flat(tail: nn.Module, features: Tensor, kernel: Kernel) -> FlatPlan | None:
    """Return a flat plan if the tail has a linear layer on the whole flattened (and pooled) map.

    What it returns still has to be proven.
    """
    found = recognise_flat(tail, features)
    if found is None:
        return None
    layer, channels = found.layer, features.shape[1]
    weight = layer.weight.view(layer.out_features, channels, -1)
    blocks = weight.permute(2, 1, 0) if found.pooling is None else torch.einsum("dcq,pq->pcd", weight, found.pooling)
    bias = None if layer.bias is None else layer.bias.detach()
    grid = (features.shape[2], features.shape[3])
    return FlatPlan(blocks.detach().contiguous(), grid, bias, found.after, kernel)


def recognise_flat(tail: nn.Module, features: Tensor) -> FlatTail | None:
    """Take the tail's graph apart at its first linear layer, if that is on the flattened map; None otherwise."""
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
        if layer.out_features * channels * rows * columns * layer.weight.element_size() > MAXIMUM_BYTES:
            return None
        if next(before.parameters(), None) is not None:
            # Pooling has no weights, and a convolution must not meet every one-hot map at once.
            return None
        pooling = _pooling(before, features[:1], width // channels)
        return FlatTail(pooling, layer, after) if _holds(pooling, before, features[:1]) else None
    return None


def _pooling(before: nn.Module, example: Tensor, cells_out: int) -> Tensor | None:
    """Return the matrix (h * w, cells_out) that ``before`` applies to each channel; None where it is the identity."""
    _, channels, rows, columns = example.shape
    one_hot = torch.eye(rows * columns, device=example.device, dtype=example.dtype).view(-1, 1, rows, columns)
    with torch.inference_mode():
        answer = before(one_hot.expand(-1, channels, -1, -1)).view(rows * columns, channels, cells_out)[:, 0]
    matrix = answer.clone()
    same = cells_out == rows * columns and torch.equal(matrix, torch.eye(cells_out).to(matrix))
    return None if same else matrix


def _holds(pooling: Tensor | None, before: nn.Module, example: Tensor) -> bool:
    """Say whether ``before`` does to a real map what the matrix says it does."""
    maps = example.flatten(2)
    expected = maps if pooling is None else maps @ pooling
    with torch.inference_mode():
        answer = before(example)
    return bool(torch.allclose(answer.flatten(), expected.flatten(), rtol=1e-3, atol=1e-3 * float(maps.abs().max())))
